"""Whom a sweep compares: one method, or several side by side, each with what is searched for it.

A file names one `method` or a list of `methods`; behind this file there are only `Candidate`s, one or more. Knows the
specs of methods and of searches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, ValidationError, field_serializer
from pydantic.fields import FieldInfo

from lt_train.core.errors import SpecError
from lt_train.core.io import fingerprint
from lt_train.core.registry import Spec
from lt_train.core.shorthand import Shorthand
from lt_train.methods.base import METHODS, MethodSpec, TrainingSpec
from sweeps.config.sections import SearchSpec
from sweeps.config.space import searchable, substitute
from sweeps.search.base import Dimension, Space

__all__ = ["Candidate", "Method", "MethodEntry", "Methods", "candidates"]

if TYPE_CHECKING:
    Method = MethodSpec
else:
    Method = Annotated[METHODS.union(), Shorthand(tuple(METHODS.kinds()))]


class MethodEntry(Spec):
    """One of several methods that a sweep compares; its kind's bare name stands for it with its defaults."""

    name: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,23}$",
        description="at most 24 letters, digits, dots, dashes or underscores, the first a letter or digit; no other "
        "method of the sweep may have it; null: the method's kind",
    )
    method: Method = Field(description="how the classifier is re-trained; its fields are the values not searched")
    training: TrainingSpec | None = Field(
        default=None, description="what differs from the sweep's own training section, for example {epochs: 10}"
    )
    space: Space = Field(
        default_factory=dict,
        description="what is searched for this method beside search.space; a range given here replaces the one there",
    )

    @field_serializer("training")
    def _differences(self, training: TrainingSpec | None) -> dict[str, Any] | None:
        """Only what was given: a default written out would hide the sweep's own value."""
        return None if training is None else training.model_dump(mode="json", exclude_unset=True)

    def called(self) -> str:
        """Its name in the sweep."""
        return self.name or self.method.kind

    def trained_by(self, training: TrainingSpec) -> TrainingSpec:
        """The sweep's `training` with this entry's differences."""
        return (
            training
            if self.training is None
            else training.model_copy(update=self.training.model_dump(exclude_unset=True))
        )


if TYPE_CHECKING:
    Methods = list[MethodEntry] | None
else:
    Methods = Annotated[list[MethodEntry] | None, Shorthand(tuple(METHODS.kinds()), each=True, inside="method")]


@dataclass(frozen=True)
class Candidate:
    """A method with all that decides which trials are tried of it.

    Attributes:
        name: unique within the sweep.
        method, training: hold every value that is not searched.
        space: what is searched, by dotted path; empty for a method that is evaluated as it is.
        seed: of its own search.
        prefix: of the names of its trials and packs; empty for a sweep's only method.
    """

    name: str
    method: MethodSpec
    training: TrainingSpec
    space: Mapping[str, Dimension]
    seed: int
    prefix: str = ""

    def fields(self) -> dict[str, FieldInfo]:
        """What may be searched, by dotted path. Training is part of it only for a method that trains."""
        sections = {"method": self.method, **({"training": self.training} if self.method.trains else {})}
        return {
            f"{section}.{path}": field for section, spec in sections.items() for path, field in searchable(spec).items()
        }

    def with_values(self, values: Mapping[str, Any]) -> tuple[MethodSpec, TrainingSpec]:
        """A trial's method and training: this candidate's, with `values` by dotted path in place.

        Raises:
            SpecError: the values, each allowed by itself, are not allowed together.
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
            told = [f"trial {dict(values)} of {self.name}: {problem['msg']}" for problem in error.errors()]
            raise SpecError(told) from None


def candidates(
    method: MethodSpec | None, methods: Sequence[MethodEntry] | None, training: TrainingSpec, search: SearchSpec
) -> list[Candidate]:
    """Whom the sections of a sweep file stand for.

    Of `methods` each has a seed of its own, drawn from the search's and its name: what is tried of one does not depend
    on which others are there. A range in `search.space` is for everyone who has the field.
    """
    if methods is None:
        alone = [] if method is None else [method]
        return [Candidate(one.kind, one, training, search.space, search.seed) for one in alone]
    found: list[Candidate] = []
    for entry in methods:
        name = entry.called()
        seed = int(fingerprint(["search", search.seed, name])[:8], 16)
        one = Candidate(name, entry.method, entry.trained_by(training), entry.space, seed, f"{name}-")
        shared = {path: dimension for path, dimension in search.space.items() if path in one.fields()}
        found.append(replace(one, space={**shared, **entry.space}))
    return found
