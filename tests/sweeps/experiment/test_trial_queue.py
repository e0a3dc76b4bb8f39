from __future__ import annotations

import functools
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from support.ledgers import pack_lines

from lt_train.features.bank import FeatureBank
from lt_train.retrain import fused
from lt_train.retrain.base import Pack
from sweeps.config.spec import SweepSpec
from sweeps.config.trials import search_size
from sweeps.experiment.prepare import prepare
from sweeps.experiment.trial_queue import TrialQueue
from sweeps.store.ledger import Ledger


def work_through(queue: TrialQueue, bank: FeatureBank, choose: Callable[[list[Pack]], int], workers: int) -> list[str]:
    """Train everything with `workers` packs in flight, finishing them in the order that `choose` says."""
    in_flight: list[Pack] = []
    order: list[str] = []
    while not queue.exhausted():
        while len(in_flight) < workers and (pack := queue.next_pack()) is not None:
            in_flight.append(pack)
        assert in_flight, "a schedule that is not exhausted has work when none is in flight"
        pack = in_flight.pop(choose(in_flight))
        order.append(pack.name)
        queue.complete(pack, fused.fit(bank, pack.runs, rule=pack.rule), 0.0)
    assert queue.next_pack() is None
    return order


def any_of(generator: random.Random, packs: list[Pack]) -> int:
    return generator.randrange(len(packs))


@pytest.fixture
def spec(small_sweep: Callable[..., SweepSpec]) -> SweepSpec:
    return small_sweep(selection={"seeds": 2, "finalists": 2}, resources={"lanes_per_pack": 2})


@pytest.fixture
def bank(spec: SweepSpec) -> FeatureBank:
    return prepare(spec)


def trial_values(queue: TrialQueue) -> list[tuple[str, dict[str, object], object]]:
    return [(trial.name, trial.params, queue.objective(trial)) for trial in queue.trials.values()]


def test_which_trials_are_tried_does_not_depend_on_workers_or_order(spec: SweepSpec, bank: FeatureBank, tmp_path: Path):
    ledger = Ledger(tmp_path / "one")
    alone = TrialQueue(spec, bank, ledger)
    first_order = work_through(alone, bank, lambda packs: 0, workers=1)
    ledger.close()
    for seed in range(5):
        choose = functools.partial(any_of, random.Random(seed))
        ledger = Ledger(tmp_path / f"many{seed}")
        many = TrialQueue(spec, bank, ledger)
        order = work_through(many, bank, choose, workers=4)
        ledger.close()
        assert order != first_order, "the test must exercise another order"
        assert trial_values(many) == trial_values(alone)
        assert many.winner() == alone.winner()


def test_generation_g_plus_one_waits_for_g_minus_one(spec: SweepSpec, bank: FeatureBank, tmp_path: Path):
    ledger = Ledger(tmp_path)
    queue = TrialQueue(spec, bank, ledger)
    asked = [trial.number for trial in queue.trials.values() if trial.phase == "search"]
    assert asked == [0, 1, 2, 3], "two proposal batches of two are asked before anything is known"
    packs = [pack for _ in range(99) if (pack := queue.next_pack()) is not None]
    assert queue.next_pack() is None
    assert not queue.exhausted()
    by_name = {pack.name: pack for pack in packs}
    # The whole second proposal batch, and half of the first: nothing new may be asked.
    for name in ("search-0001-0", "search-0001-1", "search-0000-0"):
        queue.complete(by_name[name], fused.fit(bank, by_name[name].runs), 0.0)
    assert queue.next_pack() is None
    last = by_name["search-0000-1"]
    queue.complete(last, fused.fit(bank, last.runs), 0.0)
    assert len([trial for trial in queue.trials.values() if trial.phase == "search"]) == 7
    ledger.close()


@pytest.mark.parametrize("kept_lines", [0, 1, 3, 5, 8, 99])
def test_a_replay_from_any_prefix_of_the_ledger_finds_the_same_and_trains_only_the_rest(
    spec: SweepSpec, bank: FeatureBank, tmp_path: Path, kept_lines: int
):
    ledger = Ledger(tmp_path)
    whole = TrialQueue(spec, bank, ledger)
    work_through(whole, bank, lambda packs: len(packs) - 1, workers=3)
    ledger.close()
    lines = ledger.path.read_bytes().splitlines(keepends=True)
    ledger.path.write_bytes(b"".join(lines[: 1 + kept_lines]))
    ledger = Ledger(tmp_path)
    finished = set(ledger.finished)
    again = TrialQueue(spec, bank, ledger)
    assert again.cached <= len(finished)
    work_through(again, bank, lambda packs: 0, workers=2)
    ledger.close()
    assert trial_values(again) == trial_values(whole)
    assert again.winner() == whole.winner()
    keys = [run["key"] for line in pack_lines(tmp_path) for run in line["runs"]]
    assert len(keys) == len(set(keys)), "no run is trained twice"
    assert again.cached == len(finished)


def test_a_duplicate_proposal_is_not_trained_again(small_sweep: Callable[..., SweepSpec], tmp_path: Path):
    spec = small_sweep(
        search={"algorithm": "random", "trials": 8, "space": {"method.lr": {"choice": [1e-3, 1e-2]}}}, baselines=[]
    )
    ledger = Ledger(tmp_path)
    bank = prepare(spec)
    queue = TrialQueue(spec, bank, ledger)
    work_through(queue, bank, lambda packs: 0, workers=2)
    assert len(ledger.finished) == 4  # two settings with two seeds
    assert queue.cached == 12
    assert len([name for name in queue.finished if name.startswith("search")]) == 8
    winner = queue.winner()
    assert winner is not None
    # The winner's heads are those of its duplicates too: they must have outlived them.
    assert queue.ledger.head(queue.finished[winner.name][0].key)["weight"].shape == (6, 12)
    ledger.close()


def test_finalists_run_on_fresh_seeds_and_baselines_with_them(spec: SweepSpec, bank: FeatureBank, tmp_path: Path):
    ledger = Ledger(tmp_path)
    queue = TrialQueue(spec, bank, ledger)
    work_through(queue, bank, lambda packs: 0, workers=1)
    finalists = [trial for trial in queue.trials.values() if trial.phase == "finalist"]
    assert [trial.number for trial in finalists] == [trial.number for trial in queue.ranking("search")[:2]]
    assert all(trial.seeds == (2, 3) for trial in finalists)
    assert queue.trials["baseline-ce"].seeds == (2, 3)
    assert queue.trials["baseline-vanilla"].seeds == (2,)
    winner = queue.winner()
    assert winner is not None
    assert winner.phase == "finalist"
    assert queue.ledger.head(queue.finished[winner.name][0].key)["weight"].shape == (6, 12)
    assert search_size(spec).runs == 7 * 2 + 3 + 2 * 2
    ledger.close()


def test_a_trial_that_diverges_is_failed_and_the_search_goes_on(small_sweep: Callable[..., SweepSpec], tmp_path: Path):
    spec = small_sweep(
        search={"algorithm": "grid", "trials": 3, "space": {"method.lr": {"choice": [1e-2, 1e38, 2e-2]}}}, baselines=[]
    )
    ledger = Ledger(tmp_path)
    bank = prepare(spec)
    queue = TrialQueue(spec, bank, ledger)
    work_through(queue, bank, lambda packs: 0, workers=1)
    failed = queue.finished["search-0001"]
    assert all("diverged" in (record.failure or "") for record in failed)
    winner = queue.winner()
    assert winner is not None
    assert winner.params["method.lr"] in (1e-2, 2e-2)
    ledger.close()
