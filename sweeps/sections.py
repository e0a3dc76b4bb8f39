"""The parts of a sweep file that belong to sweeps themselves: search, selection, resources, and the shorthands.

Touch this to add a field to one of them; the loader, the schema and the docs take it from here. What must hold between
parts is said in `sweeps.rules`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, Field, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from lt_train.registry import Spec
from lt_train.retrain.base import EpochRule
from sweeps.search.base import SamplerSpec, Space, sampler_kinds, sampler_union
from sweeps.search.tpe import TreeParzen

__all__ = ["PAPER_PROTOCOL", "ResourcesSpec", "SearchSpec", "SelectionSpec", "Shorthand", "expand"]


@dataclass(frozen=True)
class Shorthand:
    """Marks a field that may be written shorter: a bare word for a mapping, or a mapping without its kind.

    Attributes:
        words: the bare words the schema offers.
        meanings: what a word stands for, where that is not `{kind: word}`.
        default_kind: the kind of a mapping that names none.
        each: the field is a list, and the shorthand is for its items.
    """

    words: tuple[str, ...]
    meanings: Mapping[str, Mapping[str, Any]] | None = None
    default_kind: str | None = None
    each: bool = False

    def expand(self, value: Any) -> Any:
        """The long form of `value`; whatever is no shorthand is returned as it is, for the schema to judge."""
        if self.each and isinstance(value, list):
            return [self._expand(item) for item in value]
        return value if self.each else self._expand(value)

    def _expand(self, value: Any) -> Any:
        if isinstance(value, str):
            if self.meanings is None:
                return {"kind": value}
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
        return {**long, "items": {"anyOf": [long["items"], word]}}


def expand(model: type[BaseModel], document: Any) -> Any:
    """`document` with every shorthand of `model` and of the models in it written out.

    Documents are validated as JSON (see `lt_train.registry.Spec`), which pydantic gives up behind a validator that
    rewrites its input; therefore shorthands are written out beforehand.
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
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            expanded[name] = expand(field.annotation, expanded[name])
    return expanded


if TYPE_CHECKING:
    Sampler = SamplerSpec
else:
    Sampler = Annotated[sampler_union(), Shorthand(tuple(sampler_kinds()))]


class SearchSpec(Spec):
    """Which trials are tried. It depends on these fields alone, never on workers, timing or interruptions."""

    sampler: Sampler = Field(
        default=TreeParzen(),
        description="how values are proposed; a bare word such as tpe stands for the kind with its defaults",
    )
    trials: int = Field(ge=1, description="hyperparameter settings to try, >= 1")
    generation: int = Field(
        default=12,
        ge=1,
        description="trials asked at a time, >= 1; generation g + 1 starts when g - 1 is complete, so larger keeps "
        "more workers busy and smaller learns sooner",
    )
    seed: int = Field(default=0, ge=0, le=2**32 - 1, description="seed of the sampler, 0 to 2^32 - 1")
    space: Space = Field(
        min_length=1,
        description="what is searched: dotted paths into method or training, such as method.lr, each with one of "
        "{uniform: [low, high]}, {loguniform: [low, high]}, {int: [low, high]}, {choice: [...]}",
    )


class SelectionSpec(Spec):
    """The protocol: on which number the winner is chosen. It is shown beside every result."""

    metric: Literal["acc_all", "acc_many", "acc_medium", "acc_few"] = Field(
        default="acc_all", description="top-1 accuracy over all classes or one split of them"
    )
    on: Literal["val", "test"] = Field(
        default="val", description="data the metric is taken from; test is what the paper does and flatters the result"
    )
    epoch: Literal["last", "best"] = Field(
        default="last", description="epoch of a run that counts: its last, or its best by the metric (ties: the later)"
    )
    seeds: int = Field(default=5, ge=1, description="runs a trial, with seeds 0, 1, ..., >= 1")
    objective: Literal["mean", "best"] = Field(
        default="mean", description="a trial's value over its seeds: their mean, or the best of them as the paper does"
    )
    finalists: int = Field(
        default=0, ge=0, description="leading trials that are run again with fresh seeds before one wins, >= 0; 0: none"
    )

    def epoch_rule(self) -> EpochRule:
        """Which epoch of a run counts."""
        return EpochRule(self.epoch, self.on, self.metric)


PAPER_PROTOCOL = {"on": "test", "epoch": "best", "objective": "best", "seeds": 5, "finalists": 0}
"""What the paper's code does: best epoch on the test set, best of five seeds."""


class ResourcesSpec(Spec):
    """What one pack, a batch of runs trained together, gets of a machine."""

    cpus_per_pack: int = Field(default=1, ge=1, description="CPU threads a pack, >= 1")
    gpus_per_pack: float = Field(default=0.0, ge=0, description="GPUs a pack, >= 0; fractions share a device")
    lanes_per_pack: int = Field(default=64, ge=1, description="runs trained side by side in one pack at most, >= 1")
