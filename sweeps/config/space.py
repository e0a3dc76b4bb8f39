"""Fields by dotted path: which ones can be searched, and a spec with some values replaced.

A path leads through the parts of a method: `lr`, `head.scale`, `post_hoc.tau`.
"""

from __future__ import annotations

import json
import types
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

__all__ = ["searchable", "substitute", "types_of", "why_not_searchable"]

ModelT = TypeVar("ModelT", bound=BaseModel)


def searchable(model: BaseModel) -> dict[str, FieldInfo]:
    """The fields with a single number, string or boolean, in this model and nested ones, by dotted path.

    `kind` is excluded, because each kind has different fields.
    """
    found: dict[str, FieldInfo] = {}
    for name, field in type(model).model_fields.items():
        inner = getattr(model, name)
        if isinstance(inner, BaseModel):
            found |= {f"{name}.{path}": nested for path, nested in searchable(inner).items()}
        elif name != "kind" and {*types_of(field)} & {int, float, str, bool, Literal}:
            found[name] = field
    return found


def substitute(model: ModelT, values: Mapping[str, Any]) -> ModelT:
    """`model` with the values of some `searchable` fields replaced.

    Raises:
        ValidationError: a value, or the combination of values, is not valid.
    """
    document = model.model_dump(mode="json")
    for path, value in values.items():
        *parents, name = path.split(".")
        target = document
        for parent in parents:
            target = target[parent]
        target[name] = value
    return type(model).model_validate_json(json.dumps(document))


def why_not_searchable(model: BaseModel, path: str, prefix: str) -> str:
    """The reason why `path` cannot be searched; empty if it is only misspelled.

    Args:
        model: where the path starts.
        path: the dotted path from `model` on.
        prefix: the dotted path of `model`, for the message.
    """
    names = path.split(".")
    for depth, name in enumerate(names, start=1):
        if name not in type(model).model_fields:
            return ""
        inner, full_path = getattr(model, name), ".".join([prefix, *names[:depth]])
        if depth == len(names):
            return f"{full_path} is not a single number or word; search its fields, or list several methods in methods"
        if inner is None:
            return f"cannot be searched because {full_path} is not given"
        if not isinstance(inner, BaseModel):
            return ""
        model = inner
    return ""


def types_of(field: FieldInfo) -> list[Any]:
    """The types that a field allows, with unions flattened: `[float]`, `[int, NoneType]`, `[Literal]`."""
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
