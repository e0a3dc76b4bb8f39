"""The trial queue: trials and packs follow from the sweep file alone, also after an interruption."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.ledgers import cut, run_lines
from support.queues import first, in_random_order, last, outcomes, train_all

from lt_train.features.bank import FeatureBank
from lt_train.retrain import fused
from lt_train.retrain.base import Halving, Pack, RunResult
from sweeps.analysis.selection import ranking
from sweeps.config.spec import SweepSpec
from sweeps.config.trials import Trial, search_size
from sweeps.experiment.prepare import prepare
from sweeps.experiment.trial_queue import TrialQueue
from sweeps.search.base import Tried
from sweeps.store.ledger import Ledger

MakeSweep = Callable[..., SweepSpec]

HALVED: dict[str, Any] = {
    "search": {
        "trials": 18,
        "proposal_batch": 8,
        "early_stopping": {"kind": "successive_halving", "rungs": [1, 2]},
    },
    "selection": {"seeds": 2, "finalists": 2},
    "resources": {"lanes_per_pack": 8},
}


@pytest.fixture
def spec(small_sweep: MakeSweep) -> SweepSpec:
    return small_sweep(selection={"seeds": 2, "finalists": 2}, resources={"lanes_per_pack": 2})


@pytest.fixture
def halved(small_sweep: MakeSweep) -> SweepSpec:
    return small_sweep(**HALVED)


@pytest.fixture
def bank(spec: SweepSpec) -> FeatureBank:
    return prepare(spec)


def winner_of(queue: TrialQueue) -> Trial:
    winner = queue.winner()
    assert winner is not None
    return winner.trial


def by_name(packs: Iterable[Pack]) -> dict[str, Pack]:
    return {pack.name: pack for pack in packs}


def test_trials_do_not_depend_on_workers_or_order(spec: SweepSpec, bank: FeatureBank, tmp_path: Path):
    ledger = Ledger(tmp_path / "one")
    alone = TrialQueue(spec, bank, ledger)
    order = train_all(alone, bank)
    ledger.close()
    for seed in range(5):
        ledger = Ledger(tmp_path / f"many{seed}")
        many = TrialQueue(spec, bank, ledger)
        packs = train_all(many, bank, in_random_order(seed), workers=4)
        ledger.close()
        assert packs != order, "the test must exercise another order"
        assert by_name(packs) == by_name(order)
        assert outcomes(many) == outcomes(alone)
        assert winner_of(many) == winner_of(alone)


def test_proposal_batch_g_plus_one_waits_for_g_minus_one(spec: SweepSpec, bank: FeatureBank, tmp_path: Path):
    ledger = Ledger(tmp_path)
    queue = TrialQueue(spec, bank, ledger)
    proposed = [trial.number for trial in queue.trials.values() if trial.phase == "search"]
    assert proposed == [0, 1, 2, 3], "two batches of two are proposed before any outcome is known"
    packs = by_name(iter(queue.next_pack, None))
    assert not queue.exhausted()
    # The whole second batch and half of the first.
    for name in ("search-0001-0", "search-0001-1", "search-0000-0"):
        queue.complete(packs[name], fused.fit(bank, packs[name].runs), 0.0)
    assert queue.next_pack() is None
    queue.complete(packs["search-0000-1"], fused.fit(bank, packs["search-0000-1"].runs), 0.0)
    assert len([trial for trial in queue.trials.values() if trial.phase == "search"]) == 7
    ledger.close()


@pytest.mark.parametrize("kept", [0, 1, 3, 5, 8, 99])
def test_a_resume_after_any_number_of_packs_trains_only_the_rest(
    spec: SweepSpec, bank: FeatureBank, tmp_path: Path, kept: int
):
    ledger = Ledger(tmp_path)
    whole = TrialQueue(spec, bank, ledger)
    train_all(whole, bank, last, workers=3)
    ledger.close()
    expected = outcomes(whole)
    cut(tmp_path, kept)
    ledger = Ledger(tmp_path)
    recorded = len(ledger.runs)
    assert recorded == len(run_lines(tmp_path))
    resumed = TrialQueue(spec, bank, ledger)
    trained = train_all(resumed, bank, first, workers=2)
    ledger.close()
    assert outcomes(resumed) == expected
    assert winner_of(resumed) == winner_of(whole)
    keys = [run["key"] for run in run_lines(tmp_path)]
    assert len(keys) == len(set(keys)), "no run is trained twice"
    assert sum(len(pack.runs) for pack in trained) == len(keys) - recorded


def test_a_duplicate_proposal_is_not_trained_again(small_sweep: MakeSweep, tmp_path: Path):
    spec = small_sweep(
        search={"algorithm": "random", "trials": 8, "space": {"method.lr": {"choice": [1e-3, 1e-2]}}}, baselines=[]
    )
    ledger, bank = Ledger(tmp_path), prepare(spec)
    queue = TrialQueue(spec, bank, ledger)
    train_all(queue, bank, workers=2)
    assert len(ledger.runs) == len(run_lines(tmp_path)) == 4  # two configurations with two seeds
    assert len([name for name in queue.finished if name.startswith("search")]) == 8
    winner = queue.winner()
    assert winner is not None
    # Duplicates share the winner's heads, which must be kept although the duplicates do not win.
    assert ledger.head(winner.records[0].key)["weight"].shape == (6, 12)
    ledger.close()


def test_finalists_and_baselines_run_on_fresh_seeds(spec: SweepSpec, bank: FeatureBank, tmp_path: Path):
    ledger = Ledger(tmp_path)
    queue = TrialQueue(spec, bank, ledger)
    train_all(queue, bank)
    finalists = [trial for trial in queue.trials.values() if trial.phase == "finalist"]
    best = ranking(queue.finished.values(), spec, "search")[:2]
    assert [trial.number for trial in finalists] == [one.trial.number for one in best]
    assert all(trial.seeds == (2, 3) for trial in finalists)
    assert queue.trials["baseline-ce"].seeds == (2, 3)
    assert queue.trials["baseline-vanilla"].seeds == (2,)
    winner = queue.winner()
    assert winner is not None
    assert winner.trial.phase == "finalist"
    assert ledger.head(winner.records[0].key)["weight"].shape == (6, 12)
    assert search_size(spec).runs == 7 * 2 + 3 + 2 * 2
    ledger.close()


def test_the_search_continues_after_a_diverged_trial(small_sweep: MakeSweep, tmp_path: Path):
    spec = small_sweep(
        search={"algorithm": "grid", "trials": 3, "space": {"method.lr": {"choice": [1e-2, 1e38, 2e-2]}}}, baselines=[]
    )
    ledger, bank = Ledger(tmp_path), prepare(spec)
    queue = TrialQueue(spec, bank, ledger)
    train_all(queue, bank)
    assert all("diverged" in (record.failure or "") for record in queue.finished["search-0001"].records)
    assert winner_of(queue).params["method.lr"] in (1e-2, 2e-2)
    ledger.close()


# Packs and early stopping


def test_only_trials_of_the_search_are_halved_in_even_packs(halved: SweepSpec, bank: FeatureBank, tmp_path: Path):
    ledger = Ledger(tmp_path)
    queue = TrialQueue(halved, bank, ledger)
    packs = by_name(train_all(queue, bank))
    ledger.close()
    searched = {f"search-{batch:04d}-{number}" for batch in (0, 1) for number in (0, 1)} | {"search-0002-0"}
    assert {name for name, pack in packs.items() if pack.halving is not None} == searched
    assert {packs[name].halving for name in searched} == {Halving((1, 2), 2.0)}
    assert set(packs) == searched | {"baseline-0", "baseline-1", "finalist-0"}
    for name in searched:
        trials = len(packs[name].runs) // 2
        stops = [one.stopped for one in queue.finished.values() if one.trial.runs()[0] in packs[name].runs]
        assert len(stops) == trials
        assert stops.count(1) == trials - -(-trials // 2), "half of them after the first rung"
        assert stops.count(None) == 1
    assert all(one.stopped is None for one in queue.finished.values() if one.trial.phase != "search")


def test_early_stopping_does_not_depend_on_workers_or_order(halved: SweepSpec, bank: FeatureBank, tmp_path: Path):
    ledger = Ledger(tmp_path / "one")
    alone = TrialQueue(halved, bank, ledger)
    order = train_all(alone, bank)
    ledger.close()
    for seed in range(3):
        ledger = Ledger(tmp_path / f"many{seed}")
        many = TrialQueue(halved, bank, ledger)
        packs = train_all(many, bank, in_random_order(seed), workers=4)
        ledger.close()
        assert packs != order, "the test must exercise another order"
        assert by_name(packs) == by_name(order)
        assert outcomes(many) == outcomes(alone)
        assert winner_of(many) == winner_of(alone)


@pytest.mark.parametrize("kept", [0, 1, 2, 3, 4, 6, 99])
def test_a_resume_trains_the_same_packs_as_a_whole(halved: SweepSpec, bank: FeatureBank, tmp_path: Path, kept: int):
    ledger = Ledger(tmp_path)
    whole = TrialQueue(halved, bank, ledger)
    packs = by_name(train_all(whole, bank, in_random_order(1), workers=3))
    ledger.close()
    expected = outcomes(whole)
    cut(tmp_path, kept)
    ledger = Ledger(tmp_path)
    resumed = TrialQueue(halved, bank, ledger)
    rest = by_name(train_all(resumed, bank, in_random_order(2), workers=2))
    ledger.close()
    assert rest == {name: pack for name, pack in packs.items() if name in rest}
    assert len(rest) == max(0, len(packs) - kept)
    assert outcomes(resumed) == expected
    assert winner_of(resumed) == winner_of(whole)


def test_a_pack_whose_file_is_missing_is_trained_whole(halved: SweepSpec, bank: FeatureBank, tmp_path: Path):
    ledger = Ledger(tmp_path)
    whole = TrialQueue(halved, bank, ledger)
    packs = by_name(train_all(whole, bank))
    ledger.close()
    expected = outcomes(whole)
    (file,) = (tmp_path / "packs").glob("search-0001-0.*")
    file.unlink()
    ledger = Ledger(tmp_path)
    resumed = TrialQueue(halved, bank, ledger)
    rest = train_all(resumed, bank)
    ledger.close()
    assert rest == [packs["search-0001-0"]]
    assert outcomes(resumed) == expected


def test_a_duplicate_is_packed_once_and_stopped_like_its_original(small_sweep: MakeSweep, tmp_path: Path):
    space = {"method.lr": {"choice": [1e-4, 1e-3, 1e-2, 0.1]}}
    search = HALVED["search"] | {"algorithm": "random", "space": space}
    spec = small_sweep(**HALVED | {"search": search, "baselines": []})
    bank = prepare(spec)
    seen = []
    for choose in (first, in_random_order(0), in_random_order(1)):
        ledger = Ledger(tmp_path / str(len(seen)))
        queue = TrialQueue(spec, bank, ledger)
        packs = [pack for pack in train_all(queue, bank, choose, workers=3) if pack.halving]
        ledger.close()
        runs = [run for pack in packs for run in pack.runs]
        assert len(runs) == len(set(runs)) == 8, "four configurations with two seeds, once each"
        for trial in queue.trials.values():
            twins = [other for other in queue.finished.values() if other.trial.runs() == trial.runs()]
            assert len({twin.stopped for twin in twins}) == 1
        seen.append((by_name(packs), outcomes(queue)))
    assert seen[0] == seen[1] == seen[2]


def test_a_stopped_trial_neither_wins_nor_becomes_a_finalist(
    halved: SweepSpec, bank: FeatureBank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The last trials of each pack are stopped with an accuracy that no other trial reaches."""

    def train(bank: FeatureBank, pack: Pack) -> list[RunResult]:
        results = fused.fit(bank, pack.runs, rule=pack.rule)
        if pack.halving is None:
            return results
        perfect = np.ones((1, 4), dtype=np.float32)
        stopped = [
            replace(result, stopped=1, val_accuracy=perfect, test_accuracy=perfect, train_loss=result.train_loss[:1])
            for result in results[2:]
        ]
        return [*results[:2], *(replace(r, kept=replace(r.kept, epoch=0)) for r in stopped if r.kept is not None)]

    learned: list[Tried] = []
    propose = type(halved.search.algorithm).propose

    def listen(self: Any, space: Any, seed: int, tried: list[Tried], count: int) -> list[dict[str, Any]]:
        learned[:] = tried
        return propose(self, space, seed, tried, count)

    monkeypatch.setattr(type(halved.search.algorithm), "propose", listen)
    ledger = Ledger(tmp_path)
    queue = TrialQueue(halved, bank, ledger)
    train_all(queue, bank, train=train)
    searched = {one.trial.number: one for one in queue.finished.values() if one.trial.phase == "search"}
    stopped = {number for number, one in searched.items() if one.stopped == 1}
    whole = searched.keys() - stopped
    assert len(whole) == 5, "the first of each pack"
    assert all(searched[number].objective == 1 for number in stopped)
    # The last batch was proposed when the first was complete and the second was running.
    assert [one.params for one in learned] == [searched[number].trial.params for number in range(16)]
    assert {number for number in range(8) if learned[number] == Tried(learned[number].params, "stopped", 1.0, 1)} == (
        stopped & set(range(8))
    )
    assert all(learned[number].value == searched[number].objective for number in range(8))
    assert {one.state for one in learned[8:]} == {"running"}
    assert [one.trial.number for one in ranking(queue.finished.values(), halved, "search")] == sorted(
        whole, key=lambda number: (-(searched[number].objective or 0), number)
    )
    finalists = {trial.number for trial in queue.trials.values() if trial.phase == "finalist"}
    assert finalists <= whole
    assert len(finalists) == 2
    winner = queue.winner()
    assert winner is not None
    assert winner.trial.number in finalists
    assert ledger.head(winner.records[0].key)["weight"].shape == (6, 12)
    ledger.close()


@pytest.mark.parametrize("early_stopping", [None, HALVED["search"]["early_stopping"]])
def test_candidates_share_runs_with_baselines_but_not_with_each_other(
    small_sweep: MakeSweep, tmp_path: Path, early_stopping: Any
):
    """Which of two candidates requests a run first depends on timing, so a shared run would change its pack."""
    search = {
        "algorithm": "grid",
        "trials": 4,
        "proposal_batch": 2,
        "space": {"method.lr": {"choice": [1e-4, 1e-3, 1e-2, 0.1]}},
    }
    spec = small_sweep(
        method=None,
        methods=[{"name": "a", "method": {"kind": "los"}}, {"name": "b", "method": {"kind": "los"}}],
        search=search | ({"early_stopping": early_stopping} if early_stopping else {}),
        baselines=[{"kind": "los", "lr": 1e-3}],
        selection={"seeds": 2},
        resources={"lanes_per_pack": 8},
    )
    bank = prepare(spec)
    seen = []
    for choose in (first, *(in_random_order(seed) for seed in range(4))):
        ledger = Ledger(tmp_path / str(len(seen)))
        queue = TrialQueue(spec, bank, ledger)
        packs = train_all(queue, bank, choose, workers=3)
        ledger.close()
        seen.append((by_name(packs), outcomes(queue)))
        runs = [run for pack in packs for run in pack.runs]
        # The baseline and each candidate's four configurations; one is the baseline's run unless it may be stopped.
        assert len(runs) == 2 + 2 * 2 * (4 if early_stopping else 3)
    assert all(one == seen[0] for one in seen)


def test_pack_sizes_are_described_before_the_first_is_trained(halved: SweepSpec, bank: FeatureBank, tmp_path: Path):
    ledger = Ledger(tmp_path)
    queue = TrialQueue(halved, bank, ledger)
    assert queue.pack_sizes().startswith("packs of up to 8 runs: ")
    assert "resources.lanes_per_pack is 8" in queue.pack_sizes()
    train_all(queue, bank)
    assert queue.pack_sizes() == ""
    ledger.close()


def test_automatic_packs_hold_a_proposal_batch_if_memory_allows(small_sweep: MakeSweep, tmp_path: Path):
    sizes = {}
    for memory, text in (("2GiB", "2 GiB per pack"), ("100KiB", "100 KiB per pack")):
        spec = small_sweep(search={"trials": 12, "proposal_batch": 12}, resources={"memory_per_pack": memory})
        ledger = Ledger(tmp_path / memory)
        queue = TrialQueue(spec, prepare(spec), ledger)
        assert text in queue.pack_sizes()
        sizes[memory] = [len(pack.runs) for pack in iter(queue.next_pack, None) if pack.name.startswith("search")]
        ledger.close()
    assert sizes["2GiB"] == [24]
    assert len(sizes["100KiB"]) > 1
    assert sum(sizes["100KiB"]) == 24
    assert max(sizes["100KiB"]) - min(sizes["100KiB"]) <= 2
