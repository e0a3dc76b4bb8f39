"""Memory of the fused engine: the bank on its device, an estimate per lane, and recovery when memory runs out.

Pack sizes follow from the estimate, which depends on the method, the training and the bank's shape, never on the
machine, so that a sweep file gives the same packs everywhere.

Shapes: V training views, N images, D features, K classes, S seeds, B batch, A test views, I inputs of a head.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lt_train.core.errors import OutOfMemory
from lt_train.core.fields import static_fields
from lt_train.core.imports import torch
from lt_train.core.io import fingerprint
from lt_train.features.bank import EvalSet, FeatureBank, read_batches
from lt_train.methods.base import MethodSpec, TrainingSpec
from lt_train.methods.heads.base import Classifier, HeadSpec
from lt_train.methods.samplers import SamplerSpec
from lt_train.metrics.accuracy import split_masks
from lt_train.retrain.base import Run, RunResult

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["DeviceBank", "Images", "fit_in_memory", "is_out_of_memory", "lane_bytes"]


FLOAT_BYTES = 4

OUT_OF_MEMORY = ("can't allocate memory", "std::bad_alloc", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""Parts of the plain RuntimeErrors by which torch reports failed allocations outside its CUDA allocator."""

_log = logging.getLogger(__name__)


def lane_bytes(
    method: MethodSpec,
    training: TrainingSpec,
    *,
    num_classes: int,
    feature_dim: int,
    halving_factor: float | None = None,
) -> int:
    """Bytes that one more lane costs `fused.fit`, on the device and in results; an upper estimate.

    The sum of weights, momentum and selected weights (under successive halving also those of the new, smaller stacks
    while the old ones still exist), the returned head, the logits of one batch and their gradient, and the float64
    statistics of the final evaluation.
    """
    head = num_classes * (feature_dim + 1)
    trained = method.head.num_parameters(num_classes, feature_dim) if method.trains else head
    copies = (3 if halving_factor is None else 3 + 3 / halving_factor) if method.trains else 1
    returned = head + (trained if method.head.needs_classifier else 0)
    batch = 5 * training.batch_size * num_classes
    statistics = 16 * num_classes
    return round(FLOAT_BYTES * (copies * trained + returned + batch + statistics))


def fit_in_memory(
    train: Callable[[Sequence[Run]], list[RunResult]], runs: Sequence[Run], *, splittable: bool
) -> list[RunResult]:
    """`train(runs)`; when memory runs out, the two halves of `runs` one after the other, down to single runs.

    Args:
        train: trains runs together; results in their order.
        runs: at least one.
        splittable: False for runs that successive halving must compare with one another.

    Raises:
        OutOfMemory: memory ran out and `runs` cannot be split.
    """
    try:
        return train(runs)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    if len(runs) == 1:
        raise OutOfMemory("memory ran out with a single run; use a smaller batch_size or a machine with more memory")
    if not splittable:
        raise OutOfMemory(
            f"memory ran out with {len(runs)} runs that successive halving must compare; "
            "reduce resources.memory_per_pack or lanes_per_pack"
        )
    # Outside of the handler, whose traceback would keep the first attempt's tensors alive.
    torch.cuda.empty_cache()
    middle = len(runs) // 2
    _log.warning("memory ran out with %d runs in one pack; training two halves one after the other", len(runs))
    return [
        result
        for half in (runs[:middle], runs[middle:])
        for result in fit_in_memory(train, half, splittable=splittable)
    ]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch (on the CPU or a CUDA device) or Python could not allocate memory."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(text in str(error) for text in OUT_OF_MEMORY)


SHARE_OF_DEVICE = 0.6
"""Largest share of the device's free memory that training features may take; a larger bank stays on the host."""


@dataclass(frozen=True)
class Images:
    """An evaluation set as one kind of head reads it.

    Attributes:
        inputs: float32 `[A, N, I]`; A is 1 for an affine head, whose inputs can be averaged over views.
        labels: int64 `[N]`.
        totals: int64 `[K]`, images per class.
    """

    inputs: Tensor
    labels: Tensor
    totals: Tensor


class DeviceBank:
    """One bank on one device.

    Attributes:
        labels_N: int64, on the device.
        class_counts: int64 `[K]`, on the device.
        masks: bool `[4, K]`, the classes of each of `metrics.SPLITS`, on the device.
        start: the stage-1 classifier on the device, or None.
        start_norms_K: norms of its weight rows.
    """

    def __init__(self, bank: FeatureBank, device: str) -> None:
        self.bank, self.device = bank, device
        self.labels_N = bank.train_labels.to(device)
        self.class_counts = bank.class_counts.to(device)
        self.masks = split_masks(bank.split_counts).to(device)
        self.start: Classifier | None = None
        if bank.head is not None:
            self.start = bank.head[0].to(device), bank.head[1].to(device)
            self.start_norms_K = self.start[0].norm(dim=-1)
        self._features_VND = bank.train_features
        if torch.device(device).type == "cuda" and self._fits(bank.train_features, device):
            self._features_VND = bank.train_features.to(device)
        self._images: dict[str, dict[str, Images]] = {}
        self._orders: dict[tuple[SamplerSpec, int], tuple[int, Tensor]] = {}

    @staticmethod
    def _fits(features: Tensor, device: str) -> bool:
        free, _ = torch.cuda.mem_get_info(device)
        return features.numel() * features.element_size() <= SHARE_OF_DEVICE * free

    def order(self, sampler: SamplerSpec, seed: int, epoch: int) -> Tensor:
        """int64 `[N]` on the CPU: the order of images in one epoch; the latest is cached for other stacks."""
        latest = self._orders.get((sampler, seed))
        if latest is None or latest[0] != epoch:
            latest = epoch, sampler.order(self.bank.train_labels, seed, epoch)
            self._orders[sampler, seed] = latest
        return latest[1]

    def batches(self, epoch: int, orders_SN: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Features `[S, B, D]` (float32) and labels `[S, B, 1]` of an epoch's batches, on the device.

        They come from view `epoch` mod V; the last batch may be short. Of a bank on disk only the needed rows are read.

        Args:
            epoch: from 0.
            orders_SN: image indices, on the CPU.
            size: B.
        """
        features_ND = self._features_VND[epoch % len(self._features_VND)]
        # One copy per epoch: a copy per step would synchronise a CUDA device.
        batches = orders_SN.to(features_ND.device).split(size, dim=1)
        labels_SN1 = self.labels_N[orders_SN.to(self.device)].unsqueeze(-1)
        for batch_SB, labels_SB1, rows in zip(
            batches, labels_SN1.split(size, dim=1), read_batches(features_ND, batches), strict=True
        ):
            yield rows.to(self.device, non_blocking=True).float().view(*batch_SB.shape, -1), labels_SB1

    def images(self, head: HeadSpec) -> dict[str, Images]:
        """The evaluation sets as this kind of head reads them: `test`, and `val` if the bank has one."""
        # A head's inputs do not depend on its lane values.
        key = fingerprint(static_fields(head))
        if key not in self._images:
            sets = {"test": self.bank.test} if self.bank.val is None else {"val": self.bank.val, "test": self.bank.test}
            self._images[key] = {name: self._read(images, head) for name, images in sets.items()}
        return self._images[key]

    def _read(self, images: EvalSet, head: HeadSpec) -> Images:
        labels = images.labels.to(self.device)
        views = [head.inputs(view.to(self.device).float(), self.start) for view in images.features]
        if head.affine and len(views) > 1:
            views = [torch.stack(views).mean(dim=0)]
        return Images(torch.stack(views), labels, torch.bincount(labels, minlength=self.bank.num_classes))
