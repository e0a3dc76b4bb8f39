"""YAML text to a JSON document that remembers the line of every key and list item.

Scalars follow the core schema of YAML 1.2: `1e-3` is a number and `no` is text, unlike in YAML 1.1, which PyYAML
implements. Keys must be text and unique; tags other than YAML's own are refused.
"""

from __future__ import annotations

import importlib.resources
import os
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
"""The maximum number of entries after aliases are expanded."""

_MAX_DEPTH = 50
"""The maximum nesting, below the limit of a JSON parser."""

_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(
    r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_NULL = re.compile(r"~|null|Null|NULL|")
_RESOLVERS = {"null": _NULL, "bool": _BOOL, "int": _INT, "float": _FLOAT, "merge": re.compile("<<")}


class _CoreLoader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalars of the core schema of YAML 1.2. Only used to compose nodes."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (as in PyYAML)


for _name, _pattern in _RESOLVERS.items():
    _CoreLoader.add_implicit_resolver(_PREFIX + _name, re.compile(rf"(?:{_pattern.pattern})\Z"), None)


@dataclass(frozen=True)
class Source:
    """A parsed file.

    Attributes:
        path: the file, for messages.
        document: dicts with text keys, lists and JSON scalars.
        lines: the line, from 1, of the key or list item at each path through the document.
    """

    path: Path
    document: dict[str, Any]
    lines: dict[tuple[str | int, ...], int]

    def position(self, loc: Sequence[str | int]) -> int:
        """The line of a pydantic `loc`, or of its nearest ancestor in the file.

        Elements that are not in the file, such as the tags of unions, are skipped.
        """
        here: tuple[str | int, ...] = ()
        for part in loc:
            if (*here, part) in self.lines:
                here = (*here, part)
        return self.lines[here]

    def locate(self, loc: Sequence[str | int], text: str) -> str:
        """`file:line: text`, for a problem at `loc`."""
        return f"{self.path}:{self.position(loc)}: {text}"


def load_yaml(path: str | os.PathLike[str]) -> Source:
    """Read one YAML mapping from a file, or from the bundled sweep file of this name if there is no such file.

    Raises:
        SpecError: the file is missing, empty, not UTF-8 text, not valid YAML, not a mapping, or repeats a key. Every
            repeated key is reported with both lines.
    """
    path = Path(path)
    if not (path.exists() or path.suffix) and path.name == str(path):
        bundled = _bundled()
        if path.name not in bundled:
            names = ", ".join(bundled)
            raise SpecError(f"{path}: no such file, and no bundled sweep file of this name; bundled: {names}")
        path = bundled[path.name]
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


def _bundled() -> dict[str, Path]:
    """The sweep files that come with the package, by name."""
    files = importlib.resources.files("sweeps").joinpath("specs").iterdir()
    return {path.stem: path for path in sorted(Path(str(file)) for file in files) if path.suffix == ".yaml"}


def parse_yaml(text: str, path: str | os.PathLike[str] = "<text>") -> Source:
    """As `load_yaml`, for text in memory; `path` is used in messages."""
    path = Path(path)
    try:
        node = yaml.compose(text, Loader=_CoreLoader)
        if node is None:
            raise SpecError(f"{path}:1: the file is empty")
        if not isinstance(node, MappingNode):
            raise SpecError(
                f"{path}:{_line(node)}: the file must be a mapping of keys to values, got {_describe(node)}"
            )
        reader = _Reader(path)
        document = reader.value(node, ())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise SpecError(f"{path}:{mark.line + 1 if mark else 1}: not valid YAML: {_reason(error)}") from None
    except yaml.YAMLError as error:
        raise SpecError(f"{path}:1: not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise SpecError(f"{path}:1: nested too deeply, or an alias contains itself") from None
    if reader.problems:
        raise SpecError(reader.problems)
    return Source(path, document, reader.lines)


class _Reader:
    """Converts composed nodes to values, and records lines and problems."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: dict[tuple[str | int, ...], int] = {(): 1}
        self.problems: list[str] = []

    def value(self, node: Node, at: tuple[str | int, ...]) -> Any:
        """The value of `node` at path `at`."""
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
        return self._refuse(node, f"the tag {_short_tag(node.tag)} is not allowed here")

    def _mapping(self, node: MappingNode, at: tuple[str | int, ...]) -> dict[str, Any]:
        own: dict[str, int] = {}
        merged: dict[str, Any] = {}
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if key_node.tag == _MERGE:
                for part in self._merge_parts(value_node):
                    # YAML's merge rule: earlier merged mappings override later ones, own keys override all.
                    merged = {**self._mapping(part, at), **merged}
                continue
            key = self._scalar(key_node) if isinstance(key_node, ScalarNode) else None
            line = _line(key_node)
            if not isinstance(key, str):
                self._refuse(key_node, f"a key must be text, got {_describe(key_node)}")
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
                self._refuse(part, "`<<` must be a mapping or a list of mappings")

    def _scalar(self, node: ScalarNode) -> Any:
        text: str = node.value
        kind = node.tag.removeprefix(_PREFIX)
        if node.tag in (_PREFIX + "str", _MERGE):
            return text
        pattern = _RESOLVERS.get(kind)
        if pattern is None or not node.tag.startswith(_PREFIX):
            return self._refuse(node, f"the tag {_short_tag(node.tag)} is not allowed here")
        if kind == "float" and _INT.fullmatch(text):
            return float(text)
        if not pattern.fullmatch(text):
            return self._refuse(node, f"{text!r} is not a valid {kind}")
        if kind == "null":
            return None
        if kind == "bool":
            return text.lower() == "true"
        if kind == "float":
            return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        try:
            return int(text, 0 if text.startswith(("0o", "0x")) else 10)
        except ValueError:
            return self._refuse(node, "the number has too many digits")

    def _refuse(self, node: Node, why: str) -> None:
        self.problems.append(f"{self.path}:{_line(node)}: {why}")


def _line(node: Node) -> int:
    return int(node.start_mark.line) + 1


def _describe(node: Node) -> str:
    if isinstance(node, ScalarNode):
        return node.value or "nothing"
    return "a mapping" if isinstance(node, MappingNode) else "a list"


def _short_tag(tag: str) -> str:
    return tag.replace(_PREFIX, "!!")


def _reason(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or "it cannot be parsed"
    if "'\\t'" in problem:
        return "tabs must not be used for indentation; use spaces"
    if "single document" in (error.context or ""):
        return "a file must contain one document; a second one starts here"
    return f"{error.context}, {problem}" if error.context else problem
