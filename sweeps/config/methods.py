"""The candidate methods of a sweep, and the fields of a method that can be searched.

A sweep has one `method`, or several `methods` that are compared. Other modules see only `Candidate`s, one or more. A
searched field has a dotted path through the parts of the method: `lr`, `head.scale`, `post_hoc.tau`.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, Field, ValidationError, field_serializer
from pydantic.fields import FieldInfo

from lt_train.core.errors import SpecError
from lt_train.core.fields import Shorthand, substitute
from lt_train.core.io import fingerprint
from lt_train.core.registry import Spec
from lt_train.methods.base import METHODS, MethodSpec, TrainingSpec
from sweeps.config.sections import SearchSpec
from sweeps.search.base import Dimension, Space

__all__ = [
    "Candidate",
    "Method",
    "MethodEntry",
    "Methods",
    "candidates",
    "searchable",
    "types_of",
    "why_not_searchable",
]


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


Method = Annotated[MethodSpec, METHODS]


class MethodEntry(Spec):
    """One of several methods that a sweep compares.

    The name of a kind stands for the kind with its defaults, and a method for an entry with nothing else.
    """

    name: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,23}$",
        description="at most 24 letters, digits, dots, dashes or underscores, the first a letter or digit; unique "
        "within the sweep; null: the kind of the method",
    )
    method: Method = Field(
        description="how the classifier is re-trained; its fields hold the values that are not searched"
    )
    training: TrainingSpec | None = Field(
        default=None,
        description="fields that replace those of the sweep's training section, for example {epochs: 10}; null: none",
    )
    space: Space = Field(
        default_factory=dict,
        description="ranges searched for this method in addition to search.space; a range given here replaces the one "
        "in search.space",
    )

    @field_serializer("training")
    def _only_given_fields(self, training: TrainingSpec | None) -> dict[str, Any] | None:
        """Defaults are not written out: they would replace the values of the sweep's training section."""
        return None if training is None else training.model_dump(mode="json", exclude_unset=True)

    def display_name(self) -> str:
        """Its name in the sweep."""
        return self.name or self.method.kind

    def merged_training(self, training: TrainingSpec) -> TrainingSpec:
        """The sweep's `training` with the fields of this entry replaced."""
        if self.training is None:
            return training
        return training.model_copy(update=self.training.model_dump(exclude_unset=True))


Methods = list[Annotated[MethodEntry, Shorthand(METHODS, inside="method")]] | None


@dataclass(frozen=True)
class Candidate:
    """A method with everything that determines its trials.

    Attributes:
        name: unique within the sweep.
        method, training: hold the values that are not searched.
        space: the searched dimensions by dotted path; empty if the method is only evaluated.
        seed: of its search.
        prefix: of the names of its trials and packs; empty if the sweep has only one method.
    """

    name: str
    method: MethodSpec
    training: TrainingSpec
    space: Mapping[str, Dimension]
    seed: int
    prefix: str = ""

    def fields(self) -> dict[str, FieldInfo]:
        """The fields that can be searched, by dotted path. Those of `training` only for a method that trains."""
        sections = {"method": self.method, **({"training": self.training} if self.method.trains else {})}
        return {
            f"{section}.{path}": field for section, spec in sections.items() for path, field in searchable(spec).items()
        }

    def with_values(self, values: Mapping[str, Any]) -> tuple[MethodSpec, TrainingSpec]:
        """The method and training of a trial, with the searched `values` by dotted path.

        Raises:
            SpecError: a value, or the combination of values, is not valid.
        """
        by_section: dict[str, dict[str, Any]] = {"method": {}, "training": {}}
        for path, value in values.items():
            section, _, rest = path.partition(".")
            by_section[section][rest] = value
        try:
            return (
                substitute(self.method, by_section["method"]),
                substitute(self.training, by_section["training"]),
            )
        except ValidationError as error:
            raise SpecError(
                [f"trial {dict(values)} of {self.name}: {problem['msg']}" for problem in error.errors()]
            ) from None


def candidates(
    method: MethodSpec | None, methods: Sequence[MethodEntry] | None, training: TrainingSpec, search: SearchSpec
) -> list[Candidate]:
    """The candidate methods of a sweep file.

    With several methods each search has its own seed, derived from the seed of the sweep's search and the name of the
    method, so that the trials of one method do not depend on the others. A range in `search.space` applies to every
    method that has the field.
    """
    if methods is None:
        return [] if method is None else [Candidate(method.kind, method, training, search.space, search.seed)]
    found: list[Candidate] = []
    for entry in methods:
        name = entry.display_name()
        seed = int(fingerprint(["search", search.seed, name])[:8], 16)
        candidate = Candidate(name, entry.method, entry.merged_training(training), entry.space, seed, f"{name}-")
        shared = {path: dimension for path, dimension in search.space.items() if path in candidate.fields()}
        found.append(replace(candidate, space={**shared, **entry.space}))
    return found
