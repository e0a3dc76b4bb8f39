"""Base class of backends. A backend trains packs in this process or on a cluster.

A backend takes packs from a `PackSource` until the source is exhausted and returns every outcome to it. Which packs
exist never depends on the backend.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from lt_train.core.registry import KindSpec

if TYPE_CHECKING:  # these modules import torch, which reading a sweep file does not need
    from lt_train.backbones.base import BackboneSpec
    from lt_train.core.progress import ProgressCallback
    from lt_train.datasets.base import DatasetSpec, ImageData
    from lt_train.features.bank import FeatureBank
    from lt_train.features.shards import Workers
    from lt_train.pretrain.recipes import RecipeSpec
    from lt_train.retrain.base import Pack, RunResult

__all__ = [
    "BackboneJob",
    "BackendSpec",
    "PackSource",
]


class PackSource(Protocol):
    """A queue of packs. A backend calls it from one thread."""

    def next_pack(self) -> Pack | None:
        """The next pack to train, or None while the queue waits for results of packs in flight."""

    def complete(self, pack: Pack, results: list[RunResult], seconds: float) -> None:
        """Record the results of a pack, in the order of its runs, and its training time in seconds."""

    def failed(self, pack: Pack, why: str, *, own: bool) -> None:
        """Record that a pack returned no results.

        Args:
            pack: the pack.
            why: the reason, in one line.
            own: True if the pack's own process failed, False if its machine did.

        Raises:
            LongtailError: the pack has failed too often; the sweep stops.
        """

    def exhausted(self) -> bool:
        """True when there will be no further pack."""


@dataclass(frozen=True)
class BackboneJob:
    """A backbone to train.

    Attributes:
        data: the images, as loaded by `dataset`.
        dataset, backbone, recipe: the specifications.
        about: further metadata of the checkpoint.
    """

    data: ImageData
    dataset: DatasetSpec
    backbone: BackboneSpec
    recipe: RecipeSpec
    about: Mapping[str, Any]


class BackendSpec(KindSpec):
    """Base of all backends."""

    libraries: ClassVar[tuple[str, ...]] = ()
    """The optional libraries that the backend needs; see `lt_train.core.imports.require`."""

    has_workers: ClassVar[bool] = False
    """Whether the backend has other processes that can train a backbone or extract features."""

    def trains_elsewhere(self) -> bool:
        """Whether packs are trained on other machines, so that the driver's machine needs no such device."""
        return False

    def train_backbone(
        self, job: BackboneJob, out: Path, *, workers: int, cpus: int, gpus: float, report: ProgressCallback
    ) -> None:
        """Train a backbone in several processes and write its checkpoint to `out`, on this machine.

        Called only if `has_workers` is set.

        Args:
            job: what to train.
            out: path of the checkpoint. The state of an unfinished training is stored next to it, as by
                `lt_train.pretrain.train.train_backbone`.
            workers: number of processes.
            cpus: threads per process.
            gpus: above 0, every process has one GPU.
            report: called with progress in epochs.

        Raises:
            UserError: too few resources, or training refuses the job.
            LongtailError: training failed; its last state is kept and a second call resumes from it.
        """
        raise AssertionError("a sweep with stage1_workers on a backend that has none is refused")

    def extractors(self, count: int, *, cpus: int, gpus: float) -> AbstractContextManager[Workers]:
        """`count` processes that extract features, for the duration of the block. Called only if `has_workers` is set.

        Raises:
            UserError: they need more resources than there are.
        """
        raise AssertionError("a sweep with extract_workers on a backend that has none is refused")

    @abstractmethod
    def train(self, bank: FeatureBank, source: PackSource, *, cpus: int, gpus: float) -> None:
        """Train packs from `source` until it is exhausted, with `cpus` threads and `gpus` GPUs per pack."""
