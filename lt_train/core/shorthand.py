"""Shorter ways to write a kind: a bare word for a mapping, or a mapping without its kind; at any depth of a document.

Touch this to change how short forms are read; which fields have one is said by a `Shorthand` beside the field. Knows
pydantic only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

__all__ = ["Shorthand", "expand"]


@dataclass(frozen=True)
class Shorthand:
    """Marks a field that may be written shorter: a bare word for a mapping, or a mapping without its kind.

    Attributes:
        words: the bare words the schema offers.
        meanings: what a word stands for, where that is not `{kind: word}`.
        default_kind: the kind of a mapping that names none.
        each: the field is a list, and the shorthand is for its items.
        inside: the field of the mapping whose kind the word is, where it is not the mapping's own.
    """

    words: tuple[str, ...]
    meanings: Mapping[str, Mapping[str, Any]] | None = None
    default_kind: str | None = None
    each: bool = False
    inside: str | None = None

    def expand(self, value: Any) -> Any:
        """The long form of `value`; whatever is no shorthand is returned as it is, for the schema to judge."""
        if self.each and isinstance(value, list):
            return [self._expand(item) for item in value]
        return value if self.each else self._expand(value)

    def _expand(self, value: Any) -> Any:
        if isinstance(value, str):
            if self.meanings is None:
                return {"kind": value} if self.inside is None else {self.inside: {"kind": value}}
            return dict(self.meanings[value]) if value in self.meanings else value
        if self.default_kind is not None and isinstance(value, dict) and "kind" not in value:
            return {"kind": self.default_kind, **value}
        return value

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """The long form or one of the words."""
        long = handler(schema)
        word = {"type": "string", "enum": list(self.words)}
        if not self.each:
            return {"anyOf": [long, word]}
        lists = [option for option in long.get("anyOf", [long]) if "items" in option]
        for option in lists:
            option["items"] = {"anyOf": [option["items"], word]}
        return long


def expand(model: type[BaseModel], document: Any) -> Any:
    """`document` with every shorthand of `model` and of the models in it written out.

    Documents are validated as JSON (see `lt_train.core.registry.Spec`), which pydantic gives up behind a validator that
    rewrites its input; therefore shorthands are written out beforehand. A value that is no shorthand is left for the
    schema to judge.
    """
    if not isinstance(document, dict):
        return document
    expanded = dict(document)
    for name, field in model.model_fields.items():
        if name not in expanded:
            continue
        for mark in field.metadata:
            if isinstance(mark, Shorthand):
                expanded[name] = mark.expand(expanded[name])
        if isinstance(expanded[name], str) and _is_kind(field.annotation):
            # A method may narrow a part to one kind; its word is then as good, and any other is told by its kind.
            expanded[name] = {"kind": expanded[name]}
        expanded[name] = _expand_inside(_models(field.annotation), expanded[name])
    return expanded


def _is_kind(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel) and "kind" in annotation.model_fields


def _expand_inside(models: Mapping[str, type[BaseModel]], value: Any) -> Any:
    if isinstance(value, list):
        return [_expand_inside(models, item) for item in value]
    if not isinstance(value, dict):
        return value
    model = next(iter(models.values())) if len(models) == 1 else models.get(str(value.get("kind")))
    return value if model is None else expand(model, value)


def _models(annotation: Any) -> dict[str, type[BaseModel]]:
    """The models an annotation allows, by their kind: itself, or the members of a union or a list, at any depth."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        kind = annotation.model_fields.get("kind")
        return {str(kind.default) if kind else "": annotation}
    found: dict[str, type[BaseModel]] = {}
    for inner in get_args(annotation):
        found |= _models(inner)
    return found
