"""Lost packs are rescheduled; packs that crash are bisected until the run that cannot be trained is alone."""

from __future__ import annotations

import pytest

from lt_train.core.errors import LongtailError
from lt_train.methods.base import METHODS, TrainingSpec
from lt_train.retrain.base import EpochSelection, Halving, Pack, Run, RunResult
from sweeps.experiment.packing import MAX_PACK_FAILURES, MAX_PACK_LOSSES, Outcome, Retries


def pack_of(trials: int, seeds: int, halving: Halving | None = None) -> Pack:
    methods = [METHODS.parse({"kind": "los", "lr": 0.1 / (trial + 1)}) for trial in range(trials)]
    runs = tuple(Run(method, TrainingSpec(), seed) for method in methods for seed in range(seeds))
    return Pack("p", runs, EpochSelection(), halving)


def trained(run: Run) -> RunResult:
    """A result that identifies its run."""
    return RunResult(None, run.method.lr, run.seed, None)  # type: ignore[arg-type, attr-defined]


def work(retries: Retries, pack: Pack, bad: set[Run]) -> tuple[Outcome, list[int]]:
    """Train a pack on workers that crash on bad runs; its outcome and the number of runs of each attempt."""
    waiting, tried = [pack], []
    while True:
        part = waiting.pop(0)
        tried.append(len(part.runs))
        if bad & set(part.runs):
            packs, outcome = retries.failed(part, "it crashed", own=True)
            waiting = [*packs, *waiting]
        else:
            outcome = Outcome(part, [trained(run) for run in part.runs], 1.0)
        if outcome is not None and (whole := retries.reassembled(outcome)) is not None:
            assert not waiting
            return whole, tried


def test_a_lost_pack_is_rescheduled_up_to_a_bound() -> None:
    retries, pack = Retries(), pack_of(3, 2)
    for _ in range(MAX_PACK_LOSSES - 1):
        assert retries.failed(pack, "node", own=False) == ([pack], None)
    with pytest.raises(
        LongtailError, match=rf"pack p was lost {MAX_PACK_LOSSES} times .*, the last time because the node died;"
    ):
        retries.failed(pack, "the node died", own=False)
    assert (retries.lost, retries.failures) == (MAX_PACK_LOSSES, 0)


def test_a_pack_that_fails_once_is_retried_as_a_whole() -> None:
    retries, pack = Retries(), pack_of(3, 2)
    assert retries.failed(pack, "it crashed", own=True) == ([pack], None)
    outcome = Outcome(pack, [trained(run) for run in pack.runs], 2.0)
    assert retries.reassembled(outcome) == outcome


@pytest.mark.parametrize("trials", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("seeds", [1, 2, 5])
def test_one_bad_run_is_found_and_only_it_fails(trials: int, seeds: int) -> None:
    for bad in pack_of(trials, seeds).runs:
        retries, pack = Retries(), pack_of(trials, seeds)
        whole, tried = work(retries, pack, {bad})
        assert whole.pack == pack
        for run, result in zip(pack.runs, whole.results, strict=True):
            if run == bad:
                assert result.failure is not None
                assert result.failure.endswith(": it crashed")
                assert f"failed {MAX_PACK_FAILURES} times" in result.failure
                assert result.kept is None
                assert len(result.test_accuracy) == len(result.train_loss) == 0
            else:
                assert result == trained(run)
        assert tried[:2] == [len(pack.runs)] * 2
        assert len(tried) <= 2 * MAX_PACK_FAILURES * (len(pack.runs)).bit_length() + 1


def test_several_bad_runs_are_found() -> None:
    pack = pack_of(4, 2)
    bad = {pack.runs[1], pack.runs[2], pack.runs[7]}
    whole, _ = work(Retries(), pack, bad)
    assert {run for run, result in zip(pack.runs, whole.results, strict=True) if result.failure} == bad


def test_the_seeds_of_a_trial_stay_together() -> None:
    retries, pack = Retries(), pack_of(3, 2, Halving((5,)))
    retries.failed(pack, "x", own=True)
    (first, second), _ = retries.failed(pack, "x", own=True)
    assert (first.runs, second.runs) == (pack.runs[:2], pack.runs[2:])
    assert {part.halving for part in (first, second)} == {pack.halving}
    assert len({pack.name, first.name, second.name}) == 3


def test_parts_are_reassembled_in_order_and_their_seconds_are_added() -> None:
    pack = pack_of(2, 1)
    retries = Retries()
    retries.failed(pack, "x", own=True)
    (first, second), _ = retries.failed(pack, "x", own=True)
    assert retries.reassembled(Outcome(second, [trained(second.runs[0])], 2.0)) is None
    whole = retries.reassembled(Outcome(first, [trained(first.runs[0])], 3.0))
    assert whole == Outcome(pack, [trained(run) for run in pack.runs], 5.0)


def test_failures_of_one_pack_do_not_count_for_another() -> None:
    retries = Retries()
    one, other = pack_of(1, 1), Pack("q", pack_of(1, 1).runs, EpochSelection())
    assert retries.failed(one, "x", own=True) == ([one], None)
    assert retries.failed(other, "x", own=True) == ([other], None)
    _, outcome = retries.failed(one, "x", own=True)
    assert outcome is not None
    assert retries.failures == 3
