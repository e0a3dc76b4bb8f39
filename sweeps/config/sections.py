"""The sections `search`, `selection` and `resources` of a sweep file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, PlainValidator, WithJsonSchema

from lt_train.core.registry import NOT_IDENTITY, Spec, marked_fields
from lt_train.core.text import MemorySize
from sweeps.search.algorithms import TreeParzen
from sweeps.search.base import ALGORITHMS, EARLY_STOPPING, AlgorithmSpec, EarlyStoppingSpec, NoEarlyStopping, Space

__all__ = ["PAPER_PROTOCOL", "ResourcesSpec", "SearchSpec", "SelectionSpec"]

if TYPE_CHECKING:
    from lt_train.metrics import MetricSpec
    from lt_train.retrain.base import EpochSelection

Algorithm = Annotated[AlgorithmSpec, ALGORITHMS]
EarlyStopping = Annotated[EarlyStoppingSpec, EARLY_STOPPING]


class SearchSpec(Spec):
    """Which configurations are tried. Depends on these fields only, not on workers, timing or interruptions."""

    algorithm: Algorithm = Field(
        default=TreeParzen(),
        description="search algorithm: how trials are proposed",
    )
    early_stopping: EarlyStopping = Field(
        default=NoEarlyStopping(),
        description="which trials are stopped before their last epoch; none: all trials run to the end",
    )
    trials: int = Field(ge=1, description="number of trials per method, >= 1")
    proposal_batch: int = Field(
        default=12,
        ge=1,
        description="number of trials proposed at a time, >= 1; batch g + 1 starts when batch g - 1 is complete. A "
        "larger batch keeps more workers busy, a smaller one learns from results sooner",
    )
    seed: int = Field(default=0, ge=0, le=2**32 - 1, description="seed of the search algorithm, 0 to 2^32 - 1")
    space: Space = Field(
        default_factory=dict,
        description="the searched hyperparameters: dotted paths into method or training, such as method.lr or "
        "method.head.scale, each with one of {uniform: [low, high]}, {loguniform: [low, high]}, {int: [low, high]}, "
        "{choice: [...]}; with several methods, a range applies to every method that has the field",
    )


class SelectionSpec(Spec):
    """The protocol: how trials are ranked and the winner is selected. It is shown with every result."""

    metric: str = Field(
        default="acc_all",
        description="acc_all, acc_many, acc_medium or acc_few: top-1 accuracy over all classes or one split of the "
        "classes; or the kind of one of the sweep's metrics that is in percent and of which higher values are better",
    )
    on: Literal["val", "test"] = Field(
        default="val",
        description="data on which the metric is computed; test, as in the paper, biases the result upwards",
    )
    epoch: Literal["last", "best"] = Field(
        default="last",
        description="epoch at which a run is evaluated: its last, or its best by the metric (the later one if tied)",
    )
    seeds: int = Field(default=5, ge=1, description="runs per trial, with seeds 0, 1, ...; >= 1")
    objective: Literal["mean", "best"] = Field(
        default="mean",
        description="how the seeds of a trial are combined: their mean, or, as in the paper, the best of them",
    )
    finalists: int = Field(
        default=0,
        ge=0,
        description="number of best trials that are run again with new seeds to choose the winner, >= 0; 0: the winner "
        "is chosen from the search",
    )
    extended_training: int | None = Field(
        default=3,
        ge=2,
        description="the winner is trained again for this many times its epochs, >= 2, to check whether its accuracy "
        "has converged; affects neither the selection nor the winner's results; null: no extended training",
    )

    def epoch_rule(self, metrics: Sequence[MetricSpec] = ()) -> EpochSelection:
        """The epoch at which a run is evaluated, and the further metrics of the sweep."""
        from lt_train.retrain.base import EpochSelection

        return EpochSelection(self.epoch, self.on, self.metric, tuple(metrics))


PAPER_PROTOCOL = {"on": "test", "epoch": "best", "objective": "best", "seeds": 5, "finalists": 0}
"""The protocol of the paper's code: best epoch on the test set, best of five seeds."""


def _lanes(value: Any) -> Any:
    if value != "auto" and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ValueError(f"must be auto or a whole number of at least 1, got {value!r}")
    return value


Lanes = Annotated[
    int | Literal["auto"],
    PlainValidator(_lanes),
    WithJsonSchema({"anyOf": [{"const": "auto"}, {"type": "integer", "minimum": 1}]}),
]


class ResourcesSpec(Spec):
    """The resources of one pack, a batch of runs that are trained together."""

    cpus_per_pack: int = Field(default=1, ge=1, description="CPU threads per pack, >= 1")
    gpus_per_pack: Annotated[float, NOT_IDENTITY] = Field(
        default=0.0, ge=0, description="GPUs per pack, >= 0; with a fraction several packs share a device"
    )
    stage1_workers: Annotated[int, NOT_IDENTITY] = Field(
        default=1,
        ge=1,
        description="number of processes that train the backbone together, >= 1, each with cpus_per_pack threads and, "
        "if gpus_per_pack is above 0, one GPU; 1: the driver; more require a backend with workers",
    )
    extract_workers: Annotated[int, NOT_IDENTITY] = Field(
        default=1,
        ge=1,
        description="number of processes that extract features, >= 1, each with cpus_per_pack and gpus_per_pack; 1: "
        "the driver, with all its threads; more require a backend with workers",
    )
    lanes_per_pack: Lanes = Field(
        default="auto",
        description="maximum number of runs trained side by side in one pack, >= 1; auto: as many as fit into "
        "memory_per_pack",
    )
    memory_per_pack: MemorySize = Field(
        default=2 * 2**30,
        json_schema_extra={"default": "2GiB"},
        description="memory of a pack besides the features, such as 2GiB; used if lanes_per_pack is auto. The memory "
        "of a run is computed from the sweep file, not measured, so that packs are the same on every machine",
    )

    def identity(self) -> dict[str, Any]:
        """The fields that influence results, as JSON. Threads and lanes do: they change the order of summation.

        The number of stage-1 workers is part of the identity of the backbone instead.
        """
        unused = ("memory_per_pack",) if self.lanes_per_pack != "auto" else ()
        return self.model_dump(mode="json", exclude={*marked_fields(type(self), NOT_IDENTITY), *unused})
