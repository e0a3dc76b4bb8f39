"""Classifier re-training in plain PyTorch, one run at a time. Start reading here.

Stage 1 trained a network on the long-tailed training set. Its backbone is now frozen, and a feature bank holds the
features of all images: for training, V views of every image (random crops and flips); for the test set, A views.
Stage 2, implemented here, re-trains only the classifier on top of these features:

1. **Start.** The head starts from the classifier of stage 1 (`init: checkpoint`, the warm start) or from random weights
   (`init: random`).
2. **Batches.** In every epoch the method's sampler draws an order of the training images, instance-balanced or
   class-balanced, from the run's seed and the epoch alone. Epoch e uses view e mod V of the images. Optionally, the
   method changes the features of a batch.
3. **Loss.** The method's loss is a per-sample function of logits and labels, for example cross entropy with smoothed
   labels (Label Over-Smooth) or with class weights. A step minimises its mean over the batch. Losses from outside may
   also use random numbers, the position of the step, and the other images of the batch.
4. **Optimiser.** SGD with momentum and weight decay. The learning rate follows a cosine from `lr` towards 0, stepped
   after each epoch: lr (1 + cos(pi e / E)) / 2.
5. **Constraint.** Optionally, weight rows are projected after every step or every epoch (MaxNorm).
6. **Evaluation.** After every epoch the logits are averaged over the test views and, optionally, adjusted post hoc:
   scale_k z_k + offset_k (tau-normalisation, logit adjustment). Accuracy is reported for all, many, medium and few
   classes; on the validation set as the mean of per-class accuracies, on the test set as top-1. Further metrics
   (`lt_train.metrics`) follow.
7. **Selected epoch.** The result is the head of the last epoch, or of the best one by validation or test accuracy
   (`EpochSelection`; of equal epochs the later one counts). It carries per-class test accuracy and the paper's logit
   statistics.

A method is thus a head, a loss, a sampler, a constraint and a post-hoc adjustment (`lt_train.methods`). A run whose
loss or weights become infinite or NaN fails, and its curves end before that epoch. A method that trains nothing
evaluates the stage-1 classifier once.

This engine defines what a run is; it is written for clarity, not for speed. `retrain.fused` trains hundreds of runs in
one batched loop and must agree with it for every method, head and sampler; `retrain.stack` is the fast counterpart of
`_fit_one` below. Both engines share the batch order, the starting head, the loss and the metrics, and nothing else.

Shapes: V training views, A test views, N images, B batch, D features, K classes, E epochs, C columns of scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from lt_train.core.fields import part_of
from lt_train.core.seeding import Step
from lt_train.features.bank import EvalSet, FeatureBank
from lt_train.methods.base import MethodSpec, TrainedMethod
from lt_train.methods.heads._modules import Adjusted
from lt_train.methods.post_hoc import FittedPostHoc
from lt_train.metrics import LogitStatistics, correct_per_class, evaluate, split_accuracy, split_masks
from lt_train.retrain.base import (
    Array,
    EpochSelection,
    Halving,
    HalvingTrials,
    Run,
    RunResult,
    SelectedHead,
    check_runs,
    diverged,
    overflowed,
    prepared_runs,
    score_column,
    start_head,
)

__all__ = ["LossOfRun", "fit", "measure"]


def fit(
    bank: FeatureBank,
    runs: Sequence[Run],
    device: str = "cpu",
    rule: EpochSelection | None = None,
    halving: Halving | None = None,
) -> list[RunResult]:
    """Train every run by itself; results in the order of `runs`.

    With `halving`, all runs are first trained completely to find out where each would be stopped.
    """
    rule = rule or EpochSelection()
    check_runs(bank, runs, rule, halving)
    stops: list[int | None] = [None] * len(runs)
    trials = None if halving is None else HalvingTrials(runs, rule, halving)
    runs = prepared_runs(bank, runs)
    if trials is not None:
        complete = [_fit_one(bank, run, device, rule) for run in runs]
        stops = trials.stops(complete)
    return [_fit_one(bank, run, device, rule, stop) for run, stop in zip(runs, stops, strict=True)]


def _fit_one(bank: FeatureBank, run: Run, device: str, rule: EpochSelection, stop: int | None = None) -> RunResult:
    """Train and evaluate one run; with `stop`, only for that many epochs."""
    method = run.method
    head = method.head.module(start_head(bank, run), run.seed).to(device)
    history = _History(bank, method, rule)
    if not isinstance(method, TrainedMethod):
        return history.result(None if history.add(head, train_loss=float("nan")) else overflowed())

    hyperparameters = {name: torch.tensor(value, device=device) for name, value in method.lane_values().items()}
    class_counts = bank.class_counts.to(device)
    loss_function, augment = LossOfRun(method, hyperparameters, class_counts), method.augmentation(class_counts)
    optimizer = torch.optim.SGD(head.parameters(), method.lr, method.momentum, weight_decay=method.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=run.training.epochs)
    views, num_images = bank.train_features.shape[:2]

    for epoch in range(run.training.epochs if stop is None else stop):
        total_loss = 0.0
        order_N = method.sampler.order(bank.train_labels, run.seed, epoch)
        for number, batch_B in enumerate(order_N.split(run.training.batch_size)):
            step = Step(run.seed, epoch, run.training.epochs, number, len(batch_B), device)
            features_BD = bank.train_features[epoch % views, batch_B].to(device).float()
            labels_B = bank.train_labels[batch_B].to(device)
            if augment is not None:
                features_BD = augment(features_BD, labels_B, step)
            loss = loss_function(head(features_BD), labels_B, step).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if method.constraint is not None and method.constraint.every == "step":
                _project(head, method, bank, hyperparameters)
            total_loss += loss.item() * len(batch_B)
        if method.constraint is not None and method.constraint.every == "epoch":
            _project(head, method, bank, hyperparameters)
        schedule.step()

        if not np.isfinite(total_loss) or not all(parameter.isfinite().all() for parameter in head.parameters()):
            return history.result(failure=diverged(epoch))
        if not history.add(head, total_loss / num_images):
            return history.result(failure=overflowed())
    return history.result(stopped=stop)


class LossOfRun:
    """The loss of a method for the batches of one run.

    Args:
        method: the method.
        hyperparameters: all lane values by dotted path, each `[]`.
        class_counts: int64 `[K]`.
    """

    def __init__(self, method: TrainedMethod, hyperparameters: Mapping[str, Tensor], class_counts: Tensor) -> None:
        self.loss = method.loss(hyperparameters, class_counts)
        if self.loss.over_batch:  # sees a stack of one run
            stacked = {name: value.view(1, 1, 1) for name, value in hyperparameters.items()}
            self.loss = method.loss(stacked, class_counts)

    def __call__(self, logits_BK: Tensor, labels_B: Tensor, step: Step) -> Tensor:
        """Loss `[B]` of the images of one batch."""
        if not self.loss.over_batch:
            return self.loss.at(step)(logits_BK, labels_B)
        assert isinstance(step.seed, int), "this engine trains single runs"
        logits_SBTK, labels_SB1 = logits_BK[None, :, None], labels_B[None, :, None]
        return self.loss.at(step.of((step.seed,)))(logits_SBTK, labels_SB1)[0, :, 0]


@torch.no_grad()
def _project(head: nn.Module, method: TrainedMethod, bank: FeatureBank, hyperparameters: dict[str, Tensor]) -> None:
    """Apply the method's constraint to the head's weight rows, in place."""
    assert method.constraint is not None, "called for methods with a constraint"
    assert bank.head is not None, "check_runs refuses a constraint on a bank without a stage-1 head"
    weight_KD = head.get_parameter("weight")
    start_norms_K = bank.head[0].norm(dim=-1).to(weight_KD.device)
    method.constraint.project_(weight_KD, -1, start_norms_K, part_of(hyperparameters, "constraint"))


class _History:
    """The curves of one run so far and the selected head."""

    def __init__(self, bank: FeatureBank, method: MethodSpec, rule: EpochSelection) -> None:
        self.bank, self.method, self.rule = bank, method, rule
        self.split_masks = split_masks(bank.split_counts)
        self.val: list[Tensor] = []
        self.test: list[Tensor] = []
        self.train_loss: list[float] = []
        self.best_score = -np.inf
        self.selected: tuple[int, dict[str, Tensor]] | None = None

    def add(self, head: nn.Module, train_loss: float) -> bool:
        """Evaluate and record an epoch; False, without recording it, if the post-hoc adjustment is not finite."""
        classifier = self._adjusted(head)
        if isinstance(classifier, Adjusted) and not all(table.isfinite().all() for table in classifier.buffers(False)):
            return False
        self.train_loss.append(train_loss)
        self.test.append(self._scores(classifier, self.bank.test, "micro"))
        if self.bank.val is not None:
            self.val.append(self._scores(classifier, self.bank.val, "macro"))

        score = 0.0  # the same for every epoch, so that the last one is selected
        if self.rule.epoch == "best":
            values = self.val[-1] if self.rule.on == "val" else self.test[-1]
            score = float(values[score_column(self.rule)].nan_to_num(nan=-np.inf))
        if score >= self.best_score:
            self.best_score = score
            state = {name: tensor.detach().cpu().clone() for name, tensor in classifier.state_dict().items()}
            self.selected = len(self.train_loss) - 1, state
        return True

    def result(self, failure: str | None = None, stopped: int | None = None) -> RunResult:
        return RunResult(
            val_accuracy=None if self.bank.val is None else self._curve(self.val),
            test_accuracy=self._curve(self.test),
            train_loss=np.array(self.train_loss, dtype=np.float32),
            kept=None if failure else self._selected_head(),
            failure=failure,
            stopped=None if failure else stopped,
        )

    def _selected_head(self) -> SelectedHead:
        assert self.selected is not None, "a run that did not fail has recorded at least one epoch"
        epoch, state = self.selected
        return measure(self.bank, self.method.classifier(state), epoch)

    @torch.no_grad()
    def _adjusted(self, head: nn.Module) -> nn.Module:
        """The head followed by the method's post-hoc adjustment, if it has one."""
        adjustment = self.method.post_hoc
        if adjustment is None:
            return head
        values = {name: torch.tensor(value) for name, value in part_of(self.method.lane_values(), "post_hoc").items()}
        row_norms = bias = None
        if adjustment.needs_rows:
            row_norms, bias = head.get_parameter("weight").norm(dim=-1).cpu(), head.get_parameter("bias").cpu()
        if isinstance(adjustment, FittedPostHoc):
            assert self.bank.val is not None, "check_runs refuses such an adjustment on a bank without val"
            val = _logits(head, self.bank.val), self.bank.val.labels
            scale, offset = adjustment.fit(values, self.bank.class_counts, *val)
        else:
            scale, offset = adjustment.affine(values, self.bank.class_counts, row_norms, bias)
        device, classes = next(head.parameters()).device, (self.bank.num_classes,)
        return Adjusted(head, scale.expand(classes).to(device), offset.expand(classes).to(device))

    def _scores(self, classifier: nn.Module, images: EvalSet, average: Literal["micro", "macro"]) -> Tensor:
        """`[C]`: accuracy by split, then the further metrics."""
        classes, logits_NK = self.bank.num_classes, _logits(classifier, images)
        total_K = torch.bincount(images.labels, minlength=classes)
        accuracy = split_accuracy(
            correct_per_class(logits_NK, images.labels, classes), total_K, self.split_masks, average
        )
        metrics = evaluate(self.rule.metrics, logits_NK, images.labels, self.bank.class_counts)
        return torch.cat([accuracy, torch.tensor(metrics)])

    def _curve(self, rows: list[Tensor]) -> Array:
        """`[E, C]` of E rows, E possibly 0."""
        return torch.stack(rows).numpy() if rows else np.empty((0, len(self.rule.scores)), dtype=np.float32)


def measure(bank: FeatureBank, classifier: nn.Module, epoch: int = 0) -> SelectedHead:
    """Per-class accuracy and logit statistics of a classifier `[..., D] -> [..., K]` on the bank's test set."""
    labels_N, classes = bank.test.labels, bank.num_classes
    logits_NK = _logits(classifier, bank.test)
    statistics = LogitStatistics(classes).update(logits_NK, labels_N)
    return SelectedHead(
        epoch=epoch,
        class_accuracy=(correct_per_class(logits_NK, labels_N, classes) / statistics.count).float().numpy(),
        loma=statistics.loma().float().numpy(),
        regularised_std=statistics.regularised_std().float().numpy(),
        state={name: tensor.cpu().numpy() for name, tensor in classifier.state_dict().items()},
    )


@torch.no_grad()
def _logits(classifier: nn.Module, images: EvalSet) -> Tensor:
    """Logits `[N, K]`, averaged over the A test views, on the CPU."""
    device = next(iter(classifier.state_dict().values())).device
    logits_ANK: Tensor = classifier(images.features.to(device).float())
    return logits_ANK.mean(dim=0).cpu()
