"""Train the packs of a trial queue in one process, in any order."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from lt_train.features.bank import FeatureBank
from lt_train.retrain import fused
from lt_train.retrain.base import Pack, RunResult
from sweeps.experiment.trial_queue import TrialQueue

__all__ = ["first", "in_random_order", "last", "train_all", "train_pack"]

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
