"""The product: many runs in one loop. Lanes that share a seed share mini-batches and one matrix product a step.

Runs are sorted into stacks (equal method and training, equal number of lanes a seed, weights that stay in cache);
a stack trains as `W[S, D, T*K]` with every hyperparameter a tensor along the lane axis. The loss is differentiated
by autograd on the logits only; the head's own gradients are written by hand, the momentum folded into the product.
A lane's result does not depend on its neighbours beyond the rounding of a matrix product of another width.

Shapes: S seeds, B batch, T lanes, K classes, D features, N images, V views, E epochs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from lt_train.features.bank import EvalSet, FeatureBank
from lt_train.heads.linear import LinearHead
from lt_train.methods.base import TrainedMethod
from lt_train.metrics import LogitStatistics, correct_per_class, split_accuracy, split_masks
from lt_train.retrain.base import (
    EpochRule,
    KeptHead,
    Run,
    RunResult,
    check_runs,
    diverged,
    epoch_order,
    learning_rate_factor,
    score_column,
    start_head,
)

__all__ = ["fit"]

STACK_BYTES = {"cpu": 2**21, "cuda": 2**32}
"""Weights of one stack: on a CPU they and their momentum should stay in the second-level cache."""

LOGIT_BYTES = 2**25
"""Logits that one evaluation step may hold."""


def fit(bank: FeatureBank, runs: Sequence[Run], device: str = "cpu", rule: EpochRule | None = None) -> list[RunResult]:
    """Train all runs together; results in the order of `runs`. See `retrain.base.Engine`.

    Agrees with `retrain.reference.fit` to 1e-4 relative in the weights. A lane that diverges is reported as failed
    and leaves the others untouched.

    Raises:
        BankError: a run needs a head, a split or a validation set that the bank does not have.
    """
    rule = rule or EpochRule()
    check_runs(bank, runs, rule)
    data = _DeviceBank(bank, device)
    results: dict[int, RunResult] = {}
    for places_ST in _stacks(runs, bank, device):
        stack = _Stack(data, [[runs[place] for place in lanes] for lanes in places_ST], rule)
        stack.train()
        for place, result in zip(np.ravel(places_ST), stack.results(), strict=True):
            results[int(place)] = result
    return [results[place] for place in range(len(runs))]


def _stacks(runs: Sequence[Run], bank: FeatureBank, device: str) -> Iterator[list[list[int]]]:
    """Places of runs, by seed and lane, a rectangle at a time: equal static fields, weights within STACK_BYTES."""
    groups: dict[str, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for place, run in enumerate(runs):
        groups[run.static_key()][run.seed].append(place)
    lane_bytes = 4 * bank.num_classes * bank.feature_dim
    most = max(1, STACK_BYTES[torch.device(device).type] // lane_bytes)
    for by_seed in groups.values():
        by_width: dict[int, list[list[int]]] = defaultdict(list)
        for places in by_seed.values():
            for start in range(0, len(places), most):
                chunk = places[start : start + most]
                by_width[len(chunk)].append(chunk)
        for width, rows in by_width.items():
            seeds = max(1, most // width)
            for start in range(0, len(rows), seeds):
                yield rows[start : start + seeds]


class _DeviceBank:
    """A bank as the loop wants it: on the device, test views already averaged, totals counted."""

    def __init__(self, bank: FeatureBank, device: str) -> None:
        self.bank, self.device = bank, device
        self.features_VND = bank.train_features.to(device)
        self.labels_N = bank.train_labels.to(device)
        self.masks = split_masks(bank.split_counts).to(device)
        self.val = None if bank.val is None else self._images(bank.val)
        self.test = self._images(bank.test)

    def _images(self, images: EvalSet) -> tuple[Tensor, Tensor, Tensor]:
        """Features `[N, D]`, labels `[N]`, images a class `[K]`."""
        features = LinearHead.evaluation_features(images.features.to(self.device))
        labels = images.labels.to(self.device)
        return features, labels, torch.bincount(labels, minlength=self.bank.num_classes)


class _Stack:
    """S x T runs of one method trained together, and everything measured on the way."""

    def __init__(self, data: _DeviceBank, runs_ST: list[list[Run]], rule: EpochRule) -> None:
        self.data, self.runs_ST, self.rule = data, runs_ST, rule
        self.head = LinearHead.stack([[start_head(data.bank, run) for run in lanes] for lanes in runs_ST], data.device)
        shape = (len(runs_ST), len(runs_ST[0]))
        self.val_EST4: list[Tensor] = []
        self.test_EST4: list[Tensor] = []
        self.loss_EST: list[Tensor] = []
        self.failed_ST = torch.full(shape, -1, device=data.device)
        self.kept_ST = torch.full(shape, -1, device=data.device)
        self.score_ST = torch.full(shape, -1.0, device=data.device)
        self.kept_parameters = {name: tensor.clone() for name, tensor in self.head.parameters.items()}

    @torch.no_grad()
    def train(self) -> None:
        method, training = self.runs_ST[0][0].method, self.runs_ST[0][0].training
        if not isinstance(method, TrainedMethod):
            self._record(torch.full_like(self.score_ST, torch.nan))
            return
        lanes = {name: self._lane_tensor(name) for name in method.lane_fields()}
        optimizer = _StackedSGD(self.head, lanes)
        for epoch in range(training.epochs):
            optimizer.rate = lanes["lr"].unsqueeze(-1) * learning_rate_factor(epoch, training.epochs)
            loss_ST = self._epoch(epoch, type(method), lanes, optimizer)
            self._mark_failures(epoch, loss_ST)
            self._record(loss_ST)

    def _lane_tensor(self, name: str) -> Tensor:
        """One hyperparameter of every lane, `[S, 1, T]`."""
        values = [[getattr(run.method, name) for run in lanes] for lanes in self.runs_ST]
        return torch.tensor(values, device=self.data.device).unsqueeze(1)

    def _epoch(
        self, epoch: int, method: type[TrainedMethod], lanes: dict[str, Tensor], optimizer: _StackedSGD
    ) -> Tensor:
        """One pass over the training set; returns the mean loss of every lane, `[S, T]`."""
        views, num_images = self.data.features_VND.shape[:2]
        features_ND = self.data.features_VND[epoch % views]
        order_SN = torch.stack([epoch_order(num_images, lanes_[0].seed, epoch) for lanes_ in self.runs_ST])
        batch_size = self.runs_ST[0][0].training.batch_size
        loss_ST = torch.zeros_like(self.score_ST)
        for batch_SB in order_SN.to(self.data.device).split(batch_size, 1):
            features_SBD = features_ND[batch_SB]
            labels_SB1 = self.data.labels_N[batch_SB].unsqueeze(-1)
            logits_SBTK = self.head.logits(features_SBD).requires_grad_()
            with torch.enable_grad():
                loss_SBT = method.loss(logits_SBTK, labels_SB1, lanes)
                (grad_SBTK,) = torch.autograd.grad(loss_SBT.sum(), logits_SBTK)
            optimizer.step(features_SBD, grad_SBTK)
            loss_ST += loss_SBT.detach().sum(dim=1)
        return loss_ST / num_images

    def _mark_failures(self, epoch: int, loss_ST: Tensor) -> None:
        sound = loss_ST.isfinite()
        for parameter in self.head.parameters.values():
            sound &= parameter.isfinite().all(dim=-1).all(dim=1)
        self.failed_ST = torch.where((self.failed_ST < 0) & ~sound, epoch, self.failed_ST)

    def _record(self, loss_ST: Tensor) -> None:
        """Measure the heads as they are now and keep those of the best epoch so far."""
        data = self.data
        self.loss_EST.append(loss_ST)
        self.test_EST4.append(split_accuracy(self._correct(data.test), data.test[2], data.masks, "micro"))
        if data.val is not None:
            self.val_EST4.append(split_accuracy(self._correct(data.val), data.val[2], data.masks, "macro"))
        score_ST = torch.zeros_like(self.score_ST)
        if self.rule.epoch == "best":
            judged = self.val_EST4 if self.rule.on == "val" else self.test_EST4
            score_ST = judged[-1][..., score_column(self.rule)]
        better = score_ST >= self.score_ST
        self.score_ST = torch.where(better, score_ST, self.score_ST)
        self.kept_ST = torch.where(better, len(self.loss_EST) - 1, self.kept_ST)
        for name, kept in self.kept_parameters.items():
            kept.copy_(torch.where(better[:, None, :, None], self.head.parameters[name], kept))

    def _correct(self, images: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Right predictions by class, `[S, T, K]`."""
        classes = self.data.bank.num_classes
        correct = torch.zeros(*self.score_ST.shape, classes, device=self.data.device)
        for logits_BSTK, labels_B in self._logits(self.head, images):
            correct += correct_per_class(logits_BSTK, labels_B, classes)
        return correct

    def _logits(self, head: LinearHead, images: tuple[Tensor, Tensor, Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Logits `[B, S, T, K]` and labels `[B]`, a bounded number of images at a time."""
        features_ND, labels_N, _ = images
        seeds = self.score_ST.shape[0]
        at_once = max(1, LOGIT_BYTES // (4 * self.score_ST.numel() * self.data.bank.num_classes))
        for features, labels in zip(features_ND.split(at_once), labels_N.split(at_once), strict=True):
            yield head.logits(features.expand(seeds, -1, -1)).transpose(0, 1), labels

    @torch.no_grad()
    def results(self) -> Iterator[RunResult]:
        """One result a run, by seed, then lane."""
        head = LinearHead(self.kept_parameters["weight"], self.kept_parameters["bias"])
        classes = self.data.bank.num_classes
        statistics = LogitStatistics(classes, tuple(self.score_ST.shape), device=self.data.device)
        correct = torch.zeros(*self.score_ST.shape, classes, device=self.data.device)
        for logits, labels in self._logits(head, self.data.test):
            statistics.update(logits, labels)
            correct += correct_per_class(logits, labels, classes)
        class_accuracy = _array(correct / statistics.count)
        loma, regularised_std = _array(statistics.loma()), _array(statistics.regularised_std())
        test, loss = _array(torch.stack(self.test_EST4)), _array(torch.stack(self.loss_EST))
        val = _array(torch.stack(self.val_EST4)) if self.val_EST4 else None
        for s, lanes in enumerate(self.runs_ST):
            for t in range(len(lanes)):
                failed = int(self.failed_ST[s, t])
                end = len(loss) if failed < 0 else failed
                weight, bias = head.unstack(s, t)
                kept = KeptHead(
                    epoch=int(self.kept_ST[s, t]),
                    class_accuracy=class_accuracy[s, t],
                    loma=loma[s, t],
                    regularised_std=regularised_std[s, t],
                    weight=weight.numpy(),
                    bias=bias.numpy(),
                )
                yield RunResult(
                    val_accuracy=None if val is None else val[:end, s, t],
                    test_accuracy=test[:end, s, t],
                    train_loss=loss[:end, s, t],
                    kept=kept if failed < 0 else None,
                    failure=None if failed < 0 else diverged(failed),
                )


class _StackedSGD:
    """torch.optim.SGD over stacked lanes: v = m v + g + wd w; w -= lr v, every lane with its own m, wd and lr."""

    def __init__(self, head: LinearHead, lanes: dict[str, Tensor]) -> None:
        self.head = head
        self.velocity = {name: torch.zeros_like(tensor) for name, tensor in head.parameters.items()}
        self.rate = lanes["lr"].unsqueeze(-1)
        self.momentum = lanes["momentum"].unsqueeze(-1)
        self.weight_decay = lanes["weight_decay"].unsqueeze(-1)
        # Decided once, not once a step: on a CUDA device each of these questions is a synchronisation.
        self.shared_momentum = (
            float(self.momentum.max()) if bool((self.momentum == self.momentum.max()).all()) else None
        )
        self.decays = bool(self.weight_decay.any())

    def step(self, features_SBD: Tensor, grad_SBTK: Tensor) -> None:
        """One step, given the gradient of the batch's summed loss by the logits."""
        keep = self.shared_momentum
        if keep is None:
            keep = 1.0
            for velocity in self.velocity.values():
                velocity.mul_(self.momentum)
        self.head.accumulate(self.velocity, features_SBD, grad_SBTK, keep=keep, scale=1.0 / features_SBD.shape[1])
        for name, parameter in self.head.parameters.items():
            if self.decays:
                self.velocity[name].addcmul_(parameter, self.weight_decay)
            parameter.addcmul_(self.velocity[name], self.rate, value=-1.0)


def _array(tensor: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return tensor.float().cpu().numpy()
