from __future__ import annotations

import pytest

from lt_train.methods.base import TrainingSpec, parse_method
from lt_train.retrain.base import EpochRule, Run
from sweeps.packing import pack_runs


def runs(trials: int, seeds: int, **training: int) -> list[Run]:
    methods = [parse_method({"kind": "los", "lr": 0.1 / (trial + 1)}) for trial in range(trials)]
    return [Run(method, TrainingSpec(**training), seed) for method in methods for seed in range(seeds)]


@pytest.mark.parametrize(
    ("trials", "seeds", "lanes", "sizes"),
    [
        (4, 5, 64, [20]),
        (4, 5, 10, [10, 10]),
        (4, 5, 12, [10, 10]),  # whole trials: 12 lanes hold two trials of five seeds
        (5, 5, 10, [10, 10, 5]),
        (2, 5, 3, [3, 3, 3, 1]),  # a pack too small for a trial is filled run by run
        (1, 1, 64, [1]),
    ],
)
def test_sizes(trials: int, seeds: int, lanes: int, sizes: list[int]):
    packs = pack_runs("p", runs(trials, seeds), EpochRule(), lanes)
    assert [len(pack.runs) for pack in packs] == sizes
    assert len({pack.name for pack in packs}) == len(packs)


def test_every_run_is_packed_once_and_in_order():
    given = runs(7, 3)
    packed = [run for pack in pack_runs("p", given, EpochRule(), 6) for run in pack.runs]
    assert packed == given


def test_static_fields_are_never_mixed():
    given = runs(2, 2) + runs(2, 2, epochs=3) + [Run(parse_method({"kind": "ce"}), TrainingSpec(), 0)]
    packs = pack_runs("p", given, EpochRule(), 64)
    assert len(packs) == 3
    for pack in packs:
        assert len({(run.method.kind, run.training.epochs) for run in pack.runs}) == 1
