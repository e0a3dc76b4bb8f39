"""One stack of the fused engine: S x T runs of one method in one set of tensors, trained an epoch at a time.

The result of each lane is that of `retrain.reference`. It is computed in fewer passes over the weights: the loss is
differentiated with respect to the logits only, each head's gradient is written by hand, momentum is folded into the
gradient's matrix product, and the learning rate into the loss's gradient. `retrain.fused` decides which runs are
stacked and when they stop.

Shapes: S seeds, B batch, T lanes, K classes, D features, N images, I inputs of a head, M metrics, C columns of scores.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from lt_train.core.fields import part_of, static_fields
from lt_train.core.io import fingerprint
from lt_train.core.seeding import Step
from lt_train.features.bank import EvalSet, FeatureBank
from lt_train.features.files import read_batches
from lt_train.methods.base import Augmentation, MethodSpec, TrainedMethod
from lt_train.methods.heads.base import Classifier, HeadSpec
from lt_train.methods.post_hoc import FittedPostHoc
from lt_train.methods.samplers import SamplerSpec
from lt_train.metrics import LogitStatistics, MetricSpec, evaluate, split_accuracy, split_masks, top1_correct
from lt_train.retrain.base import Array, Run, learning_rate_factor, start_head

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["DeviceBank", "Measured", "Stack"]

LOGIT_BYTES = {"cpu": 2**22, "cuda": 2**28}
"""Largest size of the logits (and hidden layers) of one evaluation step; on a CPU they should fit into the cache."""

METRIC_BYTES = {"cpu": 2**27, "cuda": 2**31}
"""Largest size of the logits of several lanes of a stack on a whole set, of which metrics are computed."""

Affine = tuple[Tensor, Tensor]


class Measured:
    """Results of a stack's heads on the test set: `class_accuracy`, `loma` and `regularised_std`, each `[S, T, K]`."""

    def __init__(self, statistics: LogitStatistics, correct_STK: Tensor) -> None:
        self.class_accuracy = (correct_STK / statistics.count).float().cpu().numpy()
        self.loma = statistics.loma().float().cpu().numpy()
        self.regularised_std = statistics.regularised_std().float().cpu().numpy()


class Stack:
    """S x T runs that agree on all static fields, given by their indices in the list of all runs.

    For a method that trains nothing, all heads are the stage-1 classifier: one head, T adjustments of its logits, and
    one "epoch" without effect.

    Attributes:
        finished, epochs: number of epochs trained so far, and in total.
        finite_ST: bool; False for a lane whose loss or weights are no longer finite.
        adjustment_finite_ST: bool; False for a lane whose post-hoc adjustment is not finite.
    """

    def __init__(self, data: DeviceBank, runs: Sequence[Run], index_ST: Sequence[Sequence[int]]) -> None:
        self.data, self.index_ST = data, index_ST
        self.runs_ST = [[runs[index] for index in row] for row in index_ST]
        self.seeds = tuple(row[0].seed for row in self.runs_ST)
        first = self.runs_ST[0][0]
        self.method, self.training = first.method, first.training
        self.shape = len(index_ST), len(index_ST[0])
        self.lanes = self._lane_tensors()
        self.images = data.images(self.method.head)
        heads = self.runs_ST if self.method.trains else [[first]]
        modules = [[run.method.head.module(start_head(data.bank, run), run.seed) for run in row] for row in heads]
        self.head = self.method.head.stack(modules, part_of(self.lanes, "head"), data.device)
        self.velocity = {name: torch.zeros_like(tensor) for name, tensor in self.head.parameters.items()}
        self.finite_ST = torch.ones(self.shape, dtype=torch.bool, device=data.device)
        self.adjustment_finite_ST = torch.ones_like(self.finite_ST)
        self.finished, self.epochs = 0, self.training.epochs if self.method.trains else 1
        self._selected: dict[str, Tensor] = {}
        self._measured: Measured | None = None
        self._fitted: Affine | None = None  # of the current heads
        self._shared_state: dict[str, Tensor] = {}
        self._rate_factor = 1.0
        if isinstance(self.method, TrainedMethod):
            self.loss = self.method.loss(self.lanes, data.class_counts)
            self.augment = self.method.augmentation(data.class_counts)
            momentum, self._decays = self.lanes["momentum"], bool(self.lanes["weight_decay"].any())
            # Determined once, not per step: reading a value from a CUDA device synchronises it.
            self._shared_momentum = float(momentum.max()) if bool((momentum == momentum.max()).all()) else None

    def _lane_tensors(self) -> dict[str, Tensor]:
        """Every hyperparameter that may differ by lane, `[S, 1, T]`, by dotted name."""
        values_ST = [[run.method.lane_values() for run in row] for row in self.runs_ST]
        return {
            name: torch.tensor([[values[name] for values in row] for row in values_ST], device=self.data.device)[
                :, None
            ]
            for name in values_ST[0][0]
        }

    @torch.no_grad()
    def train_epoch(self) -> Tensor:
        """One pass over the training set; returns the mean loss of every lane, `[S, T]`, NaN if nothing is trained."""
        epoch, self.finished, self._fitted = self.finished, self.finished + 1, None
        if not isinstance(self.method, TrainedMethod):
            self._check_adjustment()
            return torch.full(self.shape, torch.nan, device=self.data.device)
        sampler, constraint = self.method.sampler, self.method.constraint
        orders = [self.data.order(sampler, row[0].seed, epoch) for row in self.runs_ST]
        rate_S1T = self._start_epoch(epoch)
        decay = (rate_S1T * self.lanes["weight_decay"]).unsqueeze(-1) if self._decays else None
        loss_ST = torch.zeros(self.shape, device=self.data.device)
        batches = self.data.batches(epoch, torch.stack(orders), self.training.batch_size)
        for number, (features_SBD, labels_SB1) in enumerate(batches):
            step = Step(self.seeds, epoch, self.epochs, number, labels_SB1.shape[1], self.data.device)
            if self.augment is not None:
                features_SBD = self._augmented(self.augment, features_SBD, labels_SB1, step)
            inputs_SBI = self.method.head.inputs(features_SBD, self.data.start)
            logits_SBTK = self.head.logits(inputs_SBI)
            loss = self.loss.at(step)
            loss_SBT, grad_SBTK = loss.with_gradient(logits_SBTK, labels_SB1, rate_S1T / labels_SB1.shape[1])
            self._step(inputs_SBI, logits_SBTK, grad_SBTK, decay)
            loss_ST += loss_SBT.sum(dim=1)
            if constraint is not None and constraint.every == "step":
                self._project()
        if constraint is not None and constraint.every == "epoch":
            self._project()
        loss_ST /= len(self.data.labels_N)
        self._check_finite(loss_ST)
        self._check_adjustment()
        return loss_ST

    def _augmented(self, augment: Augmentation, features_SBD: Tensor, labels_SB1: Tensor, step: Step) -> Tensor:
        """Features of one batch changed by the method, one seed at a time."""
        by_seed = zip(features_SBD, labels_SB1.squeeze(-1), self.seeds, strict=True)
        return torch.stack([augment(features_BD, labels_B, step.of(seed)) for features_BD, labels_B, seed in by_seed])

    def _start_epoch(self, epoch: int) -> Tensor:
        """The learning rates of this epoch, `[S, 1, T]`.

        `velocity` is torch.optim.SGD's momentum buffer times the learning rate: `u = m u + lr (g + wd w); w -= u`. It
        is re-scaled when the rate changes.
        """
        factor = learning_rate_factor(epoch, self.training.epochs)
        for velocity in self.velocity.values():
            velocity.mul_(factor / self._rate_factor)
        self._rate_factor = factor
        return self.lanes["lr"] * factor

    def _step(self, inputs_SBI: Tensor, logits_SBTK: Tensor, grad_SBTK: Tensor, decay: Tensor | None) -> None:
        keep = self._shared_momentum
        if keep is None:
            keep = 1.0
            for velocity in self.velocity.values():
                velocity.mul_(self.lanes["momentum"].unsqueeze(-1))
        self.head.accumulate(self.velocity, inputs_SBI, logits_SBTK, grad_SBTK, keep, decay)
        for name, parameter in self.head.parameters.items():
            parameter.sub_(self.velocity[name])

    def _project(self) -> None:
        assert isinstance(self.method, TrainedMethod), "only a trained method has a constraint"
        assert self.method.constraint is not None, "called for methods with a constraint"
        lanes = part_of(self.lanes, "constraint")
        self.method.constraint.project_(self.head.parameters["weight"], 1, self.data.start_norms_K, lanes)

    def _check_finite(self, loss_ST: Tensor) -> None:
        self.finite_ST = self.finite_ST & loss_ST.isfinite()
        for parameter in self.head.parameters.values():
            # A finite sum implies finite elements and is many times faster; an infinite sum must be checked in full.
            finite_ST = parameter.sum(dim=(1, 3)).isfinite()
            if not bool(finite_ST.all()):
                finite_ST = parameter.isfinite().all(dim=-1).all(dim=1)
            self.finite_ST = self.finite_ST & finite_ST

    def _check_adjustment(self) -> None:
        for table in self._affine() or ():
            finite = table.isfinite().all(dim=-1).view(-1, self.shape[1] if table.ndim == 4 else 1)
            self.adjustment_finite_ST = self.adjustment_finite_ST & finite

    @torch.no_grad()
    def scores(self, metrics: Sequence[MetricSpec] = (), *, selected: bool = False) -> dict[str, Array]:
        """Accuracy by split, then metrics, `[S, T, C]`. Accuracies on `val`, if there is one, are means over classes.

        Args:
            metrics: further metrics.
            selected: the current heads are the selected ones; `measure` then needs no further pass over the test set.
        """
        found: dict[str, Array] = {}
        for name, images in self.images.items():
            statistics = self._statistics() if selected and name == "test" else None
            correct_STK = self._count_correct(images, statistics)
            if statistics is not None:
                self._measured = Measured(statistics, correct_STK)
            average: Literal["macro", "micro"] = "macro" if name == "val" else "micro"
            found[name] = split_accuracy(correct_STK, images.totals, self.data.masks, average).cpu().numpy()
            if metrics:
                found[name] = np.concatenate([found[name], self._metrics(metrics, images)], axis=-1)
        return found

    @torch.no_grad()
    def select(self, better_ST: Tensor) -> None:
        """Save the current heads of these lanes as the selected ones; without a call, the last heads are selected."""
        if not self._selected:
            self._selected = {name: parameter.clone() for name, parameter in self.head.parameters.items()}
        for name, selected in self._selected.items():
            selected.copy_(torch.where(better_ST[:, None, :, None], self.head.parameters[name], selected))

    @torch.no_grad()
    def take_over(self, old: Mapping[int, tuple[Stack, int, int]]) -> None:
        """Continue the lanes of other stacks; `old` maps a run's index to its former stack, seed and lane."""
        for s, row in enumerate(self.index_ST):
            for t, index in enumerate(row):
                stack, s0, t0 = old[index]
                if stack._selected and not self._selected:
                    self._selected = {name: torch.empty_like(tensor) for name, tensor in self.head.parameters.items()}
                for new, former in (
                    (self.head.parameters, stack.head.parameters),
                    (self.velocity, stack.velocity),
                    (self._selected, stack._selected),
                ):
                    for name, tensor in new.items():
                        tensor[s, :, t] = former[name][s0, :, t0]
                self.finite_ST[s, t] = stack.finite_ST[s0, t0]
                self._rate_factor, self.finished = stack._rate_factor, stack.finished

    @torch.no_grad()
    def measure(self) -> Measured:
        """LoMa, regularised std and per-class accuracy of the selected heads on the test set; ends the training."""
        if self._measured is None:
            self.head.parameters.update(self._selected)
            self._fitted = None
            statistics = self._statistics()
            self._measured = Measured(statistics, self._count_correct(self.images["test"], statistics))
        return self._measured

    def state(self, seed: int, lane: int) -> dict[str, Tensor]:
        """One lane's classifier, for `MethodSpec.classifier`; lanes of an untrained head share their tensors."""
        if self.method.trains:
            state = self.head.state(seed, lane)
        else:
            state = self._shared_state = self._shared_state or self.head.state(0, 0)
        affine = self._affine()
        if affine is None:
            return state
        scale, offset = (tensor[seed, 0, lane].cpu().clone() for tensor in affine)
        return {**{f"head.{name}": tensor for name, tensor in state.items()}, "scale": scale, "offset": offset}

    def _affine(self) -> Affine | None:
        """Scale and offset of the post-hoc adjustment, each `[S, 1, T, K]`, or None."""
        adjustment = self.method.post_hoc
        if adjustment is None:
            return None
        if isinstance(adjustment, FittedPostHoc):
            self._fitted = self._fitted or self._fit(adjustment)
            return self._fitted
        lanes = {name: value.unsqueeze(-1) for name, value in part_of(self.lanes, "post_hoc").items()}
        norms, bias = self.head.row_norms() if adjustment.needs_rows else (None, None)
        scale, offset = adjustment.affine(lanes, self.data.class_counts, norms, bias)
        (seeds, runs), classes, device = self.shape, self.data.bank.num_classes, self.data.device
        shape = (seeds, 1, runs, classes)
        return scale.expand(shape).to(device), offset.expand(shape).to(device)

    def _fit(self, adjustment: FittedPostHoc) -> Affine:
        """Scale and offset of every run, chosen on the validation logits of its current head, one run at a time."""
        bank, tables = self.data.bank, []
        assert bank.val is not None, "check_runs refuses such an adjustment on a bank without val"
        features = bank.val.features.to(self.data.device).float()
        for (s, t), run in np.ndenumerate(np.array(self.runs_ST, dtype=object)):
            plain: MethodSpec = run.method.model_copy(update={"post_hoc": None})
            state = self.head.state(s, t) if self.method.trains else self.head.state(0, 0)
            logits_NK = plain.classifier(state).to(self.data.device)(features).mean(dim=0).cpu()
            values = part_of(run.method.lane_values(), "post_hoc")
            lanes = {name: torch.tensor(value) for name, value in values.items()}
            tables.append(torch.stack(adjustment.fit(lanes, bank.class_counts, logits_NK, bank.val.labels)))
        scale, offset = torch.stack(tables, dim=1).view(2, self.shape[0], 1, self.shape[1], -1).to(self.data.device)
        return scale, offset

    def _logits(self, images: EvaluationInputs) -> Iterator[tuple[Tensor, Tensor]]:
        """Logits `[S, B, T, K]` (view average, adjusted) and labels `[B]`, in batches of at most `LOGIT_BYTES`."""
        affine = self._affine()
        seeds, lanes = self.shape
        limit = LOGIT_BYTES[torch.device(self.data.device).type]
        values = self.method.head.num_activations(self.data.bank.num_classes, self.data.bank.feature_dim)
        at_once = max(1, limit // (4 * seeds * lanes * values))
        for start in range(0, len(images.labels), at_once):
            views = images.inputs[:, start : start + at_once]
            heads = seeds if self.method.trains else 1
            logits = self.head.logits(views[0].expand(heads, -1, -1))
            for view in views[1:]:
                logits += self.head.logits(view.expand(heads, -1, -1))
            if len(views) > 1:
                logits /= len(views)
            if affine is not None:
                logits = logits * affine[0] + affine[1]
            yield logits.expand(seeds, -1, lanes, -1), images.labels[start : start + at_once]

    def _count_correct(self, images: EvaluationInputs, statistics: LogitStatistics | None) -> Tensor:
        """Number of correct images by true class, `[S, T, K]`; also updates `statistics` with all logits."""
        correct_STK = torch.zeros(*self.shape, self.data.bank.num_classes, device=self.data.device)
        for logits_SBTK, labels_B in self._logits(images):
            hit_SBT = top1_correct(logits_SBTK, labels_B.unsqueeze(-1))
            correct_STK.transpose(1, 2).index_add_(1, labels_B, hit_SBT.to(correct_STK.dtype))
            if statistics is not None:
                statistics.update(logits_SBTK.transpose(0, 1), labels_B)
        return correct_STK

    def _metrics(self, metrics: Sequence[MetricSpec], images: EvaluationInputs) -> Array:
        """The values of metrics, `[S, T, M]`, in passes over the images of as many lanes as `METRIC_BYTES` allows."""
        (seeds, lanes), number, classes = self.shape, len(images.labels), self.data.bank.num_classes
        found_STM = np.empty((seeds, lanes, len(metrics)), dtype=np.float32)
        at_once = max(1, METRIC_BYTES[torch.device(self.data.device).type] // (4 * seeds * number * classes))
        for start in range(0, lanes, at_once):
            width, done = min(at_once, lanes - start), 0
            logits_STNK = torch.empty(seeds, width, number, classes, device=self.data.device)
            for logits_SBTK, labels_B in self._logits(images):
                part = logits_SBTK[:, :, start : start + width]
                logits_STNK[:, :, done : done + len(labels_B)] = part.transpose(1, 2)
                done += len(labels_B)
            for s, t in np.ndindex(seeds, width):
                logits_NK = logits_STNK[s, t]
                found_STM[s, start + t] = evaluate(metrics, logits_NK, images.labels, self.data.class_counts)
        return found_STM

    def _statistics(self) -> LogitStatistics:
        return LogitStatistics(self.data.bank.num_classes, self.shape, device=self.data.device)


SHARE_OF_DEVICE = 0.6
"""Largest share of the device's free memory that training features may take; a larger bank stays on the host."""


@dataclass(frozen=True)
class EvaluationInputs:
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
        self._images: dict[str, dict[str, EvaluationInputs]] = {}
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

    def images(self, head: HeadSpec) -> dict[str, EvaluationInputs]:
        """The evaluation sets as this kind of head reads them: `test`, and `val` if the bank has one."""
        # A head's inputs do not depend on its lane values.
        key = fingerprint(static_fields(head))
        if key not in self._images:
            sets = {"test": self.bank.test} if self.bank.val is None else {"val": self.bank.val, "test": self.bank.test}
            self._images[key] = {name: self._read(images, head) for name, images in sets.items()}
        return self._images[key]

    def _read(self, images: EvalSet, head: HeadSpec) -> EvaluationInputs:
        labels = images.labels.to(self.device)
        views = [head.inputs(view.to(self.device).float(), self.start) for view in images.features]
        if head.affine and len(views) > 1:
            views = [torch.stack(views).mean(dim=0)]
        return EvaluationInputs(torch.stack(views), labels, torch.bincount(labels, minlength=self.bank.num_classes))
