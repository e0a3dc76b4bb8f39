"""The parts of a sweep file that belong to sweeps themselves: search, selection, resources.

Touch this to add a field to one of them; the loader, the schema and the docs take it from here. What must hold between
parts is said in `sweeps.config.rules`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, PlainValidator, WithJsonSchema

from lt_train.core.registry import Spec
from lt_train.core.shorthand import Shorthand
from lt_train.retrain.base import EpochSelection
from sweeps.config.sizes import MemorySize
from sweeps.search.all_epochs import AllEpochs
from sweeps.search.base import ALGORITHMS, AlgorithmSpec, Space
from sweeps.search.early_stopping import EARLY_STOPPING, EarlyStoppingSpec
from sweeps.search.tpe import TreeParzen

__all__ = ["PAPER_PROTOCOL", "ResourcesSpec", "SearchSpec", "SelectionSpec"]


if TYPE_CHECKING:
    Algorithm = AlgorithmSpec
    EarlyStopping = EarlyStoppingSpec
else:
    Algorithm = Annotated[ALGORITHMS.union(), Shorthand(tuple(ALGORITHMS.kinds()))]
    EarlyStopping = Annotated[EARLY_STOPPING.union(), Shorthand(tuple(EARLY_STOPPING.kinds()))]


class SearchSpec(Spec):
    """Which trials are tried. It depends on these fields alone, never on workers, timing or interruptions."""

    algorithm: Algorithm = Field(
        default=TreeParzen(),
        description="how values are proposed; a bare word such as tpe stands for the kind with its defaults",
    )
    early_stopping: EarlyStopping = Field(
        default=AllEpochs(),
        description="which trials are stopped early; all_epochs stops none, successive_halving those behind in a pack",
    )
    trials: int = Field(ge=1, description="hyperparameter settings to try, >= 1")
    proposal_batch: int = Field(
        default=12,
        ge=1,
        description="trials asked at a time, >= 1; proposal batch g + 1 starts when g - 1 is complete, so larger keeps "
        "more workers busy and smaller learns sooner",
    )
    seed: int = Field(default=0, ge=0, le=2**32 - 1, description="seed of the sampler, 0 to 2^32 - 1")
    space: Space = Field(
        default_factory=dict,
        description="what is searched: dotted paths into method or training, such as method.lr or method.head.scale, "
        "each with one of {uniform: [low, high]}, {loguniform: [low, high]}, {int: [low, high]}, {choice: [...]}; with "
        "several methods, for each that has the field",
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
    extended_training: int | None = Field(
        default=3,
        ge=2,
        description="how many times as long the winner is trained once more, >= 2, to say whether it stands on a "
        "transient; changes neither who wins nor the winner's numbers; null: not at all",
    )

    def epoch_rule(self) -> EpochSelection:
        """Which epoch of a run counts."""
        return EpochSelection(self.epoch, self.on, self.metric)


PAPER_PROTOCOL = {"on": "test", "epoch": "best", "objective": "best", "seeds": 5, "finalists": 0}
"""What the paper's code does: best epoch on the test set, best of five seeds."""


def _lanes(value: Any) -> Any:
    if value != "auto" and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ValueError(f"must be auto, or a whole number of at least 1, got {value!r}")
    return value


Lanes = Annotated[
    int | Literal["auto"],
    PlainValidator(_lanes),
    WithJsonSchema({"anyOf": [{"const": "auto"}, {"type": "integer", "minimum": 1}]}),
]


class ResourcesSpec(Spec):
    """What one pack, a batch of runs trained together, gets of a machine."""

    cpus_per_pack: int = Field(default=1, ge=1, description="CPU threads a pack, >= 1")
    gpus_per_pack: float = Field(default=0.0, ge=0, description="GPUs a pack, >= 0; fractions share a device")
    stage1_workers: int = Field(
        default=1,
        ge=1,
        description="processes that train the backbone together where that is still to be done, >= 1, each with "
        "cpus_per_pack and, where packs have any, one GPU; 1: the sweep's own process; more: through Ray Train",
    )
    extract_workers: int = Field(
        default=1,
        ge=1,
        description="processes that extract features where that is still to be done, >= 1, each with cpus_per_pack and "
        "gpus_per_pack; 1: the sweep's own process, with all threads that it has; more: on Ray",
    )
    lanes_per_pack: Lanes = Field(
        default="auto",
        description="runs trained side by side in one pack at most, >= 1; auto: as many as memory_per_pack holds",
    )
    memory_per_pack: MemorySize = Field(
        default=2 * 2**30,
        json_schema_extra={"default": "2GiB"},
        description="memory of a pack beside the features, such as 2GiB, where lanes_per_pack is auto; it is counted "
        "from the sweep file, not measured, so that packs are the same on every machine",
    )
