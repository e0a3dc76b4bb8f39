"""The fused engine: many runs in one batched training loop.

Runs that agree on all static fields form a stack; lanes of a stack that share a seed share mini-batches and one matrix
product per step. Stacks are kept small enough for the CPU's cache and are trained in parallel, one per core; they wait
for one another only where successive halving compares all runs of a pack. A lane's result does not depend on its
neighbours, except for the different rounding of matrix products of another width.

This module forms stacks and records results; `retrain.stack` trains one stack.

Shapes: S seeds, T lanes, K classes, E epochs, C columns of scores.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np
import torch
from torch import Tensor

from lt_train.core.device import matmul_precision
from lt_train.features.bank import FeatureBank
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
)
from lt_train.retrain.memory import fit_in_memory
from lt_train.retrain.stack import DeviceBank, Stack

__all__ = ["fit", "in_parallel"]

STACK_BYTES = {"cpu": 3 * 2**20, "cuda": 2**32}
"""Largest size of a stack's weights and batch logits; on a CPU these and the momentum should fit into the cache."""


def fit(
    bank: FeatureBank,
    runs: Sequence[Run],
    device: str = "cpu",
    rule: EpochSelection | None = None,
    halving: Halving | None = None,
) -> list[RunResult]:
    """Train all runs together; results in the order of `runs`.

    Agrees with `retrain.reference.fit` to 1e-4 relative in the weights. A lane that diverges is reported as failed and
    does not affect the others. When memory runs out, the runs are trained in two halves one after the other, down to
    single runs; results are the same up to rounding.

    Raises:
        BankError: the runs cannot be trained on this bank; see `check_runs`.
        OutOfMemory: memory ran out with a single run, or with runs that successive halving must compare.
    """
    rule = rule or EpochSelection()
    check_runs(bank, runs, rule, halving)
    trials = None if halving is None else HalvingTrials(runs, rule, halving)
    return fit_in_memory(
        lambda part: _PackTraining(bank, part, device, rule, trials).train(),
        prepared_runs(bank, runs),
        splittable=trials is None,
    )


class _PackTraining:
    """The runs of one call, referred to by index, their stacks and their histories."""

    def __init__(
        self, bank: FeatureBank, runs: Sequence[Run], device: str, rule: EpochSelection, trials: HalvingTrials | None
    ) -> None:
        self.data, self.runs, self.rule = DeviceBank(bank, device), runs, rule
        self.trials = trials
        self.histories = [_History(rule) for _ in runs]
        self.results: dict[int, RunResult] = {}

    def train(self) -> list[RunResult]:
        """Train every stack to its end or, under successive halving, from rung to rung."""
        stacks = self._stacks(range(len(self.runs)))
        rungs = () if self.trials is None else self.trials.halving.rungs
        for until in (*rungs, max((stack.epochs for stack in stacks), default=0)):
            in_parallel([self._epochs(stack, until) for stack in stacks], self.data.device)
            stacks = self._halve(stacks, until)
        return [self.results[index] for index in range(len(self.runs))]

    def _epochs(self, stack: Stack, until: int) -> Iterator[None]:
        """Train a stack up to an epoch or to its end; yields after every epoch."""
        while stack.finished < min(until, stack.epochs):
            with matmul_precision(self.data.device, stack.training.matmul):
                self._record(stack, stack.train_epoch())
                if stack.finished == stack.epochs:
                    self._finish(stack)
            yield

    def _stacks(self, indices: Iterable[int]) -> list[Stack]:
        return [Stack(self.data, self.runs, index_ST) for index_ST in self._rectangles(indices)]

    def _rectangles(self, indices: Iterable[int]) -> Iterator[list[list[int]]]:
        """Run indices by seed and lane, in rectangles of equal static fields and at most `STACK_BYTES`."""
        groups: dict[str, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
        for index in indices:
            run = self.runs[index]
            # Without training the seed has no effect: all lanes share the stage-1 head's logits.
            groups[run.static_key()][run.seed if run.method.trains else 0].append(index)
        for by_seed in groups.values():
            most = self._most_lanes(self.runs[next(iter(by_seed.values()))[0]])
            by_width: dict[int, list[list[int]]] = defaultdict(list)
            for lanes in by_seed.values():
                for chunk in _evenly(lanes, most):
                    by_width[len(chunk)].append(chunk)
            for width, rows in by_width.items():
                seeds = max(1, most // width)
                yield from (rows[start : start + seeds] for start in range(0, len(rows), seeds))

    def _most_lanes(self, run: Run) -> int:
        """The largest number of lanes of such runs in a stack; unlimited for untrained runs, which share one head."""
        if not run.method.trains:
            return len(self.runs)
        head, shape = run.method.head, (self.data.bank.num_classes, self.data.bank.feature_dim)
        lane_bytes = 4 * (head.num_parameters(*shape) + run.training.batch_size * head.num_activations(*shape))
        return max(1, STACK_BYTES[torch.device(self.data.device).type] // lane_bytes)

    def _record(self, stack: Stack, loss_ST: Tensor) -> None:
        """Evaluate the current heads, append to the histories, and save the heads that are the best so far."""
        loss = loss_ST.cpu().numpy()
        last = stack.finished == stack.epochs
        scores = stack.scores(self.rule.metrics, selected=last and self.rule.epoch == "last")
        test, val = scores["test"], scores.get("val")
        finite, adjustment_finite = stack.finite_ST.cpu().numpy(), stack.adjustment_finite_ST.cpu().numpy()
        better = np.zeros(stack.shape, dtype=bool)
        for (s, t), index in np.ndenumerate(np.array(stack.index_ST)):
            history = self.histories[index]
            if history.failure is None and not finite[s, t]:
                history.failure = diverged(stack.finished - 1)
            elif history.failure is None and not adjustment_finite[s, t]:
                history.failure = overflowed()
            if history.failure is None:
                better[s, t] = history.add(loss[s, t], test[s, t], None if val is None else val[s, t])
        if self.rule.epoch == "best" and stack.method.trains:
            stack.select(torch.from_numpy(better).to(self.data.device))

    def _finish(self, stack: Stack, only: Iterable[int] | None = None, stopped: int | None = None) -> None:
        """Store the results of a stack's runs, or of those in `only`, with their selected heads."""
        wanted = set(np.ravel(stack.index_ST)) if only is None else set(only)
        measured = stack.measure()
        arrays: dict[int, Array] = {}  # lanes that share a tensor, such as an untrained head, share one array
        for (s, t), index in np.ndenumerate(np.array(stack.index_ST)):
            if index not in wanted:
                continue
            history = self.histories[index]
            head = SelectedHead(
                epoch=history.selected,
                class_accuracy=measured.class_accuracy[s, t],
                loma=measured.loma[s, t],
                regularised_std=measured.regularised_std[s, t],
                state={
                    name: arrays.setdefault(tensor.data_ptr(), tensor.numpy())
                    for name, tensor in stack.state(s, t).items()
                },
            )
            self.results[int(index)] = history.result(head, stopped, has_val="val" in stack.images)

    def _halve(self, stacks: list[Stack], finished: int) -> list[Stack]:
        """The stacks that continue after `finished` epochs: the same ones, unless that is a rung that stops runs."""
        if self.trials is None:
            return stacks
        active = {index for index in range(len(self.runs)) if index not in self.results}
        left = self.trials.survivors(active, finished, [history.curve() for history in self.histories])
        if left == active:
            return stacks
        old = {
            int(index): (stack, s, t) for stack in stacks for (s, t), index in np.ndenumerate(np.array(stack.index_ST))
        }
        fewer = self._stacks(sorted(left))
        for stack in fewer:
            stack.take_over(old)
        for stack in stacks:
            if dropped := (active - left) & {int(index) for index in np.ravel(stack.index_ST)}:
                self._finish(stack, dropped, finished)
        return fewer


class _History:
    """The curves of one run so far and its selected epoch."""

    def __init__(self, rule: EpochSelection) -> None:
        self.rule = rule
        self.test: list[Array] = []
        self.val: list[Array] = []
        self.loss: list[float] = []
        self.failure: str | None = None
        self.selected = -1
        self.best_score = -np.inf

    def add(self, loss: float, test: Array, val: Array | None) -> bool:
        """Append an epoch; returns whether it is the selected one so far."""
        self.loss.append(loss)
        self.test.append(test)
        if val is not None:
            self.val.append(val)
        values = test if self.rule.on == "test" or val is None else val
        best = self.rule.epoch == "best"
        score = float(np.nan_to_num(values[score_column(self.rule)], nan=-np.inf)) if best else 0.0
        better = score >= self.best_score
        if better:
            self.best_score, self.selected = score, len(self.loss) - 1
        return better

    def curve(self) -> Array:
        """The scores on the set that the rule selects on, `[E, C]`."""
        return self._rows(self.test if self.rule.on == "test" else self.val)

    def result(self, head: SelectedHead, stopped: int | None, *, has_val: bool) -> RunResult:
        """The result of the run; a failed run has no head."""
        failed = self.failure is not None
        return RunResult(
            val_accuracy=self._rows(self.val) if has_val else None,
            test_accuracy=self._rows(self.test),
            train_loss=np.array(self.loss, dtype=np.float32),
            kept=None if failed else head,
            failure=self.failure,
            stopped=None if failed else stopped,
        )

    def _rows(self, rows: list[Array]) -> Array:
        return np.stack(rows) if rows else np.empty((0, len(self.rule.scores)), dtype=np.float32)


def _evenly(indices: list[int], most: int) -> Iterator[list[int]]:
    """`indices` in the smallest number of chunks of at most `most`, of nearly equal lengths."""
    chunks = -(-len(indices) // most)
    for number in range(chunks):
        yield indices[len(indices) * number // chunks : len(indices) * (number + 1) // chunks]


def in_parallel(tasks: Sequence[Iterator[None]], device: str) -> None:
    """Run every task to its end; on a CPU in parallel, with `torch.get_num_threads()` threads in all.

    A stack's matrix products are too small to be divided among cores efficiently, so each stack gets a core. Cores are
    divided within an operation only when there are fewer tasks than cores. Tasks advance one step (one `yield`) at a
    time, in turn, so that they end together even if their number is not a multiple of the threads. An error in one of
    them, or Ctrl-C, ends the others at their next step and is raised.
    """
    threads = torch.get_num_threads()
    workers = min(threads, len(tasks)) if torch.device(device).type == "cpu" else 1
    waiting = deque(tasks)
    errors: list[BaseException] = []

    def work() -> None:
        while not errors:
            try:
                task = waiting.popleft()
            except IndexError:  # another thread took the last one
                return
            try:
                next(task)
            except StopIteration:
                continue
            except BaseException as error:
                errors.append(error)
                return
            waiting.append(task)

    if workers <= 1:
        work()
    else:
        torch.set_num_threads(threads // workers)
        try:
            with ThreadPoolExecutor(workers, thread_name_prefix="stack") as pool:
                try:
                    wait([pool.submit(work) for _ in range(workers)])
                except BaseException as error:  # Ctrl-C reaches only this thread
                    errors.append(error)
        finally:
            torch.set_num_threads(threads)
    if errors:
        # Keep no reference to an error: its traceback holds the tensors of the training, and memory may be short.
        del errors[1:]
        raise errors.pop()
