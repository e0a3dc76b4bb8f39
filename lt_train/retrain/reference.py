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

from lt_train.features.bank import EvalSet, FeatureBank
from lt_train.methods.base import TrainedMethod
from lt_train.metrics import SPLITS, LogitStatistics, correct_per_class, split_accuracy, split_masks
from lt_train.retrain.base import (
    EpochRule,
    KeptHead,
    Run,
    RunResult,
    check_runs,
    diverged,
    epoch_order,
    score_column,
    start_head,
)

__all__ = ["fit"]


def fit(bank: FeatureBank, runs: Sequence[Run], device: str = "cpu", rule: EpochRule | None = None) -> list[RunResult]:
    """Train every run on its own; results in the order of `runs`. See `retrain.base.Engine`."""
    rule = rule or EpochRule()
    check_runs(bank, runs, rule)
    return [_fit_one(bank, run, device, rule) for run in runs]


def _fit_one(bank: FeatureBank, run: Run, device: str, rule: EpochRule) -> RunResult:
    head = _empty_head(bank, device)
    with torch.no_grad():
        for parameter, start in zip((head.weight, head.bias), start_head(bank, run), strict=True):
            parameter.copy_(start)
    record = _Record(bank, rule)
    if not isinstance(run.method, TrainedMethod):
        record.add(head, train_loss=float("nan"))
        return record.result()

    method = run.method
    lanes = {name: torch.tensor(getattr(method, name), device=device) for name in method.lane_fields()}
    optimizer = torch.optim.SGD(head.parameters(), method.lr, method.momentum, weight_decay=method.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=run.training.epochs)
    views, num_images = bank.train_features.shape[:2]
    for epoch in range(run.training.epochs):
        total = 0.0
        for batch in epoch_order(num_images, run.seed, epoch).split(run.training.batch_size):
            features = bank.train_features[epoch % views, batch].to(device)
            labels = bank.train_labels[batch].to(device)
            loss = method.loss(head(features), labels, lanes).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(batch)
        schedule.step()
        if not np.isfinite(total) or not all(parameter.isfinite().all() for parameter in head.parameters()):
            return record.result(failure=diverged(epoch))
        record.add(head, total / num_images)
    return record.result()


class _Record:
    """What is measured after each epoch, and the head of the epoch that counts."""

    def __init__(self, bank: FeatureBank, rule: EpochRule) -> None:
        self.bank, self.rule = bank, rule
        self.masks = split_masks(bank.split_counts)
        self.val: list[Tensor] = []
        self.test: list[Tensor] = []
        self.loss: list[float] = []
        self.kept: tuple[int, Tensor, Tensor] | None = None
        self.score = -1.0

    def add(self, head: nn.Linear, train_loss: float) -> None:
        self.loss.append(train_loss)
        self.test.append(self._accuracy(head, self.bank.test, "micro"))
        if self.bank.val is not None:
            self.val.append(self._accuracy(head, self.bank.val, "macro"))
        score = 0.0
        if self.rule.epoch == "best":
            judged = self.val if self.rule.on == "val" else self.test
            score = float(judged[-1][score_column(self.rule)])
        if score >= self.score:
            self.score = score
            self.kept = (len(self.loss) - 1, head.weight.detach().clone(), head.bias.detach().clone())

    def result(self, failure: str | None = None) -> RunResult:
        return RunResult(
            val_accuracy=None if self.bank.val is None else _rows(self.val),
            test_accuracy=_rows(self.test),
            train_loss=np.array(self.loss, dtype=np.float32),
            kept=None if failure else self._measure(),
            failure=failure,
        )

    def _accuracy(self, head: nn.Linear, images: EvalSet, average: Literal["micro", "macro"]) -> Tensor:
        classes = self.bank.num_classes
        total = torch.bincount(images.labels, minlength=classes)
        correct = correct_per_class(_logits(head, images), images.labels, classes)
        return split_accuracy(correct, total, self.masks, average)

    def _measure(self) -> KeptHead:
        assert self.kept is not None, "a run that did not fail has recorded at least one epoch"
        epoch, weight, bias = self.kept
        head = _empty_head(self.bank, weight.device)
        head.load_state_dict({"weight": weight, "bias": bias})
        labels, classes = self.bank.test.labels, self.bank.num_classes
        logits = _logits(head, self.bank.test)
        statistics = LogitStatistics(classes).update(logits, labels)
        return KeptHead(
            epoch=epoch,
            class_accuracy=(correct_per_class(logits, labels, classes) / statistics.count).float().numpy(),
            loma=statistics.loma().float().numpy(),
            regularised_std=statistics.regularised_std().float().numpy(),
            weight=weight.cpu().numpy(),
            bias=bias.cpu().numpy(),
        )


def _empty_head(bank: FeatureBank, device: str | torch.device) -> nn.Linear:
    """A head whose values are still to be set: torch's own start would draw from the global generator."""
    head: nn.Linear = nn.utils.skip_init(nn.Linear, bank.feature_dim, bank.num_classes, device=device)
    return head


@torch.no_grad()
def _logits(head: nn.Linear, images: EvalSet) -> Tensor:
    """Logits `[N, K]`, averaged over the test views, on the CPU."""
    logits: Tensor = head(images.features.to(head.weight.device)).mean(dim=0)
    return logits.cpu()


def _rows(rows: list[Tensor]) -> NDArray[np.float32]:
    return torch.stack(rows).numpy() if rows else np.empty((0, len(SPLITS)), dtype=np.float32)
