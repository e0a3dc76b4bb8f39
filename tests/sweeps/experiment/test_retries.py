"""Packs that did not come back: lost ones elsewhere, failed ones again, then in halves until one run stands alone."""

from __future__ import annotations

import pytest

from lt_train.core.errors import LongtailError
from lt_train.methods.base import METHODS, TrainingSpec
from lt_train.retrain.base import EpochSelection, Halving, Pack, Run, RunResult
from sweeps.experiment.retries import ATTEMPTS, PATIENCE, Outcome, Retries


def pack_of(trials: int, seeds: int, halving: Halving | None = None) -> Pack:
    methods = [METHODS.parse({"kind": "los", "lr": 0.1 / (trial + 1)}) for trial in range(trials)]
    runs = tuple(Run(method, TrainingSpec(), seed) for method in methods for seed in range(seeds))
    return Pack("p", runs, EpochSelection(), halving)


def trained(run: Run) -> RunResult:
    """Something that says whose it is."""
    return RunResult(None, run.method.lr, run.seed, None)  # type: ignore[arg-type, attr-defined]


def work(retries: Retries, pack: Pack, bad: set[Run]) -> tuple[Outcome, list[int]]:
    """Train a pack on workers that die of bad runs; the whole outcome, and the sizes of what was tried."""
    waiting, tried = [pack], []
    while True:
        now = waiting.pop(0)
        tried.append(len(now.runs))
        if bad & set(now.runs):
            again, outcome = retries.failed(now, "it died", own=True)
            waiting = [*again, *waiting]
        else:
            outcome = Outcome(now, [trained(run) for run in now.runs], 1.0)
        if outcome is not None and (whole := retries.whole(outcome)) is not None:
            assert not waiting
            return whole, tried


def test_a_pack_that_is_lost_is_tried_again_whole_as_often_as_it_takes() -> None:
    retries, pack = Retries(), pack_of(3, 2)
    for _ in range(PATIENCE - 1):
        assert retries.failed(pack, "node", own=False) == ([pack], None)
    with pytest.raises(
        LongtailError, match=rf"pack p was lost {PATIENCE} times .*, the last time because the node died;"
    ):
        retries.failed(pack, "the node died", own=False)
    assert (retries.lost, retries.failures) == (PATIENCE, 0)


def test_a_pack_that_fails_once_is_tried_again_whole() -> None:
    retries, pack = Retries(), pack_of(3, 2)
    assert retries.failed(pack, "it died", own=True) == ([pack], None)
    outcome = Outcome(pack, [trained(run) for run in pack.runs], 2.0)
    assert retries.whole(outcome) == outcome


@pytest.mark.parametrize("trials", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("seeds", [1, 2, 5])
def test_one_bad_run_is_found_and_alone_is_failed(trials: int, seeds: int) -> None:
    for bad in pack_of(trials, seeds).runs:
        retries, pack = Retries(), pack_of(trials, seeds)
        whole, tried = work(retries, pack, {bad})
        assert whole.pack == pack
        for run, result in zip(pack.runs, whole.results, strict=True):
            if run == bad:
                assert result.failure == f"its process failed {ATTEMPTS} times with this run alone in it: it died"
                assert result.kept is None
                assert len(result.test_accuracy) == len(result.train_loss) == 0
            else:
                assert result == trained(run)
        assert tried[:2] == [len(pack.runs)] * 2
        assert len(tried) <= 2 * ATTEMPTS * (len(pack.runs)).bit_length() + 1


def test_several_bad_runs_are_found() -> None:
    pack = pack_of(4, 2)
    bad = {pack.runs[1], pack.runs[2], pack.runs[7]}
    whole, _ = work(Retries(), pack, bad)
    assert {run for run, result in zip(pack.runs, whole.results, strict=True) if result.failure} == bad


def test_seeds_of_a_trial_stay_together_while_there_are_several() -> None:
    retries, pack = Retries(), pack_of(3, 2, Halving((5,)))
    retries.failed(pack, "x", own=True)
    (first, second), _ = retries.failed(pack, "x", own=True)
    assert (first.runs, second.runs) == (pack.runs[:2], pack.runs[2:])
    assert {part.halving for part in (first, second)} == {pack.halving}
    assert len({pack.name, first.name, second.name}) == 3


def test_parts_are_put_together_in_the_order_of_the_pack_and_their_seconds_add_up() -> None:
    pack = pack_of(2, 1)
    retries = Retries()
    retries.failed(pack, "x", own=True)
    (first, second), _ = retries.failed(pack, "x", own=True)
    assert retries.whole(Outcome(second, [trained(second.runs[0])], 2.0)) is None
    whole = retries.whole(Outcome(first, [trained(first.runs[0])], 3.0))
    assert whole == Outcome(pack, [trained(run) for run in pack.runs], 5.0)


def test_failures_of_one_pack_do_not_count_for_another() -> None:
    retries = Retries()
    one, other = pack_of(1, 1), Pack("q", pack_of(1, 1).runs, EpochSelection())
    assert retries.failed(one, "x", own=True) == ([one], None)
    assert retries.failed(other, "x", own=True) == ([other], None)
    _, outcome = retries.failed(one, "x", own=True)
    assert outcome is not None
    assert retries.failures == 3
