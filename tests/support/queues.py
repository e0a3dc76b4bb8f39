"""Train the packs of a trial queue in one process, in any order, and compare what was recorded."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

from lt_train.features.bank import FeatureBank
from lt_train.retrain import fused
from lt_train.retrain.base import Pack, RunResult
from sweeps.experiment.trial_queue import TrialQueue
from sweeps.store.ledger import LedgerReader

__all__ = ["first", "in_random_order", "last", "outcomes", "train_all", "train_pack"]

Choose = Callable[[Sequence[Pack]], int]


def first(packs: Sequence[Pack]) -> int:
    """Finish packs in the order in which they were started."""
    return 0


def last(packs: Sequence[Pack]) -> int:
    """Finish the pack that was started last."""
    return len(packs) - 1


def in_random_order(seed: int) -> Choose:
    """Finish packs in an order drawn with this seed."""
    generator = random.Random(seed)
    return lambda packs: generator.randrange(len(packs))


def train_pack(bank: FeatureBank, pack: Pack) -> list[RunResult]:
    """Train a pack as a backend does."""
    return fused.fit(bank, pack.runs, rule=pack.rule, halving=pack.halving)


def train_all(
    queue: TrialQueue,
    bank: FeatureBank,
    choose: Choose = first,
    workers: int = 1,
    train: Callable[[FeatureBank, Pack], list[RunResult]] = train_pack,
) -> list[Pack]:
    """Train everything with `workers` packs in flight; returns the packs in the order in which they were finished."""
    in_flight: list[Pack] = []
    finished: list[Pack] = []
    while not queue.exhausted():
        while len(in_flight) < workers and (pack := queue.next_pack()) is not None:
            in_flight.append(pack)
        assert in_flight, "a queue that is not exhausted has a pack when none is in flight"
        pack = in_flight.pop(choose(in_flight))
        queue.complete(pack, train(bank, pack), 0.0)
        finished.append(pack)
    assert queue.next_pack() is None
    return finished


def outcomes(queue: TrialQueue, candidate: str | None = None) -> dict[str, tuple[Any, ...]]:
    """Everything that may be reported of every trial, or of those of a candidate, to the last bit."""
    assert set(queue.finished) == set(queue.trials), "every trial is finished"
    return {
        name: (
            runs.trial,
            runs.objective,
            runs.stopped,
            [replace(record, at_ms=0) for record in runs.records],
            [_arrays(queue.ledger, record.key) for record in runs.records],
        )
        for name, runs in sorted(queue.finished.items())
        if candidate in (None, runs.trial.candidate)
    }


def _arrays(ledger: LedgerReader, key: str) -> list[tuple[tuple[int, ...], bytes] | None]:
    """The arrays of a run in a form that is equal if all bits are."""
    arrays = ledger.arrays(key)
    values = [getattr(arrays, field.name) for field in fields(arrays)]
    return [None if array is None else (array.shape, array.tobytes()) for array in values]
