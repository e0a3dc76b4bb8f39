"""Which hyperparameters may differ between the lanes of one fused pack, and which must agree.

The rule is the type: every `float` field of a spec or of a spec inside it is a lane value, named by its dotted path;
everything else is static. Knows specs only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel

__all__ = ["lane_values", "part_of", "static_fields"]

ValueT = TypeVar("ValueT")


def lane_values(spec: BaseModel) -> dict[str, float]:
    """The float fields by dotted path, for example `lr` and `head.scale`."""
    return dict(_floats(spec))


def static_fields(spec: BaseModel) -> dict[str, Any]:
    """The other fields, nested, as JSON holds them."""
    document = spec.model_dump(mode="json")
    for name, field in type(spec).model_fields.items():
        value = getattr(spec, name)
        if field.annotation is float:
            del document[name]
        elif isinstance(value, BaseModel):
            document[name] = static_fields(value)
    return document


def part_of(lanes: Mapping[str, ValueT], part: str) -> dict[str, ValueT]:
    """The lane values of one part by their own names: `head.scale` is `scale` of `head`."""
    return {name.removeprefix(f"{part}."): value for name, value in lanes.items() if name.startswith(f"{part}.")}


def _floats(spec: BaseModel) -> Iterator[tuple[str, float]]:
    for name, field in type(spec).model_fields.items():
        value = getattr(spec, name)
        if field.annotation is float:
            yield name, value
        elif isinstance(value, BaseModel):
            yield from ((f"{name}.{inner}", number) for inner, number in _floats(value))
