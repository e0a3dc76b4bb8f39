"""Packs in a schedule: who is in one follows from the sweep file alone, so that whom a scheduler stops does too."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lt_train.features.bank import FeatureBank
from lt_train.retrain import fused
from lt_train.retrain.base import Halving, Pack, RunResult
from sweeps.config.spec import SweepSpec
from sweeps.experiment.prepare import prepare
from sweeps.experiment.trial_queue import TrialQueue
from sweeps.store.ledger import Ledger

MakeSweep = Callable[..., SweepSpec]
Train = Callable[[FeatureBank, Pack], list[RunResult]]

HALVED: dict[str, Any] = {
    "search": {
        "trials": 18,
        "proposal_batch": 8,
        "early_stopping": {"kind": "successive_halving", "rungs": [1, 2]},
    },
    "selection": {"seeds": 2, "finalists": 2},
    "resources": {"lanes_per_pack": 8},
}


def train(bank: FeatureBank, pack: Pack) -> list[RunResult]:
    return fused.fit(bank, pack.runs, rule=pack.rule, halving=pack.halving)


def work_through(
    queue: TrialQueue, bank: FeatureBank, seed: int | None = None, workers: int = 1, train: Train = train
) -> list[Pack]:
    """Train everything; with a seed the packs in flight finish in an order of chance."""
    chance = random.Random(seed)
    in_flight: list[Pack] = []
    done: list[Pack] = []
    while not queue.exhausted():
        while len(in_flight) < workers and (pack := queue.next_pack()) is not None:
            in_flight.append(pack)
        pack = in_flight.pop(0 if seed is None else chance.randrange(len(in_flight)))
        queue.complete(pack, train(bank, pack), 0.0)
        done.append(pack)
    return done


@pytest.fixture
def spec(small_sweep: MakeSweep) -> SweepSpec:
    return small_sweep(**HALVED)


@pytest.fixture
def bank(spec: SweepSpec) -> FeatureBank:
    return prepare(spec)


def outcomes(queue: TrialQueue) -> list[tuple[Any, ...]]:
    """Everything about every trial that may be reported, to the last bit."""
    return [
        (
            name,
            queue.trials[name].params,
            queue.stopped(queue.trials[name]),
            [(record.key, record.test, record.val) for record in records],
        )
        for name, records in sorted(queue.finished.items())
    ]


def members(packs: list[Pack]) -> dict[str, Pack]:
    return {pack.name: pack for pack in packs}


def test_only_trials_of_the_search_are_halved_in_even_packs(spec: SweepSpec, bank: FeatureBank, tmp_path: Path):
    ledger = Ledger(tmp_path)
    queue = TrialQueue(spec, bank, ledger)
    packs = members(work_through(queue, bank))
    ledger.close()
    halving = {name: pack.halving for name, pack in packs.items()}
    searched = {f"search-{batch:04d}-{place}" for batch in (0, 1) for place in (0, 1)} | {"search-0002-0"}
    assert {name for name, rule in halving.items() if rule is not None} == searched
    assert {rule for name, rule in halving.items() if name in searched} == {Halving((1, 2), 2.0)}
    assert set(halving) == searched | {"baseline-0", "baseline-1", "finalist-0"}
    for name in searched:
        trials = len(packs[name].runs) // 2
        stops = [queue.stopped(trial) for trial in queue.trials.values() if trial.runs()[0] in packs[name].runs]
        assert len(stops) == trials
        assert stops.count(1) == trials - -(-trials // 2), "half of them after the first rung"
        assert stops.count(None) == 1
    assert all(queue.stopped(trial) is None for trial in queue.trials.values() if trial.phase != "search")


def test_whom_a_scheduler_stops_does_not_depend_on_workers_or_order(spec: SweepSpec, bank: FeatureBank, tmp_path: Path):
    ledger = Ledger(tmp_path / "one")
    alone = TrialQueue(spec, bank, ledger)
    first = work_through(alone, bank)
    ledger.close()
    for seed in range(3):
        ledger = Ledger(tmp_path / f"many{seed}")
        many = TrialQueue(spec, bank, ledger)
        packs = work_through(many, bank, seed, workers=4)
        ledger.close()
        assert [pack.name for pack in packs] != [pack.name for pack in first], "the test must exercise another order"
        assert members(packs) == members(first)
        assert outcomes(many) == outcomes(alone)
        assert many.winner() == alone.winner()


@pytest.mark.parametrize("kept_lines", [0, 1, 2, 3, 4, 6, 99])
def test_a_resume_makes_the_same_packs_whole_or_not_at_all(
    spec: SweepSpec, bank: FeatureBank, tmp_path: Path, kept_lines: int
):
    ledger = Ledger(tmp_path)
    whole = TrialQueue(spec, bank, ledger)
    first = members(work_through(whole, bank, seed=1, workers=3))
    ledger.close()
    lines = ledger.path.read_bytes().splitlines(keepends=True)
    ledger.path.write_bytes(b"".join(lines[: 1 + kept_lines]))
    ledger = Ledger(tmp_path)
    again = TrialQueue(spec, bank, ledger)
    rest = members(work_through(again, bank, seed=2, workers=2))
    ledger.close()
    assert rest == {name: pack for name, pack in first.items() if name in rest}
    assert len(rest) == max(0, len(first) - kept_lines)
    assert outcomes(again) == outcomes(whole)
    assert again.winner() == whole.winner()


def test_a_pack_of_which_the_ledger_has_a_part_is_trained_whole(spec: SweepSpec, bank: FeatureBank, tmp_path: Path):
    """No crash leaves such a ledger, a text editor does."""
    ledger = Ledger(tmp_path)
    whole = TrialQueue(spec, bank, ledger)
    first = members(work_through(whole, bank))
    ledger.close()
    lines = [json.loads(line) for line in ledger.path.read_text().splitlines()]
    (cut,) = [line for line in lines if line.get("pack") == "search-0001-0"]
    del cut["runs"][1:3]
    ledger.path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    ledger = Ledger(tmp_path)
    again = TrialQueue(spec, bank, ledger)
    rest = work_through(again, bank)
    ledger.close()
    assert rest == [first["search-0001-0"]]
    assert outcomes(again) == outcomes(whole)


def test_a_duplicate_is_not_in_a_pack_again_and_is_stopped_where_its_first_was(small_sweep: MakeSweep, tmp_path: Path):
    space = {"method.lr": {"choice": [1e-4, 1e-3, 1e-2, 0.1]}}
    search = HALVED["search"] | {"algorithm": "random", "space": space}
    spec = small_sweep(**HALVED | {"search": search, "baselines": []})
    bank = prepare(spec)
    seen = []
    for seed in (None, 0, 1):
        ledger = Ledger(tmp_path / str(seed))
        queue = TrialQueue(spec, bank, ledger)
        packs = [pack for pack in work_through(queue, bank, seed, workers=3) if pack.halving]
        ledger.close()
        runs = [run for pack in packs for run in pack.runs]
        assert len(runs) == len(set(runs)) == 8, "four settings with two seeds, once each"
        for trial in queue.trials.values():
            twins = [other for other in queue.trials.values() if other.runs() == trial.runs()]
            assert len({queue.stopped(twin) for twin in twins}) == 1
        seen.append((members(packs), outcomes(queue)))
    assert seen[0] == seen[1] == seen[2]


def test_a_stopped_trial_neither_wins_nor_is_a_finalist_however_good_it_was(
    spec: SweepSpec, bank: FeatureBank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Results by hand: the last trials of a pack are stopped, with an accuracy that nobody else reaches."""

    def fake(bank: FeatureBank, pack: Pack) -> list[RunResult]:
        results = fused.fit(bank, pack.runs, rule=pack.rule)
        if pack.halving is None:
            return results
        perfect = np.ones((1, 4), dtype=np.float32)
        stopped = [
            replace(result, stopped=1, val_accuracy=perfect, test_accuracy=perfect, train_loss=result.train_loss[:1])
            for result in results[2:]
        ]
        return [*results[:2], *(replace(r, kept=replace(r.kept, epoch=0)) for r in stopped if r.kept is not None)]

    told: dict[int, tuple[float | None, int | None]] = {}
    start = type(spec.search.algorithm).start

    class Listener:
        def __init__(self, space: Any, seed: int) -> None:
            self.search = start(spec.search.algorithm, space, seed)
            self.ask = self.search.ask

        def tell(self, number: int, value: float | None, stopped: int | None = None) -> None:
            told[number] = (value, stopped)
            self.search.tell(number, value, stopped)

    monkeypatch.setattr(type(spec.search.algorithm), "start", Listener)
    ledger = Ledger(tmp_path)
    queue = TrialQueue(spec, bank, ledger)
    work_through(queue, bank, train=fake)
    searched = [trial for trial in queue.trials.values() if trial.phase == "search"]
    stopped = {trial.number for trial in searched if queue.stopped(trial) == 1}
    whole = {trial.number for trial in searched} - stopped
    assert len(whole) == 5, "the first of each pack"
    assert all(queue.objective(trial) == 1 for trial in searched if trial.number in stopped)
    assert {number for number, (_, after) in told.items() if after == 1} == stopped
    assert all(told[number][0] == 1 for number in stopped)
    assert [trial.number for trial in queue.ranking("search")] == sorted(
        whole, key=lambda number: (-(told[number][0] or 0), number)
    )
    finalists = {trial.number for trial in queue.trials.values() if trial.phase == "finalist"}
    assert finalists <= whole
    assert len(finalists) == 2
    winner = queue.winner()
    assert winner is not None
    assert winner.number in finalists
    assert ledger.head(queue.finished[winner.name][0].key)["weight"].shape == (6, 12)
    ledger.close()


@pytest.mark.parametrize("early_stopping", ["all_epochs", HALVED["search"]["early_stopping"]])
def test_contestants_share_no_run_with_one_another_and_all_with_baselines(
    small_sweep: MakeSweep, tmp_path: Path, scheduler: Any
):
    """Which of two candidates asks first depends on timing; a run of both must not be in the pack of whoever did."""
    space = {"method.lr": {"choice": [1e-4, 1e-3, 1e-2, 0.1]}}
    spec = small_sweep(
        method=None,
        methods=[{"name": "a", "method": {"kind": "los"}}, {"name": "b", "method": {"kind": "los"}}],
        search={"algorithm": "grid", "trials": 4, "proposal_batch": 2, "space": space, "early_stopping": scheduler},
        baselines=[{"kind": "los", "lr": 1e-3}],
        selection={"seeds": 2},
        resources={"lanes_per_pack": 8},
    )
    bank = prepare(spec)
    seen = []
    for seed in (None, *range(4)):
        ledger = Ledger(tmp_path / str(seed))
        queue = TrialQueue(spec, bank, ledger)
        packs = work_through(queue, bank, seed, workers=3)
        ledger.close()
        seen.append((members(packs), outcomes(queue)))
        runs = [run for pack in packs for run in pack.runs]
        # The baseline, and each candidate's four settings: without the baseline's where those run whole too.
        assert len(runs) == 2 + 2 * 2 * (4 if scheduler != "all_epochs" else 3)
    assert all(one == seen[0] for one in seen)


def test_packs_are_told_before_the_first_is_trained(spec: SweepSpec, bank: FeatureBank, tmp_path: Path):
    ledger = Ledger(tmp_path)
    queue = TrialQueue(spec, bank, ledger)
    assert queue.pack_sizes().startswith("packs of up to 8 runs: ")
    assert queue.pack_sizes().endswith(" a run, resources.lanes_per_pack is 8")
    work_through(queue, bank)
    assert queue.pack_sizes() == ""
    ledger.close()


def test_auto_packs_hold_a_generation_where_memory_does(small_sweep: MakeSweep, tmp_path: Path):
    sizes = {}
    for memory in ("2GiB", "100KiB"):
        spec = small_sweep(search={"trials": 12, "proposal_batch": 12}, resources={"memory_per_pack": memory})
        ledger = Ledger(tmp_path / memory)
        queue = TrialQueue(spec, prepare(spec), ledger)
        packs = [pack for pack in iter(queue.next_pack, None) if pack.name.startswith("search")]
        sizes[memory] = [len(pack.runs) for pack in packs]
        assert (
            f"{memory} a pack".replace("GiB", " GiB").replace("KiB", " KiB")
            in TrialQueue(spec, prepare(spec), ledger).pack_sizes()
        )
        ledger.close()
    assert sizes["2GiB"] == [24]
    assert len(sizes["100KiB"]) > 1
    assert sum(sizes["100KiB"]) == 24
    assert max(sizes["100KiB"]) - min(sizes["100KiB"]) <= 2
