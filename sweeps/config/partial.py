"""What of a wrong sweep file is right enough to be judged: its valid parts, less what was complained about.

So one wrong value does not hide another problem. Touch this to change what is still judged. Knows the shape of the
sections that are mended; the model of the whole file is handed in.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from sweeps.config.methods import MethodEntry

__all__ = ["valid_parts"]


def valid_parts(model: type[BaseModel], document: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a wrong file that can be judged by the rules between parts.

    The searched parts and the search are mended first, by leaving out what was complained about, so that one wrong
    value in them does not hide a wrong range; any other wrong part is absent, and any wrong one of several methods is
    None.
    """
    parts: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        if name not in document:
            if not field.is_required():
                parts[name] = field.get_default(call_default_factory=True)
            continue
        part_type: Any = Annotated[field.annotation, field]
        if name == "methods" and isinstance(document[name], list):
            parts[name] = [_mended_entry(index, entry) for index, entry in enumerate(document[name])]
            continue
        part = _mended(part_type, document[name], mend=name in MENDED, trials_may_lie=name == "search")
        # A space of which nothing is left is no empty space.
        if part is not _GONE and not (name == "search" and document[name].get("space") and not part.space):
            parts[name] = part
    return parts


MENDED = ("method", "training", "search")
"""Parts of which what is right is judged although something is wrong."""

_GONE = object()
"""What is left of a value when all of it was wrong."""


def _mended(part_type: Any, value: Any, *, mend: bool = True, trials_may_lie: bool = False) -> Any:
    """`value` as `part_type`, less what is wrong with it; `_GONE` where nothing is left, or nothing may be left out."""
    adapter: TypeAdapter[Any] = TypeAdapter(part_type)
    while value is not _GONE:
        try:
            return adapter.validate_json(json.dumps(value))
        except ValidationError as error:
            first = error.errors()[0]
            loc = first["loc"][:-1] if first["type"] == "missing" else first["loc"]
            value = _without(value, loc) if mend else _GONE
            if trials_may_lie and isinstance(value, dict):
                value["trials"] = 1  # may be what was wrong, and says nothing about a space that lost a dimension
    return _GONE


def _mended_entry(index: int, value: Any) -> MethodEntry | None:
    """One of several methods; what had a wrong name gets one that nobody else has."""
    entry = _mended(MethodEntry, value)
    if not isinstance(entry, MethodEntry):
        return None
    misnamed = value.get("name") is not None and entry.name is None
    return entry.model_copy(update={"name": f"methods[{index}]"}) if misnamed else entry


def _without(value: Any, loc: tuple[int | str, ...]) -> Any:
    """`value` less what stands at `loc`; elements of `loc` that are not in it (tags of unions) are stepped over."""
    if not isinstance(value, dict):
        return _GONE
    for depth, part in enumerate(loc):
        if part in value:
            inner = _without(value[part], loc[depth + 1 :])
            rest = {key: item for key, item in value.items() if key != part}
            return rest if inner is _GONE else {**rest, part: inner}
    return _GONE
