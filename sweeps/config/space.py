"""Values by dotted path: which fields may be searched, and a spec with values in their places.

A path leads through a method's parts: `lr`, `head.scale`, `post_hoc.tau`. Knows pydantic models and no sweep.
"""

from __future__ import annotations

import json
import types
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

__all__ = ["searchable", "substitute", "types_of", "why_not"]

ModelT = TypeVar("ModelT", bound=BaseModel)


def searchable(model: BaseModel) -> dict[str, FieldInfo]:
    """The fields that hold one number, word or truth value, in this model and in the models in it, by dotted path.

    A `kind` is not among them: each kind has other fields.
    """
    found: dict[str, FieldInfo] = {}
    for name, field in type(model).model_fields.items():
        inner = getattr(model, name)
        if isinstance(inner, BaseModel):
            found |= {f"{name}.{path}": place for path, place in searchable(inner).items()}
        elif name != "kind" and {*types_of(field)} & {int, float, str, bool, Literal}:
            found[name] = field
    return found


def substitute(model: ModelT, values: Mapping[str, Any]) -> ModelT:
    """`model` with some `searchable` fields changed, validated as if the file said so.

    Raises:
        ValidationError: `model`, or a model in it, does not allow a value, or not with the others.
    """
    document = model.model_dump(mode="json")
    for path, value in values.items():
        *models, name = path.split(".")
        place = document
        for inner in models:
            place = place[inner]
        place[name] = value
    return type(model).model_validate_json(json.dumps(document))


def why_not(model: BaseModel, path: str, called: str) -> str:
    """Why a `path` that is not searchable is none; empty for a mere misspelling.

    Args:
        model: what the path leads through.
        path: from `model` on.
        called: what messages call `model`.
    """
    names = path.split(".")
    for depth, name in enumerate(names, start=1):
        if name not in type(model).model_fields:
            return ""
        inner, here = getattr(model, name), ".".join([called, *names[:depth]])
        if depth == len(names):
            return f"{here} is no single number or word; search what is in it, or list several in methods"
        if inner is None:
            return f"nothing to search by this name, since {here} is not given"
        if not isinstance(inner, BaseModel):
            return ""
        model = inner
    return ""


def types_of(field: FieldInfo) -> list[Any]:
    """The types a field allows, out of their unions: `[float]`, `[int, NoneType]`, `[Literal]`."""
    return list(_members(field.annotation))


def _members(annotation: Any) -> Iterator[Any]:
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _members(get_args(annotation)[0])
    elif origin in (Union, types.UnionType):
        for member in get_args(annotation):
            yield from _members(member)
    else:
        yield origin or annotation
