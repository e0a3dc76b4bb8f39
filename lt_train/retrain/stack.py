"""One stack of the fused engine: S x T runs of one method in one set of tensors, trained an epoch at a time.

The loss is differentiated on the logits only, the head's own gradients are written by hand, the momentum is folded
into their matrix product and the learning rate into the loss's gradient, so that a step passes over the weights as
seldom as possible. Which runs are stacked, and when they stop, is `retrain.fused`'s business.

Shapes: S seeds, B batch, T lanes, K classes, D features, N images, I inputs of a head, R x C one parameter of a lane.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from lt_train.core.lanes import part_of
from lt_train.methods.base import TrainedMethod
from lt_train.metrics.accuracy import LogitStatistics, split_accuracy, top1_correct
from lt_train.retrain.base import Array, Run, learning_rate_factor, start_head
from lt_train.retrain.device_bank import DeviceBank, Images

__all__ = ["Measured", "Stack"]

LOGIT_BYTES = {"cpu": 2**22, "cuda": 2**28}
"""Logits that one evaluation step may hold; on a CPU they should stay in the cache until they are counted."""

Affine = tuple[Tensor, Tensor]


class Measured:
    """What a stack's heads do on the test set: `class_accuracy`, `loma` and `regularised_std`, each `[S, T, K]`."""

    def __init__(self, statistics: LogitStatistics, correct_STK: Tensor) -> None:
        self.class_accuracy = (correct_STK / statistics.count).float().cpu().numpy()
        self.loma = statistics.loma().float().cpu().numpy()
        self.regularised_std = statistics.regularised_std().float().cpu().numpy()


class Stack:
    """S x T runs that agree on everything static, given by their places in the list of all runs.

    Heads that are not trained are all the stage-1 classifier: one head, T adjustments of its logits, and one "epoch"
    that changes nothing.

    Attributes:
        finished, epochs: epochs trained so far, and in all.
        finite_ST: bool; False for a lane whose loss or weights are not finite any more.
        readable_ST: bool; False for a lane whose post-hoc adjustment is not finite.
    """

    def __init__(self, data: DeviceBank, runs: Sequence[Run], places_ST: Sequence[Sequence[int]]) -> None:
        self.data, self.places_ST = data, places_ST
        self.runs_ST = [[runs[place] for place in row] for row in places_ST]
        one = self.runs_ST[0][0]
        self.method, self.training = one.method, one.training
        self.shape = len(places_ST), len(places_ST[0])
        self.lanes = self._lane_tensors()
        self.images = data.images(self.method.head)
        heads = self.runs_ST if self.method.trains else [[one]]
        modules = [[self.method.head.module(start_head(data.bank, run)) for run in row] for row in heads]
        self.head = self.method.head.stack(modules, part_of(self.lanes, "head"), data.device)
        self.velocity = {name: torch.zeros_like(tensor) for name, tensor in self.head.parameters.items()}
        self.finite_ST = torch.ones(self.shape, dtype=torch.bool, device=data.device)
        self.readable_ST = torch.ones_like(self.finite_ST)
        self.finished, self.epochs = 0, self.training.epochs if self.method.trains else 1
        self._kept: dict[str, Tensor] = {}
        self._measured: Measured | None = None
        self._one_state: dict[str, Tensor] = {}
        self._rate_factor = 1.0
        if isinstance(self.method, TrainedMethod):
            self.loss = self.method.loss(self.lanes, data.class_counts)
            momentum, self._decays = self.lanes["momentum"], bool(self.lanes["weight_decay"].any())
            # Asked once, not once a step: on a CUDA device each of these questions is a synchronisation.
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
        """One pass over the training set; returns the mean loss of every lane, `[S, T]`: NaN if nothing is trained."""
        epoch, self.finished = self.finished, self.finished + 1
        if not isinstance(self.method, TrainedMethod):
            self._note_unreadable()
            return torch.full(self.shape, torch.nan, device=self.data.device)
        sampler, constraint = self.method.sampler, self.method.constraint
        orders = [self.data.order(sampler, row[0].seed, epoch) for row in self.runs_ST]
        rate_S1T = self._start_epoch(epoch)
        decay = (rate_S1T * self.lanes["weight_decay"]).unsqueeze(-1) if self._decays else None
        loss_ST = torch.zeros(self.shape, device=self.data.device)
        for features_SBD, labels_SB1 in self.data.batches(epoch, torch.stack(orders), self.training.batch_size):
            inputs_SBI = self.method.head.inputs(features_SBD, self.data.start)
            logits_SBTK = self.head.logits(inputs_SBI)
            loss_SBT, grad_SBTK = self.loss.with_gradient(logits_SBTK, labels_SB1, rate_S1T / labels_SB1.shape[1])
            self._step(inputs_SBI, logits_SBTK, grad_SBTK, decay)
            loss_ST += loss_SBT.sum(dim=1)
            if constraint is not None and constraint.every == "step":
                self._project()
        if constraint is not None and constraint.every == "epoch":
            self._project()
        loss_ST /= len(self.data.labels_N)
        self._note_failures(loss_ST)
        self._note_unreadable()
        return loss_ST

    def _start_epoch(self, epoch: int) -> Tensor:
        """The learning rates of this epoch, `[S, 1, T]`.

        `velocity` is torch.optim.SGD's, times the learning rate: `u = m u + lr (g + wd w); w -= u`. When the rate
        changes, it is re-scaled.
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
        assert self.method.constraint is not None, "called where there is a constraint"
        lanes = part_of(self.lanes, "constraint")
        self.method.constraint.project_(self.head.parameters["weight"], 1, self.data.start_norms_K, lanes)

    def _note_failures(self, loss_ST: Tensor) -> None:
        self.finite_ST = self.finite_ST & loss_ST.isfinite()
        for parameter in self.head.parameters.values():
            # A finite sum proves that all is finite, many times faster; an overflowing one proves nothing.
            finite_ST = parameter.sum(dim=(1, 3)).isfinite()
            if not bool(finite_ST.all()):
                finite_ST = parameter.isfinite().all(dim=-1).all(dim=1)
            self.finite_ST = self.finite_ST & finite_ST

    def _note_unreadable(self) -> None:
        for table in self._affine() or ():
            finite = table.isfinite().all(dim=-1).view(-1, self.shape[1] if table.ndim == 4 else 1)
            self.readable_ST = self.readable_ST & finite

    @torch.no_grad()
    def accuracy(self, *, these_count: bool = False) -> dict[str, Array]:
        """Accuracy by split, `[S, T, 4]`: on `val`, if there is one, the mean over classes, on `test` top-1.

        Args:
            these_count: the heads as they are now are the ones that count, so that `measure`, called next, need not
                look at the test set again.
        """
        found: dict[str, Array] = {}
        for name, images in self.images.items():
            statistics = self._statistics() if these_count and name == "test" else None
            correct_STK = self._seen(images, statistics)
            if statistics is not None:
                self._measured = Measured(statistics, correct_STK)
            average: Literal["macro", "micro"] = "macro" if name == "val" else "micro"
            found[name] = split_accuracy(correct_STK, images.totals, self.data.masks, average).cpu().numpy()
        return found

    @torch.no_grad()
    def keep(self, better_ST: Tensor) -> None:
        """Take the heads of these lanes, as they are now, for the ones that count; by default the last ones do."""
        if not self._kept:
            self._kept = {name: parameter.clone() for name, parameter in self.head.parameters.items()}
        for name, kept in self._kept.items():
            kept.copy_(torch.where(better_ST[:, None, :, None], self.head.parameters[name], kept))

    @torch.no_grad()
    def take_over(self, old: Mapping[int, tuple[Stack, int, int]]) -> None:
        """Go on where other stacks were: `old` has for every place the stack it was in, its seed and its lane."""
        for s, row in enumerate(self.places_ST):
            for t, place in enumerate(row):
                stack, s0, t0 = old[place]
                if stack._kept and not self._kept:
                    self._kept = {name: torch.empty_like(tensor) for name, tensor in self.head.parameters.items()}
                for mine, theirs in (
                    (self.head.parameters, stack.head.parameters),
                    (self.velocity, stack.velocity),
                    (self._kept, stack._kept),
                ):
                    for name, tensor in mine.items():
                        tensor[s, :, t] = theirs[name][s0, :, t0]
                self.finite_ST[s, t] = stack.finite_ST[s0, t0]
                self._rate_factor, self.finished = stack._rate_factor, stack.finished

    @torch.no_grad()
    def measure(self) -> Measured:
        """LoMa, regularised std and per-class accuracy on the test set of the heads that count; ends the training."""
        if self._measured is None:
            self.head.parameters.update(self._kept)
            statistics = self._statistics()
            self._measured = Measured(statistics, self._seen(self.images["test"], statistics))
        return self._measured

    def state(self, seed: int, lane: int) -> dict[str, Tensor]:
        """One lane's classifier as `MethodSpec.classifier` takes it; a head that is not trained is the same tensors."""
        if self.method.trains:
            state = self.head.state(seed, lane)
        else:
            state = self._one_state = self._one_state or self.head.state(0, 0)
        affine = self._affine()
        if affine is None:
            return state
        scale, offset = (
            tensor.expand(*self.shape, -1)[seed, lane].cpu().clone() for tensor in map(_drop_batch, affine)
        )
        return {**{f"head.{name}": tensor for name, tensor in state.items()}, "scale": scale, "offset": offset}

    def _affine(self) -> Affine | None:
        """Scale and offset of the post-hoc adjustment, each `[S, 1, T, K]`, or None."""
        adjustment = self.method.post_hoc
        if adjustment is None:
            return None
        lanes = {name: value.unsqueeze(-1) for name, value in part_of(self.lanes, "post_hoc").items()}
        norms, bias = self.head.row_norms() if adjustment.needs_rows else (None, None)
        return adjustment.affine(lanes, self.data.class_counts, norms, bias)

    def _logits(self, images: Images) -> Iterator[tuple[Tensor, Tensor]]:
        """Logits `[S, B, T, K]`, averaged over views and adjusted, and labels `[B]`; a bounded number at a time."""
        affine = self._affine()
        seeds, lanes = self.shape
        limit = LOGIT_BYTES[torch.device(self.data.device).type]
        at_once = max(1, limit // (4 * seeds * lanes * self.data.bank.num_classes))
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

    def _seen(self, images: Images, statistics: LogitStatistics | None) -> Tensor:
        """Right answers `[S, T, K]` by true class; every logit goes into `statistics` too."""
        correct_STK = torch.zeros(*self.shape, self.data.bank.num_classes, device=self.data.device)
        for logits_SBTK, labels_B in self._logits(images):
            right_SBT = top1_correct(logits_SBTK, labels_B.unsqueeze(-1))
            correct_STK.transpose(1, 2).index_add_(1, labels_B, right_SBT.to(correct_STK.dtype))
            if statistics is not None:
                statistics.update(logits_SBTK.transpose(0, 1), labels_B)
        return correct_STK

    def _statistics(self) -> LogitStatistics:
        return LogitStatistics(self.data.bank.num_classes, self.shape, device=self.data.device)


def _drop_batch(tensor: Tensor) -> Tensor:
    """`[S, 1, T, K]` (or anything that broadcasts to it) without its batch axis."""
    return tensor.squeeze(1) if tensor.ndim == 4 else tensor
