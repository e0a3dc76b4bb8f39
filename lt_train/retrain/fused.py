"""The product: many runs in one loop. Lanes that share a seed share mini-batches and one matrix product a step.

Runs are sorted into stacks (equal static fields, equal number of lanes a seed, weights that stay in cache), which are
trained side by side and wait for one another only where successive halving compares all runs of a pack. A lane's result
does not depend on its neighbours beyond the rounding of a matrix product of another width. How a stack trains is
`retrain.stack`'s business.

Shapes: S seeds, T lanes, K classes, E epochs.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from lt_train.core.device import matmul_precision
from lt_train.core.errors import MemoryShort
from lt_train.features.bank import FeatureBank
from lt_train.metrics.accuracy import SPLITS
from lt_train.retrain.base import (
    Array,
    EpochSelection,
    Halving,
    Run,
    RunResult,
    SelectedHead,
    check_runs,
    diverged,
    overflowed,
    score_column,
)
from lt_train.retrain.device_bank import DeviceBank
from lt_train.retrain.halving import Trials
from lt_train.retrain.stack import Stack
from lt_train.retrain.threads import in_parallel

__all__ = ["fit"]

STACK_BYTES = {"cpu": 3 * 2**20, "cuda": 2**32}
"""What is trained in one stack, and the logits of its batch: on a CPU, with the momentum, they should stay in cache."""

SHORT = ("can't allocate memory", "std::bad_alloc", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
"""What torch says in a plain RuntimeError when memory ran out elsewhere than in its allocator of CUDA memory."""

_log = logging.getLogger(__name__)


def fit(
    bank: FeatureBank,
    runs: Sequence[Run],
    device: str = "cpu",
    rule: EpochSelection | None = None,
    halving: Halving | None = None,
) -> list[RunResult]:
    """Train all runs together; results in the order of `runs`. See `retrain.base.Engine`.

    Agrees with `retrain.reference.fit` to 1e-4 relative in the weights. A lane that diverges is reported as failed
    and leaves the others untouched. When memory runs out the runs are trained in two halves, one after the other, and
    so on down to one run; results are the same but for rounding.

    Raises:
        BankError: something in the bank does not go with the runs; see `check_runs`.
        MemoryShort: memory ran out with one run, or with runs that successive halving has to compare.
    """
    rule = rule or EpochSelection()
    check_runs(bank, runs, rule, halving)
    return _fit_in_memory(lambda part: _Pack(bank, part, device, rule, halving).train(), runs, halving)


def _fit_in_memory(
    train: Callable[[Sequence[Run]], list[RunResult]], runs: Sequence[Run], halving: Halving | None
) -> list[RunResult]:
    try:
        return train(runs)
    except (MemoryError, RuntimeError) as error:
        if not _is_short_of_memory(error):
            raise
    if len(runs) == 1:
        raise MemoryShort("memory ran out with a single run; use a smaller batch_size or a machine with more memory")
    if halving is not None:
        raise MemoryShort(
            f"memory ran out with {len(runs)} runs that successive halving has to compare side by side; "
            "set resources.memory_per_pack or lanes_per_pack lower"
        )
    # Outside of the handler, whose traceback would keep the first attempt's tensors alive.
    torch.cuda.empty_cache()
    middle = len(runs) // 2
    _log.warning("memory ran out with %d runs side by side: training them in halves, one after the other", len(runs))
    return [result for part in (runs[:middle], runs[middle:]) for result in _fit_in_memory(train, part, halving)]


def _is_short_of_memory(error: BaseException) -> bool:
    """Whether torch, on a CPU or a CUDA device, or Python itself, could not allocate."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(text in str(error) for text in SHORT)


class _Pack:
    """All runs of one call, the stacks they are in, and what each of them has shown so far."""

    def __init__(
        self, bank: FeatureBank, runs: Sequence[Run], device: str, rule: EpochSelection, halving: Halving | None
    ) -> None:
        self.data, self.runs, self.rule = DeviceBank(bank, device), runs, rule
        self.trials = None if halving is None else Trials(runs, rule, halving)
        self.histories = [_History() for _ in runs]
        self.results: dict[int, RunResult] = {}

    def train(self) -> list[RunResult]:
        """Every epoch of every stack; stacks wait for one another only where successive halving compares them."""
        stacks = self._stacks(range(len(self.runs)))
        rungs = () if self.trials is None else self.trials.halving.rungs
        for until in (*rungs, max((stack.epochs for stack in stacks), default=0)):
            in_parallel([self._epochs(stack, until) for stack in stacks], self.data.device)
            stacks = self._halve(stacks, until)
        return [self.results[place] for place in range(len(self.runs))]

    def _epochs(self, stack: Stack, until: int) -> Iterator[None]:
        """Train a stack up to an epoch, or to its end; a step is an epoch."""
        while stack.finished < min(until, stack.epochs):
            with matmul_precision(self.data.device, stack.training.matmul):
                self._record(stack, stack.train_epoch())
                if stack.finished == stack.epochs:
                    self._finish(stack)
            yield

    def _stacks(self, places: Iterable[int]) -> list[Stack]:
        return [Stack(self.data, self.runs, rectangle) for rectangle in self._rectangles(places)]

    def _rectangles(self, places: Iterable[int]) -> Iterator[list[list[int]]]:
        """Places by seed and lane, in rectangles: equal static fields, even widths, as many lanes as fit a cache."""
        groups: dict[str, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
        for place in places:
            run = self.runs[place]
            # Without training a seed decides nothing: all lanes share the stage-1 head's logits.
            groups[run.static_key()][run.seed if run.method.trains else 0].append(place)
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
        """How many lanes of such runs a stack may have; heads that are not trained are one head, whatever the lanes."""
        if not run.method.trains:
            return len(self.runs)
        classes, dim = self.data.bank.num_classes, self.data.bank.feature_dim
        lane_bytes = 4 * (run.method.head.trained_numbers(classes, dim) + run.training.batch_size * classes)
        return max(1, STACK_BYTES[torch.device(self.data.device).type] // lane_bytes)

    def _record(self, stack: Stack, loss_ST: Tensor) -> None:
        """Measure the heads as they are now, and keep those that are the best so far."""
        loss = loss_ST.cpu().numpy()
        last = stack.finished == stack.epochs
        accuracy = stack.accuracy(these_count=last and self.rule.epoch == "last")
        test, val = accuracy["test"], accuracy.get("val")
        sound, readable = stack.finite_ST.cpu().numpy(), stack.readable_ST.cpu().numpy()
        better = np.zeros(stack.shape, dtype=bool)
        for (s, t), place in np.ndenumerate(np.array(stack.places_ST)):
            history = self.histories[place]
            if history.failure is None and not sound[s, t]:
                history.failure = diverged(stack.finished - 1)
            elif history.failure is None and not readable[s, t]:
                history.failure = overflowed()
            if history.failure is None:
                better[s, t] = history.add(loss[s, t], test[s, t], None if val is None else val[s, t], self.rule)
        if self.rule.epoch == "best" and stack.method.trains:
            stack.keep(torch.from_numpy(better).to(self.data.device))

    def _finish(self, stack: Stack, only: Iterable[int] | None = None, stopped: int | None = None) -> None:
        """Results of a stack's runs, or of some of them, from the heads that count."""
        wanted = set(np.ravel(stack.places_ST)) if only is None else set(only)
        measured = stack.measure()
        arrays: dict[int, Array] = {}  # what lanes share, such as a head that is not trained, is handed out once
        for (s, t), place in np.ndenumerate(np.array(stack.places_ST)):
            if place not in wanted:
                continue
            history = self.histories[place]
            kept = SelectedHead(
                epoch=history.kept,
                class_accuracy=measured.class_accuracy[s, t],
                loma=measured.loma[s, t],
                regularised_std=measured.regularised_std[s, t],
                state={
                    name: arrays.setdefault(tensor.data_ptr(), tensor.numpy())
                    for name, tensor in stack.state(s, t).items()
                },
            )
            self.results[int(place)] = history.result(kept, stopped, validated="val" in stack.images)

    def _halve(self, stacks: list[Stack], finished: int) -> list[Stack]:
        """The stacks that go on after `finished` epochs: the same ones, unless that is a rung of successive halving."""
        if self.trials is None:
            return stacks
        going = {place for place in range(len(self.runs)) if place not in self.results}
        left = self.trials.survivors(going, finished, [history.judged(self.rule) for history in self.histories])
        if left == going:
            return stacks
        old = {
            int(place): (stack, s, t) for stack in stacks for (s, t), place in np.ndenumerate(np.array(stack.places_ST))
        }
        fewer = self._stacks(sorted(left))
        for stack in fewer:
            stack.take_over(old)
        for stack in stacks:
            if out := (going - left) & {int(place) for place in np.ravel(stack.places_ST)}:
                self._finish(stack, out, finished)
        return fewer


class _History:
    """What one run has shown, epoch by epoch."""

    def __init__(self) -> None:
        self.test: list[Array] = []
        self.val: list[Array] = []
        self.loss: list[float] = []
        self.failure: str | None = None
        self.kept = -1
        self.score = -1.0

    def add(self, loss: float, test: Array, val: Array | None, rule: EpochSelection) -> bool:
        """Take note of an epoch; returns whether it is the one that counts so far."""
        self.loss.append(loss)
        self.test.append(test)
        if val is not None:
            self.val.append(val)
        judged = test if rule.on == "test" or val is None else val
        score = float(judged[score_column(rule)]) if rule.epoch == "best" else 0.0
        better = score >= self.score
        if better:
            self.score, self.kept = score, len(self.loss) - 1
        return better

    def judged(self, rule: EpochSelection) -> Array:
        """The accuracies that the rule judges by, `[E, 4]`."""
        return _rows(self.test if rule.on == "test" else self.val)

    def result(self, kept: SelectedHead, stopped: int | None, *, validated: bool) -> RunResult:
        """What is left of the run; a failed one has no head."""
        failed = self.failure is not None
        return RunResult(
            val_accuracy=_rows(self.val) if validated else None,
            test_accuracy=_rows(self.test),
            train_loss=np.array(self.loss, dtype=np.float32),
            kept=None if failed else kept,
            failure=self.failure,
            stopped=None if failed else stopped,
        )


def _evenly(places: list[int], most: int) -> Iterator[list[int]]:
    """`places` in as few chunks of at most `most` as there must be, of nearly equal lengths."""
    chunks = -(-len(places) // most)
    for number in range(chunks):
        yield places[len(places) * number // chunks : len(places) * (number + 1) // chunks]


def _rows(rows: list[Array]) -> Array:
    return np.stack(rows) if rows else np.empty((0, len(SPLITS)), dtype=np.float32)
