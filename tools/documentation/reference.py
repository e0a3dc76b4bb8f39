"""The reference: every key of a sweep file, every kind and every command, as the schema, the kinds and the parsers say.

One page each, as Markdown. What a field means, with its unit, is said by the field itself; ranges and defaults are read
from the JSON schema. Knows specs and parsers, and no key by its name.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import lt_train.cli.main
import sweeps.cli.main
from lt_train.core.registry import KindSpec
from sweeps.config.plugin_groups import rooms
from sweeps.config.spec import SweepSpec, schema

__all__ = ["reference"]

MADE_BY = "<!-- made by `make docs`; mend what a field says about itself, and make it again -->\n"

HEADER = "| key | type | default | range | what it says |\n| --- | --- | --- | --- | --- |\n"

SIGNS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}

TYPES = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false", "null": "null"}

SEVERAL = {
    "whole number": "whole numbers",
    "number": "numbers",
    "text": "texts",
    "mapping": "mappings",
    "any value": "any values",
}

Schema = Mapping[str, Any]


class Row(NamedTuple):
    """A line of a table, without its key."""

    type: str
    default: str
    range: str
    text: str


def reference() -> dict[str, str]:
    """Every page by its name."""
    return {"sweep.md": _sweep_page(), "kinds.md": _kinds_page(), "commands.md": _commands_page()}


def _sweep_page() -> str:
    document = {**schema(), "required": SweepSpec.model_json_schema()["required"]}
    rows = _rows(document, document["$defs"])
    parts = [
        f"# Sweep files\n\n{MADE_BY}",
        "Every key of a sweep file. Kinds, such as those of `dataset`, have fields of their own: [kinds.md](kinds.md). "
        "Where a kind is asked for, its bare name stands for the kind with its defaults. `lt-sweep validate` checks a "
        "file, and editors do by `sweeps/sweep.schema.json`; what must hold between keys only the former knows.\n",
        HEADER + _lines(rows),
    ]
    for name in SweepSpec.model_fields:
        parts += _section(name, rows[name].text, document["properties"][name], document["$defs"])
    return "\n".join(parts)


def _section(path: str, text: str, field: Schema, definitions: Schema) -> Iterator[str]:
    """The table of what a field holds, where that is no kind, and of what its own fields hold."""
    inside = [one for one in _objects(field, definitions) if _kind_of(one) is None]
    if not inside:
        return
    rows = {key: row for one in inside for key, row in _rows(one, definitions).items()}
    if len(inside) > 1:  # one of them is given, not all
        rows = {key: row._replace(default="") for key, row in rows.items()}
    yield f"## {path}\n\n{text[:1].upper()}{text[1:]}.\n"
    yield HEADER + _lines(rows)
    for one in inside:
        for key, row in _rows(one, definitions).items():
            if key not in SweepSpec.model_fields:  # else it is told in a section of its own
                yield from _section(f"{path}.{key}", row.text, one["properties"][key], definitions)


def _kinds_page() -> str:
    found = rooms()
    parts = [
        f"# Kinds\n\n{MADE_BY}",
        "Everything that a sweep file, or `lt-train` as `KIND NAME=VALUE`, calls by name. `lt-sweep kinds` prints the "
        "same, with the kinds of packages that `--allow-import` names.\n",
        "\n".join(
            f"- [{room}](#{_anchor(room)}): {', '.join(f'`{name}`' for name in kinds)}" for room, kinds in found.items()
        )
        + "\n",
    ]
    for room, kinds in found.items():
        parts.append(f"## {room}\n")
        parts += _room(room, kinds)
    return "\n".join(parts)


def _room(room: str, kinds: Mapping[str, type[KindSpec]]) -> Iterator[str]:
    """What the kinds of a room have in common, once, and each with what is its own."""
    schemas = {name: kind.model_json_schema() for name, kind in kinds.items()}
    tables = {name: _rows(one, one.get("$defs", {})) for name, one in schemas.items()}
    for rows in tables.values():
        rows.pop("kind", None)
    common = _common(tables)
    if common:
        yield "What most of them have; a kind's own table has it again where it differs.\n"
        yield HEADER + _lines(common)
    inner: dict[str, str] = {}
    for name, kind in kinds.items():
        rows = tables[name]
        yield f"### {room}: {name}\n\n{_paragraphs(kind.__doc__ or '')}\n"
        lacks = [f"`{key}`" for key in common if key not in rows]
        if lacks:
            yield f"It has no {', '.join(lacks)}.\n"
        own = {key: row for key, row in rows.items() if common.get(key) != row}
        if own:
            yield HEADER + _lines(own)
        for key, field in schemas[name].get("properties", {}).items():
            for one in _objects(field, schemas[name].get("$defs", {})):
                if (word := _kind_of(one)) not in _every_kind():
                    heading = f"{room}.{key}" + (f": {word}" if word else "")
                    table = HEADER + _lines(_rows(one, schemas[name]["$defs"], without="kind"))
                    inner[heading] = f"### {heading}\n\n{_paragraphs(one.get('description', ''))}\n\n{table}"
    yield from inner.values()


def _common(tables: Mapping[str, Mapping[str, Row]]) -> dict[str, Row]:
    """The fields that two thirds of at least three kinds have, as most of these have them."""
    if len(tables) < 3:
        return {}
    keys = Counter(key for rows in tables.values() for key in rows)
    often = [key for key, count in keys.items() if 3 * count >= 2 * len(tables)]
    return {key: Counter(rows[key] for rows in tables.values() if key in rows).most_common(1)[0][0] for key in often}


def _rows(one: Schema, definitions: Schema, without: str | None = None) -> dict[str, Row]:
    """The fields of an object, a row each."""
    return {
        key: Row(
            _type(field, definitions),
            "required" if key in one.get("required", ()) else _default(field, definitions),
            _range(field, definitions),
            field.get("description", ""),
        )
        for key, field in one.get("properties", {}).items()
        if key != without
    }


def _lines(rows: Mapping[str, Row]) -> str:
    return "".join(f"| `{key}` | {' | '.join(_cell(text) for text in row)} |\n" for key, row in rows.items())


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _options(field: Schema, definitions: Schema) -> list[Schema]:
    """The alternatives that a field allows, each without references."""
    if "$ref" in field:
        return _options(definitions[field["$ref"].rpartition("/")[2]], definitions)
    for key in ("anyOf", "oneOf"):
        if key in field:
            return [option for one in field[key] for option in _options(one, definitions)]
    return [field]


def _objects(field: Schema, definitions: Schema) -> list[Schema]:
    """The objects with fields of their own that a field holds, or a list or a mapping in it."""
    found = []
    for option in _options(field, definitions):
        inside = option.get("items") or option.get("additionalProperties")
        if "properties" in option:
            found.append(option)
        elif isinstance(inside, dict):
            found += _objects(inside, definitions)
    return found


def _type(field: Schema, definitions: Schema) -> str:
    options = _options(field, definitions)
    words = {one for option in options for one in [_kind_of(option), option.get("const")] if one is not None}
    for room, kinds in rooms().items():
        if len(words) > 1 and words == set(kinds):
            other = [one for one in options if _kind_of(one) is None and not set(one.get("enum", ())) & words]
            return " or ".join([f"[{room}](kinds.md#{_anchor(room)})", *(_named(one, definitions) for one in other)])
    return " or ".join(dict.fromkeys(_named(option, definitions) for option in options))


def _named(option: Schema, definitions: Schema) -> str:
    if "const" in option:
        return f"`{option['const']}`"
    if "enum" in option:
        return ", ".join(f"`{word}`" for word in option["enum"])
    if option.get("type") == "array":
        inside = _type(option.get("items") or {"anyOf": option.get("prefixItems", [{}])}, definitions)
        count = f"{len(option['prefixItems'])} " if "prefixItems" in option else ""
        return f"list of {count}{SEVERAL.get(inside, inside)}"
    if option.get("type") == "object":
        kind = option.get("properties", {}).get("kind", {}).get("const")
        return f"`{{kind: {kind}}}`" if kind else "mapping"
    return TYPES.get(option.get("type", ""), "any value")


def _default(field: Schema, definitions: Schema) -> str:
    if "default" not in field:
        return "none"
    value = field["default"]
    if isinstance(value, dict):
        return _default_object(value, _objects(field, definitions))
    if isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
        return ", ".join(f"`{one.get('kind')}`" for one in value)
    return f"`{_plain(value)}`"


def _default_object(value: Schema, objects: list[Schema]) -> str:
    """A kind by its name, and of any object what differs from its own defaults."""
    fitting = [one for one in objects if _kind_of(one) in (None, value.get("kind")) or "kind" not in value]
    known = fitting[0].get("properties", {}) if fitting else {}
    differs = {
        key: said for key, said in value.items() if key != "kind" and known.get(key, {}).get("default", ...) != said
    }
    kind = {"kind": value["kind"]} if "kind" in value else {}
    if differs:
        return f"`{_plain({**kind, **differs})}`"
    return f"`{value['kind']}`" if kind else "its defaults"


def _kind_of(option: Schema) -> Any:
    return option.get("properties", {}).get("kind", {}).get("const")


def _plain(value: Any) -> str:
    """As a sweep file has it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_plain(said)}" for key, said in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_plain(one) for one in value) + "]"
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)


def _range(field: Schema, definitions: Schema) -> str:
    said = []
    for option in _options(field, definitions):
        inner = option.get("items")
        limits = [f"{sign} {_plain(option[key])}" for key, sign in SIGNS.items() if key in option]
        if isinstance(inner, dict) and not limits:
            limits = [f"each {sign} {_plain(inner[key])}" for key, sign in SIGNS.items() if key in inner]
        if "pattern" in option:
            limits.append(f"`{option['pattern']}`")
        if option.get("minItems") and "prefixItems" not in option:
            limits.append(f"{option['minItems']} at least")
        if option.get("minLength"):
            limits.append("not empty")
        said.append(", ".join(limits))
    return "; ".join(dict.fromkeys(filter(None, said)))


def _every_kind() -> set[str]:
    return {name for kinds in rooms().values() for name in kinds}


def _paragraphs(text: str) -> str:
    """A docstring, a line a paragraph; what only a programmer asks of it is left out."""
    found = [" ".join(one.split()) for one in text.strip().split("\n\n")]
    return "\n\n".join(_prose(one) for one in found if not re.match(r"(Attributes|Args|Raises|Returns):", one))


def _prose(text: str) -> str:
    """Text whose `code` stays as it is, and whose signs are no Markdown elsewhere."""
    pieces = re.split(r"(`[^`]*`)", text)
    return "".join(one if one.startswith("`") else re.sub(r"([<*_|])", r"\\\1", one) for one in pieces)


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def _commands_page() -> str:
    parts = [
        f"# Commands\n\n{MADE_BY}",
        "Every command of `lt-sweep` and `lt-train`, with its options. Exit codes of both: 0 done, 1 failed, 2 "
        "something to mend in the input, 130 interrupted.\n",
    ]
    for parser in (sweeps.cli.main.build_parser(), lt_train.cli.main.build_parser()):
        parts.append(f"## {parser.prog}\n\n{parser.description}\n")
        parts += _commands(parser)
    return "\n".join(parts)


def _commands(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        if not isinstance(action, argparse._SubParsersAction):
            continue
        for sub in action.choices.values():
            if any(isinstance(one, argparse._SubParsersAction) for one in sub._actions):
                yield from _commands(sub)
                continue
            example = (sub.epilog or "").removeprefix("example:").strip()
            yield f"### {sub.prog}\n\n{sub.description[:1].upper()}{sub.description[1:]}. Example: `{example}`\n"
            rows = [_option(one) for one in sub._actions if one.dest != "help"]
            yield "| option | default | what it says |\n| --- | --- | --- |\n" + "".join(rows)


def _option(action: argparse.Action) -> str:
    value = "" if action.nargs == 0 else f" {_metavar(action)}"
    named = f"{', '.join(action.option_strings)}{value}" if action.option_strings else _metavar(action)
    needed = (action.required and action.option_strings) or (not action.option_strings and action.nargs != "?")
    default = "required" if needed else _given(action)
    return f"| `{named}` | {default} | {_cell(action.help or '')} |\n"


def _metavar(action: argparse.Action) -> str:
    if isinstance(action.metavar, tuple):
        return f"{action.metavar[0]} [{action.metavar[-1]} ...]"
    if action.choices is not None:
        return "{" + ",".join(map(str, action.choices)) + "}"
    name = action.metavar or action.dest.upper()
    return f"{name} [{name} ...]" if action.nargs == "+" else str(name)


def _given(action: argparse.Action) -> str:
    if action.nargs == 0 or action.default in (None, []):
        return ""
    value = action.default
    return f"`{' '.join(value) if isinstance(value, list) else value}`"
