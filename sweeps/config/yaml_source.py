"""YAML text to a plain JSON-able document that remembers on which line everything stands.

Touch this to change what YAML is accepted. PyYAML speaks YAML 1.1, where `1e-3` is text, `no` is false, `010` is eight
and the second of two equal keys wins in silence; here scalars follow YAML 1.2's core schema, keys are unique text and
tags of one's own are refused. Knows nothing of sweeps.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from lt_train.core.errors import SpecError

__all__ = ["Source", "load_yaml", "parse_yaml"]

_PREFIX = "tag:yaml.org,2002:"
_MERGE = _PREFIX + "merge"
_MAX_NODES = 100_000
"""Aliases are expanded; a file that grows beyond this many entries is an accident or an attack."""

_MAX_DEPTH = 50
"""Far beyond any sweep file, and within what a JSON parser follows."""

_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(
    r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_NULL = re.compile(r"~|null|Null|NULL|")
_RESOLVERS = {"null": _NULL, "bool": _BOOL, "int": _INT, "float": _FLOAT, "merge": re.compile("<<")}


class _CoreLoader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalars of YAML 1.2's core schema. Only its `compose` half is used."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (PyYAML's own shape)


for _name, _pattern in _RESOLVERS.items():
    _CoreLoader.add_implicit_resolver(_PREFIX + _name, re.compile(rf"(?:{_pattern.pattern})\Z"), None)


@dataclass(frozen=True)
class Source:
    """A read file: `document` holds dicts with text keys, lists and JSON scalars only.

    `lines` maps a path through the document to the line (from 1) of its key or list item.
    """

    path: Path
    document: dict[str, Any]
    lines: dict[tuple[str | int, ...], int]

    def position(self, loc: Sequence[str | int]) -> int:
        """The line of a pydantic `loc`, or of its nearest ancestor that the file has.

        Elements that are not in the file (tags of unions, pydantic's own) are stepped over.
        """
        here: tuple[str | int, ...] = ()
        for part in loc:
            if (*here, part) in self.lines:
                here = (*here, part)
        return self.lines[here]

    def complaint(self, loc: Sequence[str | int], text: str) -> str:
        """`file:line: text`, for a problem at `loc`."""
        return f"{self.path}:{self.position(loc)}: {text}"


def load_yaml(path: str | Path) -> Source:
    """Read one YAML mapping.

    Raises:
        SpecError: the file is missing, empty, no text, no valid YAML or no mapping, or repeats a key; every repeated
            key is named with both lines.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise SpecError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise SpecError(f"{path}: is a directory, not a YAML file") from None
    except UnicodeDecodeError as error:
        raise SpecError(f"{path}: is not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}") from None
    return parse_yaml(text, path)


def parse_yaml(text: str, path: str | Path = "<text>") -> Source:
    """`load_yaml` for text that is already in memory; `path` is what messages call it."""
    path = Path(path)
    try:
        node = yaml.compose(text, Loader=_CoreLoader)
        if node is None:
            raise SpecError(f"{path}:1: the file is empty")
        if not isinstance(node, MappingNode):
            raise SpecError(f"{path}:{_line(node)}: the file must be a mapping of keys to values, got {_written(node)}")
        reader = _Reader(path)
        document = reader.value(node, ())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise SpecError(f"{path}:{mark.line + 1 if mark else 1}: not valid YAML: {_advice(error)}") from None
    except yaml.YAMLError as error:
        raise SpecError(f"{path}:1: not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise SpecError(f"{path}:1: nested too deeply, or an alias contains itself") from None
    if reader.problems:
        raise SpecError(reader.problems)
    return Source(path, document, reader.lines)


class _Reader:
    """Turns composed nodes into values, noting lines and problems on the way."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: dict[tuple[str | int, ...], int] = {(): 1}
        self.problems: list[str] = []

    def value(self, node: Node, at: tuple[str | int, ...]) -> Any:
        """The plain value of `node`, which stands at path `at`."""
        if len(self.lines) > _MAX_NODES:
            raise SpecError(f"{self.path}:{_line(node)}: more than {_MAX_NODES} entries once aliases are expanded")
        if len(at) > _MAX_DEPTH:
            raise RecursionError
        if isinstance(node, MappingNode) and node.tag == _PREFIX + "map":
            return self._mapping(node, at)
        if isinstance(node, SequenceNode) and node.tag == _PREFIX + "seq":
            items = []
            for index, item in enumerate(node.value):
                self.lines[*at, index] = _line(item)
                items.append(self.value(item, (*at, index)))
            return items
        if isinstance(node, ScalarNode):
            return self._scalar(node)
        return self._refuse(node, f"the tag {_short(node.tag)} is not allowed here")

    def _mapping(self, node: MappingNode, at: tuple[str | int, ...]) -> dict[str, Any]:
        own: dict[str, int] = {}
        merged: dict[str, Any] = {}
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if key_node.tag == _MERGE:
                for part in self._merge_parts(value_node):
                    # Earlier merges win over later ones, and own keys over all of them (YAML's merge rule).
                    merged = {**self._mapping(part, at), **merged}
                continue
            key = self._scalar(key_node) if isinstance(key_node, ScalarNode) else None
            line = _line(key_node)
            if not isinstance(key, str):
                self._refuse(key_node, f"a key must be text, got {_written(key_node)}")
            elif key in own:
                self._refuse(key_node, f"duplicate key {key!r}, first given on line {own[key]}")
            else:
                own[key] = line
                result[key] = self.value(value_node, (*at, key))
        for key, line in own.items():
            self.lines[*at, key] = line
        return {**{key: value for key, value in merged.items() if key not in own}, **result}

    def _merge_parts(self, node: Node) -> Iterator[MappingNode]:
        for part in node.value if isinstance(node, SequenceNode) else [node]:
            if isinstance(part, MappingNode):
                yield part
            else:
                self._refuse(part, "`<<` merges a mapping or a list of mappings")

    def _scalar(self, node: ScalarNode) -> Any:
        text: str = node.value
        kind = node.tag.removeprefix(_PREFIX)
        if node.tag in (_PREFIX + "str", _MERGE):
            return text
        pattern = _RESOLVERS.get(kind)
        if pattern is None or not node.tag.startswith(_PREFIX):
            return self._refuse(node, f"the tag {_short(node.tag)} is not allowed here")
        if kind == "float" and _INT.fullmatch(text):
            return float(text)
        if not pattern.fullmatch(text):
            return self._refuse(node, f"{text!r} is not a {kind}")
        if kind == "null":
            return None
        if kind == "bool":
            return text.lower() == "true"
        if kind == "float":
            return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        try:
            return int(text, 0 if text.startswith(("0o", "0x")) else 10)
        except ValueError:
            return self._refuse(node, "a whole number with too many digits")

    def _refuse(self, node: Node, why: str) -> None:
        self.problems.append(f"{self.path}:{_line(node)}: {why}")


def _line(node: Node) -> int:
    return int(node.start_mark.line) + 1


def _written(node: Node) -> str:
    if isinstance(node, ScalarNode):
        return node.value or "nothing"
    return "a mapping" if isinstance(node, MappingNode) else "a list"


def _short(tag: str) -> str:
    return tag.replace(_PREFIX, "!!")


def _advice(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or "it cannot be read"
    if "'\\t'" in problem:
        return "a tab cannot indent or start a value; use spaces"
    if "single document" in (error.context or ""):
        return "the file must hold one document, a second begins here"
    return f"{error.context}, {problem}" if error.context else problem
