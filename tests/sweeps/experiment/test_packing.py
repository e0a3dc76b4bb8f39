"""Packs: which runs share one, and how many it holds."""

from __future__ import annotations

import dataclasses

import pytest

from lt_train.core.errors import UserError
from lt_train.methods.base import METHODS, TrainingSpec
from lt_train.retrain.base import EpochSelection, Halving, Run
from sweeps.config.sections import ResourcesSpec
from sweeps.experiment.packing import PackSize, pack_runs
from sweeps.search.base import NoEarlyStopping, SuccessiveHalving

HALVING = Halving((5,))


def runs(trials: int, seeds: int, **training: int) -> list[Run]:
    methods = [METHODS.parse({"kind": "los", "lr": 0.1 / (trial + 1)}) for trial in range(trials)]
    return [Run(method, TrainingSpec(**training), seed) for method in methods for seed in range(seeds)]


@pytest.mark.parametrize(
    ("trials", "seeds", "lanes", "sizes"),
    [
        (4, 5, 64, [20]),
        (4, 5, 10, [10, 10]),
        (4, 5, 12, [10, 10]),  # whole trials: 12 lanes hold two trials of five seeds
        (5, 5, 10, [10, 10, 5]),
        (12, 5, 50, [30, 30]),  # even: not ten trials and two
        (11, 5, 25, [20, 20, 15]),
        (2, 5, 3, [3, 3, 2, 2]),  # too small for a trial: filled run by run
        (1, 1, 64, [1]),
    ],
)
def test_sizes(trials: int, seeds: int, lanes: int, sizes: list[int]):
    packs = pack_runs("p", runs(trials, seeds), EpochSelection(), lambda run: lanes)
    assert [len(pack.runs) for pack in packs] == sizes
    assert len({pack.name for pack in packs}) == len(packs)


def test_every_run_is_packed_once_and_in_order():
    given = runs(7, 3)
    packed = [run for pack in pack_runs("p", given, EpochSelection(), lambda run: 6) for run in pack.runs]
    assert packed == given


def test_no_runs_give_no_packs():
    assert pack_runs("p", [], EpochSelection(), lambda run: 6) == []


def test_static_fields_are_never_mixed_and_each_group_has_its_own_size():
    ce = Run(METHODS.parse({"kind": "ce"}), TrainingSpec(), 0)
    given = [*runs(2, 2), *runs(4, 2, epochs=3), ce]

    def lanes(run: Run) -> int:
        return 4 if run.training.epochs == 3 else 64

    packs = pack_runs("p", given, EpochSelection(), lanes)
    assert [len(pack.runs) for pack in packs] == [4, 4, 4, 1]
    for pack in packs:
        assert len({(run.method.kind, run.training.epochs) for run in pack.runs}) == 1


def test_packs_carry_their_early_stopping_rule():
    given = [*runs(2, 2), *runs(2, 2, epochs=3)]
    packs = pack_runs(
        "p", given, EpochSelection(), lambda run: 64, lambda run: HALVING if run.training.epochs > 5 else None
    )
    assert [pack.halving for pack in packs] == [HALVING, None]


@pytest.mark.parametrize("lanes", range(10, 70, 5))
def test_no_pack_has_one_trial_if_all_can_have_two(lanes: int):
    packs = pack_runs("p", runs(12, 5), EpochSelection(), lambda run: lanes, lambda run: HALVING)
    trials = [len({run.method for run in pack.runs}) for pack in packs]
    assert sum(trials) == 12
    assert min(trials) >= 2
    assert max(len(pack.runs) for pack in packs) <= lanes
    for pack in packs:
        assert len(pack.runs) % 5 == 0, "trials are whole"


def size(memory: str = "2GiB", *, classes: int = 100, dim: int = 512, lanes: int | str = "auto") -> PackSize:
    resources = ResourcesSpec.model_validate_json(f'{{"memory_per_pack": "{memory}"}}')
    return PackSize(resources.model_copy(update={"lanes_per_pack": lanes}), NoEarlyStopping(), classes, dim)


def test_auto_fills_the_memory():
    (run,) = runs(1, 1)
    each = size().run_bytes(run)
    # Weights and momentum at least; not ten times that.
    assert 2 * 4 * 100 * 512 < each < 10 * 4 * 100 * 512
    assert size().lanes(run) == 2 * 2**30 // each
    assert size("1GiB").lanes(run) == 2**30 // each
    assert size(dim=2048).lanes(run) < size().lanes(run)
    (large,) = runs(1, 1, batch_size=4096)
    assert size().lanes(large) < size().lanes(run)
    halved = dataclasses.replace(size(), early_stopping=SuccessiveHalving())
    assert halved.lanes(run) < size().lanes(run), "halving copies the lanes that continue"


def test_a_given_number_of_lanes_overrides_the_memory():
    (run,) = runs(1, 1)
    assert size("1KiB", lanes=7).lanes(run) == 7
    size("1KiB", lanes=7).check(run, 5, None)


def test_too_little_memory_for_a_run_is_refused_with_a_remedy():
    (run,) = runs(1, 1)
    small = size("10MiB", classes=8142, dim=2048)
    with pytest.raises(
        UserError,
        match=r"memory_per_pack is 10 MiB, .* one run: .*8142 classes, 2048 features, batches of 64.*at least \d+MiB",
    ) as caught:
        small.check(run, 5, None)
    enough = str(caught.value).split()[-1]
    size(enough, classes=8142, dim=2048).check(run, 5, None)
    assert size(enough, classes=8142, dim=2048).lanes(run) == 1


def test_too_little_memory_for_two_trials_is_refused_with_halving():
    (run,) = runs(1, 1)
    small = size("600MiB", classes=8142, dim=2048)
    small.check(run, 5, None)
    with pytest.raises(
        UserError, match=r"too little for two trials of 5 seeds, which successive halving compares"
    ) as e:
        small.check(run, 5, HALVING)
    enough = str(e.value).split()[-1]
    size(enough, classes=8142, dim=2048).check(run, 5, HALVING)


def test_sizes_are_described_in_one_line():
    (run,) = runs(1, 1)
    assert size().describe(run, 60).startswith("packs of up to 60 runs: ")
    assert size().describe(run, 60).endswith("iB per run, 2 GiB per pack")
    assert size(lanes=1).describe(run, 1).endswith(" per run, resources.lanes_per_pack is 1")
    assert size(lanes=1).describe(run, 1).startswith("packs of up to 1 run: ")
