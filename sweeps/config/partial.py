"""Partial validation: the valid parts of an invalid sweep file.

The rules between parts are checked on them, so that one invalid value does not hide other problems.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from sweeps.config.methods import MethodEntry

__all__ = ["valid_parts"]

_PRUNED = ("method", "training", "search")
"""Parts whose invalid fields are removed, so that the rest is still checked."""

_INVALID = object()
"""Marks a value of which nothing valid is left."""


def valid_parts(model: type[BaseModel], document: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of an invalid document that the rules between parts can be checked on, by field name.

    Invalid fields are removed from the parts in `_PRUNED` and from entries of `methods`; an entry without a valid
    method is None. Any other invalid part is left out.
    """
    parts: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        if name not in document:
            if not field.is_required():
                parts[name] = field.get_default(call_default_factory=True)
            continue
        if name == "methods" and isinstance(document[name], list):
            parts[name] = [_valid_entry(index, entry) for index, entry in enumerate(document[name])]
            continue
        annotation: Any = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
        part = _validate(annotation, document[name], prune=name in _PRUNED, reset_trials=name == "search")
        # A space whose ranges are all invalid must not be reported as an empty space.
        if part is not _INVALID and not (name == "search" and document[name].get("space") and not part.space):
            parts[name] = part
    return parts


def _validate(annotation: Any, value: Any, *, prune: bool = True, reset_trials: bool = False) -> Any:
    """`value` validated as `annotation`, with invalid fields removed if `prune`; `_INVALID` if nothing is left."""
    adapter: TypeAdapter[Any] = TypeAdapter(annotation)
    while value is not _INVALID:
        try:
            return adapter.validate_json(json.dumps(value))
        except ValidationError as error:
            first = error.errors()[0]
            loc = first["loc"][:-1] if first["type"] == "missing" else first["loc"]
            value = _without(value, loc) if prune else _INVALID
            if reset_trials and isinstance(value, dict):
                value["trials"] = 1  # may be the invalid value, and must not be compared with a reduced space
    return _INVALID


def _valid_entry(index: int, value: Any) -> MethodEntry | None:
    """One entry of `methods`. An invalid name is replaced by a unique one."""
    entry = _validate(MethodEntry, value)
    if not isinstance(entry, MethodEntry):
        return None
    name_removed = value.get("name") is not None and entry.name is None
    return entry.model_copy(update={"name": f"methods[{index}]"}) if name_removed else entry


def _without(value: Any, loc: tuple[int | str, ...]) -> Any:
    """`value` without the entry at `loc`. Elements of `loc` that are not keys (tags of unions) are skipped."""
    if not isinstance(value, dict):
        return _INVALID
    for depth, part in enumerate(loc):
        if part in value:
            inner = _without(value[part], loc[depth + 1 :])
            rest = {key: item for key, item in value.items() if key != part}
            return rest if inner is _INVALID else {**rest, part: inner}
    return _INVALID
