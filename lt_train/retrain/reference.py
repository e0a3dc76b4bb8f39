"""The oracle: one run at a time, written as anyone would write it with torch.nn and torch.optim.

It is slow on purpose and shares with the fused engine only what defines a run (batch order, starting head, the
method's loss) and what measures it. Change it only to make it plainer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lt_train.core.lanes import part_of
from lt_train.features.bank import EvalSet, FeatureBank
from lt_train.methods.base import MethodSpec, TrainedMethod
from lt_train.methods.post_hoc.base import Adjusted
from lt_train.metrics.accuracy import SPLITS, LogitStatistics, correct_per_class, split_accuracy, split_masks
from lt_train.retrain.base import (
    EpochSelection,
    Halving,
    Run,
    RunResult,
    SelectedHead,
    check_runs,
    diverged,
    overflowed,
    score_column,
    start_head,
)
from lt_train.retrain.halving import Trials

__all__ = ["fit", "measure"]


def fit(
    bank: FeatureBank,
    runs: Sequence[Run],
    device: str = "cpu",
    rule: EpochSelection | None = None,
    halving: Halving | None = None,
) -> list[RunResult]:
    """Train every run on its own; results in the order of `runs`. See `retrain.base.Engine`.

    A run that is halved away is trained to its end and then cut short: the oracle is plain, not frugal.
    """
    rule = rule or EpochSelection()
    check_runs(bank, runs, rule, halving)
    lengths: list[int | None] = [None] * len(runs)
    if halving is not None:
        whole = [_fit_one(bank, run, device, rule) for run in runs]
        lengths = Trials(runs, rule, halving).lengths(whole)
    return [_fit_one(bank, run, device, rule, length) for run, length in zip(runs, lengths, strict=True)]


def _fit_one(bank: FeatureBank, run: Run, device: str, rule: EpochSelection, stop: int | None = None) -> RunResult:
    method = run.method
    head = method.head.module(start_head(bank, run)).to(device)
    record = _Record(bank, rule, method)
    if not isinstance(method, TrainedMethod):
        return record.result(None if record.add(head, train_loss=float("nan")) else overflowed())

    lanes = {name: torch.tensor(value, device=device) for name, value in method.lane_values().items()}
    loss_of = method.loss(lanes, bank.class_counts.to(device))
    optimizer = torch.optim.SGD(head.parameters(), method.lr, method.momentum, weight_decay=method.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=run.training.epochs)
    views, num_images = bank.train_features.shape[:2]
    for epoch in range(run.training.epochs if stop is None else stop):
        total = 0.0
        order = method.sampler.order(bank.train_labels, run.seed, epoch)
        for batch in order.split(run.training.batch_size):
            features = bank.train_features[epoch % views, batch].to(device).float()
            labels = bank.train_labels[batch].to(device)
            loss = loss_of(head(features), labels).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if method.constraint is not None and method.constraint.every == "step":
                _project(head, method, bank, lanes)
            total += loss.item() * len(batch)
        if method.constraint is not None and method.constraint.every == "epoch":
            _project(head, method, bank, lanes)
        schedule.step()
        if not np.isfinite(total) or not all(parameter.isfinite().all() for parameter in head.parameters()):
            return record.result(failure=diverged(epoch))
        if not record.add(head, total / num_images):
            return record.result(failure=overflowed())
    return record.result(stopped=stop)


@torch.no_grad()
def _project(head: nn.Module, method: TrainedMethod, bank: FeatureBank, lanes: dict[str, Tensor]) -> None:
    assert method.constraint is not None, "called where there is a constraint"
    assert bank.head is not None, "a constraint on a bank without a stage-1 head is refused"
    rows = head.get_parameter("weight")
    start_norms = bank.head[0].norm(dim=-1).to(rows.device)
    method.constraint.project_(rows, -1, start_norms, part_of(lanes, "constraint"))


class _Record:
    """What is measured after each epoch, and the head of the epoch that counts."""

    def __init__(self, bank: FeatureBank, rule: EpochSelection, method: MethodSpec) -> None:
        self.bank, self.rule, self.method = bank, rule, method
        self.masks = split_masks(bank.split_counts)
        self.val: list[Tensor] = []
        self.test: list[Tensor] = []
        self.loss: list[float] = []
        self.kept: tuple[int, dict[str, Tensor]] | None = None
        self.score = -1.0

    def add(self, head: nn.Module, train_loss: float) -> bool:
        """Take note of an epoch; False, and nothing noted, where the post-hoc adjustment is not finite."""
        classifier = self._adjusted(head)
        if isinstance(classifier, Adjusted) and not all(table.isfinite().all() for table in classifier.buffers(False)):
            return False
        self.loss.append(train_loss)
        self.test.append(self._accuracy(classifier, self.bank.test, "micro"))
        if self.bank.val is not None:
            self.val.append(self._accuracy(classifier, self.bank.val, "macro"))
        score = 0.0
        if self.rule.epoch == "best":
            judged = self.val if self.rule.on == "val" else self.test
            score = float(judged[-1][score_column(self.rule)])
        if score >= self.score:
            self.score = score
            state = {name: tensor.detach().cpu().clone() for name, tensor in classifier.state_dict().items()}
            self.kept = (len(self.loss) - 1, state)
        return True

    def result(self, failure: str | None = None, stopped: int | None = None) -> RunResult:
        return RunResult(
            val_accuracy=None if self.bank.val is None else _rows(self.val),
            test_accuracy=_rows(self.test),
            train_loss=np.array(self.loss, dtype=np.float32),
            kept=None if failure else self._kept(),
            failure=failure,
            stopped=None if failure else stopped,
        )

    @torch.no_grad()
    def _adjusted(self, head: nn.Module) -> nn.Module:
        """The head with its post-hoc adjustment, if it has one."""
        adjustment = self.method.post_hoc
        if adjustment is None:
            return head
        lanes = {name: torch.tensor(value) for name, value in part_of(self.method.lane_values(), "post_hoc").items()}
        norms = bias = None
        if adjustment.needs_rows:
            norms, bias = head.get_parameter("weight").norm(dim=-1).cpu(), head.get_parameter("bias").cpu()
        scale, offset = adjustment.affine(lanes, self.bank.class_counts, norms, bias)
        device = next(head.parameters()).device
        return Adjusted(head, scale.to(device), offset.to(device))

    def _accuracy(self, classifier: nn.Module, images: EvalSet, average: Literal["micro", "macro"]) -> Tensor:
        classes = self.bank.num_classes
        total = torch.bincount(images.labels, minlength=classes)
        correct = correct_per_class(_logits(classifier, images), images.labels, classes)
        return split_accuracy(correct, total, self.masks, average)

    def _kept(self) -> SelectedHead:
        assert self.kept is not None, "a run that did not fail has recorded at least one epoch"
        epoch, state = self.kept
        return measure(self.bank, self.method.classifier(state), epoch)


def measure(bank: FeatureBank, classifier: nn.Module, epoch: int = 0) -> SelectedHead:
    """What a classifier `[..., D] -> [..., K]` does on a bank's test set; its logits are averaged over test views."""
    labels, classes = bank.test.labels, bank.num_classes
    logits = _logits(classifier, bank.test)
    statistics = LogitStatistics(classes).update(logits, labels)
    return SelectedHead(
        epoch=epoch,
        class_accuracy=(correct_per_class(logits, labels, classes) / statistics.count).float().numpy(),
        loma=statistics.loma().float().numpy(),
        regularised_std=statistics.regularised_std().float().numpy(),
        state={name: tensor.cpu().numpy() for name, tensor in classifier.state_dict().items()},
    )


@torch.no_grad()
def _logits(classifier: nn.Module, images: EvalSet) -> Tensor:
    """Logits `[N, K]`, averaged over the test views, on the CPU."""
    device = next(iter(classifier.state_dict().values())).device
    logits: Tensor = classifier(images.features.to(device).float()).mean(dim=0)
    return logits.cpu()


def _rows(rows: list[Tensor]) -> NDArray[np.float32]:
    return torch.stack(rows).numpy() if rows else np.empty((0, len(SPLITS)), dtype=np.float32)
