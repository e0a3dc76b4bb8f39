"""Error messages for invalid specifications: path, rule, given value, and the nearest valid name.

`explain` translates the errors of pydantic. The rules themselves are declared on the fields.
"""

from __future__ import annotations

import difflib
import json
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from pydantic import BaseModel, Tag, ValidationError
from pydantic.fields import FieldInfo

from lt_train.core.fields import KindField, annotated, is_model

__all__ = ["Problem", "dotted", "explain", "named", "nearest", "offer"]


class Problem(NamedTuple):
    """One problem: the path to it in the document as the user wrote it, and a message."""

    loc: tuple[str | int, ...]
    message: str


def dotted(loc: Iterable[str | int]) -> str:
    """`search.space.lr[1]` from `("search", "space", "lr", 1)`."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)
    return text.removeprefix(".")


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` if one of `known` is close to `word`, else empty."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def offer(word: Any, known: Iterable[str]) -> str:
    """`; did you mean 'x'? known: x, y, z`: the nearest of `known`, if one is close, and all of them."""
    known = list(known)
    return f"{nearest(str(word), known) or ';'} known: {', '.join(known)}"


def named(what: Sequence[Any], most: int = 20) -> str:
    """The first `most` items, and the number of further items."""
    more = len(what) - most
    return ", ".join(map(str, what[:most])) + (f" and {more} more" if more > 0 else "")


def explain(error: ValidationError, model: type[BaseModel]) -> list[Problem]:
    """All problems of `error`, which was raised by validating `model`, in the order of the schema.

    A validator that checks several rules may raise PydanticCustomError with `problems`, a list of `(loc, message)`, in
    its context. Each of them becomes a separate problem.
    """
    entries = error.errors(include_url=False)
    places = [_walk(model, entry["loc"]) for entry in entries]
    types = [(loc, entry["type"]) for (loc, _), entry in zip(places, entries, strict=True)]
    problems: list[Problem] = []
    for entry, (loc, place) in zip(entries, places, strict=True):
        several = entry.get("ctx", {}).get("problems")
        if several is not None:
            problems += [Problem(tuple(loc), message) for loc, message in several]
        elif entry["type"] not in _TYPES or (others := _alternatives(loc, types)) == [entry["type"]]:
            problems.append(_problem(loc, place, entry["type"], entry["msg"], entry["input"], entry.get("ctx", {})))
        elif others[:1] == [entry["type"]]:
            words = " or ".join(dict.fromkeys(_TYPES[kind] for kind in others))
            problems.append(Problem(loc, f"must be {words}, got {_shown(entry['input'])}"))
    return problems


def _alternatives(loc: tuple[str | int, ...], types: Sequence[tuple[tuple[str | int, ...], str]]) -> list[str]:
    """The types that are allowed at `loc` if the value has none of them; empty if one alternative matched further."""
    here = [kind for there, kind in types if there == loc]
    further = any(there[: len(loc)] == loc and there != loc for there, _ in types)
    return here if all(kind in _TYPES for kind in here) and not further else []


_TYPES = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "string_type": "text",
    "bool_type": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "finite_number": "a finite number",
}
_BOUNDS = {"greater_than", "greater_than_equal", "less_than", "less_than_equal"}


def _problem(
    loc: tuple[str | int, ...], place: _Place, kind: str, text: str, value: Any, context: Mapping[str, Any]
) -> Problem:
    got = f", got {_shown(value)}"
    if kind == "extra_forbidden":
        known = place.parent_keys
        return Problem(loc, f"unknown key{offer(loc[-1], known)}")
    if kind == "missing":
        return Problem(loc, "is required")
    if kind == "union_tag_invalid":
        if "kind" in context["discriminator"]:
            return _unknown_kind((*loc, "kind"), context["tag"], place)
        return Problem(loc, f"unknown key {context['tag']!r}{offer(context['tag'], place.tags)}")
    if kind == "union_tag_not_found":
        if "kind" in context["discriminator"]:
            return Problem(loc, f"kind is required; known: {', '.join(place.tags)}")
        return Problem(loc, f"must be a mapping with one of the keys {', '.join(place.tags)}{got}")
    if kind == "literal_error":
        allowed = [item for option in place.options for item in get_args(option.annotation)]
        if loc and loc[-1] == "kind":
            return Problem(loc, f"unknown kind {_shown(value)}{offer(value, map(str, allowed))}")
        choices = " or ".join(_shown(item) for item in allowed)
        return Problem(loc, f"must be {choices}{got}{nearest(str(value), [str(item) for item in allowed])}")
    if kind in _BOUNDS:
        return Problem(loc, f"must be {_interval(place.metadata) or text.removeprefix('Input should be ')}{got}")
    if kind in _TYPES:
        words = _TYPES[kind]
        return Problem(loc, f"must be {words}{_mapping(place) if words == 'a mapping' else ''}{got}")
    if kind == "string_pattern_mismatch":
        return Problem(loc, f"must be {place.description or 'of the form ' + context['pattern']}{got}")
    if kind == "string_too_short" and not value:
        return Problem(loc, "must not be empty")
    if kind in ("too_short", "too_long"):
        return Problem(loc, f"must have {_length(place.metadata)}{got}")
    if kind in ("value_error", "assertion_error"):
        text = text.removeprefix("Value error, ").removeprefix("Assertion failed, ")
        return Problem(loc, text if "got " in text or isinstance(value, dict) else text + got)
    text = text.replace("Input should be ", "must be ").replace("should have", "must have")
    return Problem(loc, text[:1].lower() + text[1:] + got)


def _unknown_kind(loc: tuple[str | int, ...], name: Any, place: _Place) -> Problem:
    hint = "" if place.group is None else place.group.hint(name)
    return Problem(loc, f"unknown kind {_shown(name)}{offer(name, place.tags)}{hint}")


def _mapping(place: _Place) -> str:
    """The keys of the mapping that is required, for the message about a value that is not a mapping."""
    keys = ["kind"] if place.tags else [key for option in place.options for key in _keys(option.annotation)]
    return f" with the keys {', '.join(keys)}" if len(keys) > 1 else f" with the key {keys[0]}" if keys else ""


def _length(metadata: Sequence[Any]) -> str:
    """`2 entries`, `at least 1 entry`: the allowed lengths of a list, mapping or text."""
    low = next((item.min_length for item in metadata if isinstance(item, MinLen)), None)
    high = next((item.max_length for item in metadata if isinstance(item, MaxLen)), None)
    if low == high:
        return f"{low} {'entry' if low == 1 else 'entries'}"
    bounds = [f"at least {low}"] * (low is not None) + [f"at most {high}"] * (high is not None)
    return f"{' and '.join(bounds)} {'entry' if (high or low) == 1 else 'entries'}"


def _interval(metadata: Sequence[Any]) -> str:
    """`in [0, 1)`, `above 0`, `at least 1`: the whole interval that a field allows, not only the violated bound."""
    low = next((item for item in metadata if isinstance(item, Gt | Ge)), None)
    high = next((item for item in metadata if isinstance(item, Lt | Le)), None)
    if low is not None and high is not None:
        left = f"({low.gt}" if isinstance(low, Gt) else f"[{low.ge}"
        right = f"{high.lt})" if isinstance(high, Lt) else f"{high.le}]"
        return f"in {left}, {right}"
    if low is not None:
        return f"above {low.gt}" if isinstance(low, Gt) else f"at least {low.ge}"
    if high is not None:
        return f"below {high.lt}" if isinstance(high, Lt) else f"at most {high.le}"
    return ""


def _shown(value: Any) -> str:
    """A value as the user would write it, shortened to one line."""
    if isinstance(value, str):
        text = repr(value)
    else:
        try:
            text = json.dumps(value)
        except (TypeError, ValueError):
            text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


@dataclass(frozen=True)
class _Option:
    """One alternative of an annotation: its type, its tag in a discriminated union, its constraints, its group."""

    annotation: Any
    tag: str | None
    metadata: tuple[Any, ...]
    group: KindField | None = None


@dataclass(frozen=True)
class _Place:
    """The schema at the end of a path."""

    options: tuple[_Option, ...]
    parent_keys: tuple[str, ...] = ()
    description: str | None = None

    @property
    def tags(self) -> list[str]:
        """Tags of the members of a discriminated union."""
        return [option.tag for option in self.options if option.tag]

    @property
    def group(self) -> KindField | None:
        """The plugin group whose kinds are allowed, if it is one."""
        return next((option.group for option in self.options if option.group is not None), None)

    @property
    def metadata(self) -> list[Any]:
        """Constraints of all alternatives."""
        return [item for option in self.options for item in option.metadata]


def _walk(model: type[BaseModel], loc: Sequence[str | int]) -> tuple[tuple[str | int, ...], _Place]:
    """`loc` without elements that pydantic adds (tags of unions, names of types), and the schema at its end."""
    place = _Place(tuple(_options(model)))
    clean: list[str | int] = []
    for part in loc:
        tagged = tuple(option for option in place.options if option.tag == part)
        if tagged and len(place.options) > 1:
            place = _Place(tagged, place.parent_keys, place.description)
            continue
        containers = [option for option in place.options if _is_container(option.annotation)]
        if isinstance(part, str):  # the name of a type, where a list is allowed too
            containers = [option for option in containers if get_origin(option.annotation) not in (list, tuple)]
        if not containers:
            continue
        found = [child for option in containers for child in _children(option.annotation, part)]
        keys = tuple(key for option in containers for key in _keys(option.annotation))
        place = _Place(
            tuple(option for annotation, _ in found for option in _options(annotation)),
            keys,
            next((text for _, text in found if text), None),
        )
        clean.append(part)
    return tuple(clean), place


def _options(annotation: Any, tag: str | None = None, metadata: tuple[Any, ...] = ()) -> Iterator[_Option]:
    """The alternatives of an annotation, with Annotated and Union resolved."""
    if isinstance(annotation, FieldInfo):
        yield from _options(annotated(annotation), tag, metadata)
        return
    if get_origin(annotation) is Annotated:
        inner, *extras = get_args(annotation)
        for extra in extras:
            if isinstance(extra, KindField):
                yield from (_Option(kind, name, metadata, extra) for name, kind in extra.kinds().items())
                return
            if isinstance(extra, Tag):
                tag = extra.tag
            metadata = (*metadata, *(extra.metadata if isinstance(extra, FieldInfo) else (extra,)))
        yield from _options(inner, tag, metadata)
    elif get_origin(annotation) in (Union, types.UnionType):
        for member in get_args(annotation):
            yield from _options(member, tag, metadata)
    else:
        if tag is None and is_model(annotation) and "kind" in annotation.model_fields:
            names = get_args(annotation.model_fields["kind"].annotation)
            tag = names[0] if names else None
        yield _Option(annotation, tag, metadata)


def _is_container(annotation: Any) -> bool:
    return is_model(annotation) or get_origin(annotation) in (dict, list, tuple)


def _keys(annotation: Any) -> list[str]:
    if not is_model(annotation):
        return []
    return [field.alias or name for name, field in annotation.model_fields.items()]


def _children(annotation: Any, part: str | int) -> Iterator[tuple[Any, str | None]]:
    """`(annotation, description)` of the entry `part` of a container, if it exists."""
    if is_model(annotation):
        for name, field in annotation.model_fields.items():
            if part == (field.alias or name):
                yield field, field.description
    elif get_origin(annotation) is dict:
        yield get_args(annotation)[1], None
    elif isinstance(part, int):
        items = [item for item in get_args(annotation) if item is not Ellipsis]
        if items:
            yield items[min(part, len(items) - 1)], None
