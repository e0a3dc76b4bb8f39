"""A feature bank prepared for a training loop: on the device where it fits, with batches by index and averaged views.

Shapes: V training views, N images, D features, K classes, S seeds, B batch, A test views, I inputs of a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lt_train.core.fields import static_fields
from lt_train.core.io import fingerprint
from lt_train.features.bank import EvalSet, FeatureBank
from lt_train.features.windows import read_batches
from lt_train.methods.heads.base import Classifier, HeadSpec
from lt_train.methods.samplers import SamplerSpec
from lt_train.metrics.accuracy import split_masks

__all__ = ["DeviceBank", "Images"]

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
