"""What a backend is: a place where packs are trained. Knows packs and banks, not searches, ledgers or tracking.

A backend kind is one file in this folder with one `BackendSpec` subclass. It asks a `PackSource` for work until
there is none and hands every outcome back; which packs there are never depends on it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from lt_train.backbones.base import BackboneSpec
from lt_train.core.registry import KindSpec, Registry
from lt_train.datasets.base import DatasetSpec, ImageData
from lt_train.features.bank import FeatureBank
from lt_train.features.shards import Workers
from lt_train.pretrain.base import RecipeSpec
from lt_train.pretrain.train import Report
from lt_train.retrain.base import Pack, RunResult

__all__ = [
    "BACKENDS",
    "BackboneJob",
    "BackendSpec",
    "PackSource",
]


class PackSource(Protocol):
    """Where a backend gets its work. Called from one thread."""

    def next_pack(self) -> Pack | None:
        """The next pack to train, or None while results of packs in flight are awaited."""

    def complete(self, pack: Pack, results: list[RunResult], seconds: float) -> None:
        """Take the results of a pack, in the order of its runs, and how long their training took."""

    def failed(self, pack: Pack, why: str, *, own: bool) -> None:
        """Take note that a pack did not come back, because of its `own` process or of the machine it was on.

        Raises:
            LongtailError: enough is enough; the sweep has to be looked after.
        """

    def exhausted(self) -> bool:
        """True when no pack will ever come again."""


@dataclass(frozen=True)
class BackboneJob:
    """A backbone to be trained: `data` is what `dataset` loads, `about` what else its checkpoint should say."""

    data: ImageData
    dataset: DatasetSpec
    backbone: BackboneSpec
    recipe: RecipeSpec
    about: Mapping[str, Any]


class BackendSpec(KindSpec):
    """Base of every backend kind."""

    has_workers: ClassVar[bool] = False
    """Whether there are other processes than the driver's, which can train a backbone or extract features."""

    def trains_elsewhere(self) -> bool:
        """Whether packs are trained on other machines than the driver's, which then needs no device as theirs."""
        return False

    def train_backbone(
        self, job: BackboneJob, out: Path, *, workers: int, cpus: int, gpus: float, report: Report
    ) -> None:
        """Train a backbone in several processes together and write its checkpoint to `out`, on this machine.

        For kinds that have any.

        Args:
            job: what to train.
            out: as in `train_backbone` of lt_train; the state of an unfinished training lies beside it here too.
            workers: how many processes.
            cpus: threads of each.
            gpus: whether each has a GPU: one, if this is above 0.
            report: progress, in epochs.

        Raises:
            UserError: there are not so many, or what training refuses.
            LongtailError: it failed; what was saved is kept, and another call goes on there.
        """
        raise AssertionError("a sweep with stage1_workers on a backend that has none is refused")

    def extractors(self, count: int, *, cpus: int, gpus: float) -> AbstractContextManager[Workers]:
        """`count` processes that run images through a backbone, as long as the block runs; for kinds that have any.

        Raises:
            UserError: they ask for more than there is.
        """
        raise AssertionError("a sweep with extract_workers on a backend that has none is refused")

    @abstractmethod
    def train(self, bank: FeatureBank, source: PackSource, *, cpus: int, gpus: float) -> None:
        """Train packs from `source` until it is exhausted, with `cpus` threads and `gpus` a pack."""


BACKENDS = Registry("sweeps.backends", BackendSpec, modules=("inline", "ray"))  # type: ignore[type-abstract]
"""The backends."""
