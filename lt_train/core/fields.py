"""What the fields of a specification declare about themselves, and the functions that read it.

A declaration is an object in the field's `Annotated`: a marker such as `PATH` or `BATCHED`, or a `Shorthand`. The core
reads declarations and needs no list of kinds or of field names.
"""

from __future__ import annotations

import json
import types
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, GetJsonSchemaHandler
from pydantic.fields import FieldInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

__all__ = [
    "BATCHED",
    "NOT_IDENTITY",
    "PATH",
    "STATIC",
    "KindField",
    "Shorthand",
    "annotated",
    "expand",
    "is_model",
    "lane_values",
    "marked_fields",
    "part_of",
    "static_fields",
    "substitute",
]

ValueT = TypeVar("ValueT")
ModelT = TypeVar("ModelT", bound=BaseModel)


@dataclass(frozen=True)
class Marker:
    """A declaration without parameters, for example `data: Annotated[str, PATH]`."""

    name: str


PATH = Marker("path")
"""The value is a path in the file system (or a list of paths). Relative paths are relative to the working directory."""

NOT_IDENTITY = Marker("not identity")
"""The value changes how something is computed, not what: it is left out of fingerprints."""

BATCHED = Marker("batched")
"""The value may differ between the lanes of one fused pack. For float fields of methods and of their parts."""

STATIC = Marker("static")
"""Only runs that agree on the value share a pack. The default, written out for numbers."""


def has_marker(field: FieldInfo, marker: Marker) -> bool:
    """Whether a field declares `marker`, itself or inside a union or a list, as `Annotated[str, PATH] | None` does."""
    return marker in field.metadata or _has_marker(field.annotation, marker)


def _has_marker(annotation: Any, marker: Marker) -> bool:
    if marker in getattr(annotation, "__metadata__", ()):
        return True
    return any(_has_marker(inner, marker) for inner in get_args(annotation))


def marked_fields(model: type[BaseModel], marker: Marker) -> tuple[str, ...]:
    """Names of the fields of `model` that declare `marker`, in the order of declaration; nested models not included."""
    return tuple(name for name, field in model.model_fields.items() if has_marker(field, marker))


def lane_values(spec: BaseModel) -> dict[str, float]:
    """The batched fields by dotted path, for example `lr` and `head.scale`."""
    return dict(_lane_values(spec))


def _lane_values(spec: BaseModel) -> Iterator[tuple[str, float]]:
    for name, field in type(spec).model_fields.items():
        value = getattr(spec, name)
        if has_marker(field, BATCHED):
            yield name, value
        elif isinstance(value, BaseModel):
            yield from ((f"{name}.{inner}", number) for inner, number in _lane_values(value))


def static_fields(spec: BaseModel) -> dict[str, Any]:
    """All other fields, nested, as in the JSON document."""
    document = spec.model_dump(mode="json")
    for name, field in type(spec).model_fields.items():
        value = getattr(spec, name)
        if has_marker(field, BATCHED):
            del document[name]
        elif isinstance(value, BaseModel):
            document[name] = static_fields(value)
    return document


def substitute(model: ModelT, values: Mapping[str, Any]) -> ModelT:
    """`model` with the values of some fields replaced, given by dotted path, for example `lr` and `head.scale`.

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


def part_of(lanes: Mapping[str, ValueT], part: str) -> dict[str, ValueT]:
    """The lane values of one part by their own names: `head.scale` becomes `scale` for the part `head`."""
    return {name.removeprefix(f"{part}."): value for name, value in lanes.items() if name.startswith(f"{part}.")}


class KindField(ABC):
    """Declares that a field takes any kind of a group. A bare word stands for the kind with its defaults."""

    @abstractmethod
    def kinds(self) -> Mapping[str, type[BaseModel]]:
        """The classes that are allowed, by kind."""

    def hint(self, kind: Any) -> str:
        """Where a kind that is unknown may come from, for the end of a message; empty if there is nothing to say."""
        return ""


@dataclass(frozen=True)
class Shorthand:
    """Declares short forms of a field: a bare word instead of a mapping, or a mapping without its kind.

    Attributes:
        words: the bare words that the JSON schema offers; a `KindField` offers its kinds.
        meanings: what each word stands for, where that is not `{kind: word}`.
        default_kind: the kind of a mapping that names none.
        inside: the field of the mapping whose kind the word names, if it does not name the mapping's own. The value of
            that field, which has a `kind`, stands for the mapping, too.
    """

    words: tuple[str, ...] | KindField = ()
    meanings: Mapping[str, Mapping[str, Any]] | None = None
    default_kind: str | None = None
    inside: str | None = None

    def expand(self, value: Any) -> Any:
        """The long form of `value`. Any other value is returned unchanged and is left to the schema to validate."""
        if isinstance(value, str):
            if self.meanings is None:
                return {"kind": value} if self.inside is None else {self.inside: {"kind": value}}
            return dict(self.meanings[value]) if value in self.meanings else value
        if self.default_kind is not None and isinstance(value, dict) and "kind" not in value:
            return {"kind": self.default_kind, **value}
        if self.inside is not None and isinstance(value, dict) and "kind" in value:
            return {self.inside: value}
        return value

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """The long form, the part that it may be reduced to, or one of the words."""
        long = handler(schema)
        words = list(self.words.kinds() if isinstance(self.words, KindField) else self.words)
        part = [] if self.inside is None else [handler.resolve_ref_schema(long)["properties"][self.inside]]
        return {"anyOf": [long, *part, {"type": "string", "enum": words}]} if words else long


def annotated(field: FieldInfo) -> Any:
    """The annotation of a field with its declarations."""
    return Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation


def expand(model: type[BaseModel], document: Any) -> Any:
    """`document` with all short forms of `model` and of its nested models written out.

    Documents are validated as JSON (see `lt_train.core.registry.Spec`). pydantic does not support that behind a
    validator that rewrites its input, so short forms are expanded before validation. Other values stay unchanged and
    are left to the schema to validate.
    """
    if not isinstance(document, dict):
        return document
    expanded = dict(document)
    for name, field in model.model_fields.items():
        if name in expanded:
            expanded[name] = _expand(annotated(field), expanded[name])
            if isinstance(expanded[name], str) and _is_kind(field.annotation):
                # A method may narrow a part to one kind. Its word is accepted too; a wrong word is reported as a kind.
                expanded[name] = {"kind": expanded[name]}
    return expanded


def _expand(annotation: Any, value: Any) -> Any:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        kinds: Mapping[str, type[BaseModel]] | None = None
        for mark in inner[1:]:
            if isinstance(mark, Shorthand):
                value = mark.expand(value)
            elif isinstance(mark, KindField):
                value = {"kind": value} if isinstance(value, str) else value
                kinds = mark.kinds()
        if kinds is None:
            return _expand(inner[0], value)
        model = kinds.get(str(value.get("kind"))) if isinstance(value, dict) else None
        return value if model is None else expand(model, value)
    if origin in (Union, types.UnionType):
        for member in inner:
            value = _expand(member, value) if _may_be(member, value) else value
        return value
    if origin in (list, tuple) and isinstance(value, list):
        return [_expand(inner[0], item) for item in value]
    if origin is dict and isinstance(value, dict):
        return {key: _expand(inner[1], item) for key, item in value.items()}
    return expand(annotation, value) if is_model(annotation) else value


def _may_be(member: Any, value: Any) -> bool:
    """Whether a member of a union may take `value`: not if both name a kind, and not the same one."""
    if not (_is_kind(member) and isinstance(value, dict)):
        return True
    return bool(value.get("kind") == member.model_fields["kind"].default)


def is_model(annotation: Any) -> bool:
    """Whether an annotation is a pydantic model."""
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _is_kind(annotation: Any) -> bool:
    return is_model(annotation) and "kind" in annotation.model_fields
