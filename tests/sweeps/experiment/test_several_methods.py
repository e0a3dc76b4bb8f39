"""Several methods in one sweep: each is searched independently, and all are compared on equal terms."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.ledgers import cut, run_lines
from support.queues import first, in_random_order, last, outcomes, train_all

import sweeps
from sweeps.analysis.labels import short_params
from sweeps.analysis.result import MethodRow, Result
from sweeps.analysis.selection import ranking
from sweeps.config.spec import SweepSpec
from sweeps.config.trials import Trial, search_size, search_sizes
from sweeps.experiment.plan import plan
from sweeps.experiment.prepare import prepare
from sweeps.experiment.trial_queue import TrialQueue
from sweeps.store.ledger import Ledger
from sweeps.tracking.content import tracked_trial

MakeSweep = Callable[..., SweepSpec]

METHODS: list[Any] = [
    "vanilla",
    {"method": "los", "space": {"method.smooth_factor": {"uniform": [0.1, 0.95]}}},
    {"name": "los-cosine", "method": {"kind": "los", "head": "cosine"}, "training": {"epochs": 2}},
    {"method": "tau_norm", "space": {"method.post_hoc.tau": {"uniform": [0, 2]}}},
]


@pytest.fixture
def several(small_sweep: MakeSweep) -> MakeSweep:
    """`several(methods, ...)`: a small sweep of those methods, with a learning rate to share."""

    def make(methods: list[Any] = METHODS, **sections: Any) -> SweepSpec:
        search = {"trials": 5, "space": {"method.lr": {"loguniform": [1e-3, 1e-1]}}} | sections.pop("search", {})
        selection = {"seeds": 2, "finalists": 2} | sections.pop("selection", {})
        return small_sweep(method=None, methods=methods, search=search, selection=selection, **sections)

    return make


def winner_of(queue: TrialQueue) -> Trial:
    winner = queue.winner()
    assert winner is not None
    return winner.trial


def finished(spec: SweepSpec, directory: Path) -> TrialQueue:
    bank, ledger = prepare(spec), Ledger(directory)
    queue = TrialQueue(spec, bank, ledger)
    train_all(queue, bank)
    ledger.close()
    return queue


def test_trials_of_every_method_are_queued_at_once(several: MakeSweep, tmp_path: Path) -> None:
    spec, ledger = several(), Ledger(tmp_path)
    queue = TrialQueue(spec, prepare(spec), ledger)
    packs = {pack.name for _ in range(99) if (pack := queue.next_pack()) is not None}
    ledger.close()
    assert packs == {
        "baseline-0",
        "search-vanilla-0000-0",
        *(f"search-{name}-{batch:04d}-0" for name in ("los", "los-cosine", "tau_norm") for batch in (0, 1)),
    }


def test_trials_do_not_depend_on_workers_or_order(several: MakeSweep, tmp_path: Path) -> None:
    spec = several(resources={"lanes_per_pack": 2})
    bank = prepare(spec)
    alone = finished(spec, tmp_path / "one")
    for seed in range(4):
        ledger = Ledger(tmp_path / f"many{seed}")
        many = TrialQueue(spec, bank, ledger)
        order = [pack.name for pack in train_all(many, bank, in_random_order(seed), workers=5)]
        ledger.close()
        assert order != sorted(order)
        assert outcomes(many) == outcomes(alone)
        assert winner_of(many) == winner_of(alone)


@pytest.mark.parametrize("kept", [0, 2, 5, 9, 99])
def test_a_resume_after_any_number_of_packs_trains_only_the_rest(several: MakeSweep, tmp_path: Path, kept: int) -> None:
    spec = several()
    bank, ledger = prepare(spec), Ledger(tmp_path)
    whole = TrialQueue(spec, bank, ledger)
    train_all(whole, bank, last, workers=3)
    ledger.close()
    expected = outcomes(whole)
    cut(tmp_path, kept)
    ledger = Ledger(tmp_path)
    recorded = len(ledger.runs)
    resumed = TrialQueue(spec, bank, ledger)
    trained = train_all(resumed, bank, first, workers=2)
    ledger.close()
    assert outcomes(resumed) == expected
    keys = [run["key"] for run in run_lines(tmp_path)]
    assert len(keys) == len(set(keys)), "no run is trained twice"
    assert sum(len(pack.runs) for pack in trained) == len(keys) - recorded


def test_adding_a_method_does_not_change_the_trials_of_others(several: MakeSweep, tmp_path: Path) -> None:
    before = finished(several(METHODS[:3]), tmp_path / "before")
    added = {"method": "focal", "space": {"method.gamma": {"uniform": [0, 5]}}}
    after = finished(several([added, *METHODS]), tmp_path / "after")
    for name in ("vanilla", "los", "los-cosine"):
        assert outcomes(after, name) == outcomes(before, name)
        assert len(outcomes(before, name)) > 0


def test_methods_with_equal_kind_and_space_are_searched_independently(several: MakeSweep, tmp_path: Path) -> None:
    queue = finished(several([METHODS[1], {**METHODS[1], "name": "again"}]), tmp_path)
    one, other = ([trial.params for trial in queue.trials.values() if trial.candidate == n] for n in ("los", "again"))
    assert len(one) == len(other)
    assert not [params for params in one if params in other]


def test_each_method_has_its_finalists_on_fresh_seeds(several: MakeSweep, tmp_path: Path) -> None:
    spec = several()
    queue = finished(spec, tmp_path)
    for name, seeds in (("los", (2, 3)), ("los-cosine", (2, 3)), ("tau_norm", (2,)), ("vanilla", (2,))):
        finalists = [t for t in queue.trials.values() if t.candidate == name and t.phase == "finalist"]
        best = ranking(queue.finished.values(), spec, "search", name)[:2]
        assert [t.number for t in finalists] == [one.trial.number for one in best]
        assert {t.seeds for t in finalists} == {seeds}
    highest = max(one.objective or 0 for one in queue.finished.values() if one.trial.phase == "finalist")
    winner = queue.winner()
    assert winner is not None
    assert (winner.trial.phase, winner.objective) == ("finalist", highest)
    sizes = {candidate.name: size for candidate, size in search_sizes(spec)}
    assert {name: size.trials for name, size in sizes.items()} == {
        "vanilla": 1, "los": 5, "los-cosine": 5, "tau_norm": 5,
    }  # fmt: skip
    wanted = sum(len(trial.seeds) for trial in queue.trials.values())
    assert search_size(spec).runs == wanted == 1 + (1 + 10 + 10 + 5) + (1 + 4 + 4 + 2)


def test_the_result_ranks_methods_and_counts_their_runs(several: MakeSweep) -> None:
    spec = several(selection={"seeds": 3, "finalists": 1})
    result = sweeps.run(spec)
    assert Result.model_validate_json((Path(spec.storage) / "small" / "result.json").read_text()) == result
    assert sorted(row.method for row in result.methods) == ["los", "los-cosine", "tau_norm", "vanilla"]
    scores = [row.objective for row in result.methods]
    assert scores == sorted(scores, reverse=True)
    winner, rows = result.winner, {row.method: row for row in result.methods}
    assert winner is not None
    best = result.methods[0]
    assert {name: getattr(best, name) for name in type(winner).model_fields} == dict(winner)
    assert rows["los-cosine"].params["head"] == {"kind": "cosine", "scale": 30.0, "squash": False}
    assert rows["los-cosine"].params["epochs"] == 2
    assert rows["los"].params["epochs"] == 3
    assert set(rows["los"].searched) == {"method.lr", "method.smooth_factor"}
    assert (rows["los"].trials, rows["los"].runs, rows["los"].failed_trials) == (5, 5 * 3 + 3, 0)
    assert (rows["tau_norm"].trials, rows["tau_norm"].runs) == (5, 6)
    assert (rows["vanilla"].trials, rows["vanilla"].runs) == (1, 2)
    assert rows["vanilla"].gain["vanilla"]["acc_all"].difference.value == 0.0
    for row in result.methods:
        _check_differences(row, best, result)
    assert {trial.method for trial in result.trials} == set(rows)
    # The baseline vanilla and the method vanilla are the same run, which is trained once.
    assert result.runs.finished == sum(row.runs for row in result.methods)
    assert result.runs.shared == 1


def _check_differences(row: MethodRow, best: MethodRow, result: Result) -> None:
    vanilla = result.baselines["vanilla"].mean.acc_all.value
    assert row.gain["vanilla"]["acc_all"].difference.value == pytest.approx(
        (row.mean.acc_all.value or 0) - (vanilla or 0)
    )
    behind = row.behind["acc_all"]
    assert behind.difference.value == pytest.approx((row.mean.acc_all.value or 0) - (best.mean.acc_all.value or 0))
    if row is not best and behind.difference.low is not None:
        assert row.tied == (behind.verdict == "tied")


def test_a_method_whose_trials_all_fail_does_not_stop_the_others(several: MakeSweep) -> None:
    broken = {"name": "broken", "method": "ce", "space": {"method.lr": {"loguniform": [1e37, 1e38]}}}
    result = sweeps.run(several([broken, METHODS[1]]))
    assert [row.method for row in result.methods] == ["los"]
    assert result.winner is not None
    assert result.winner.method == "los"
    assert any(note.startswith("broken: ") for note in result.notes)
    assert result.runs.failed == 10


def test_resuming_a_finished_sweep_gives_the_same_result(several: MakeSweep) -> None:
    spec = several()
    result = sweeps.run(spec)
    resumed = sweeps.resume(Path(spec.storage) / spec.name)
    assert (resumed.winner, resumed.methods, resumed.trials) == (result.winner, result.methods, result.trials)
    assert resumed.runs.finished == result.runs.finished


def test_artifacts_contain_every_method(several: MakeSweep) -> None:
    spec = several()
    result = sweeps.run(spec)
    place = Path(spec.storage) / "small" / "artifacts"
    with (place / "trials.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert {row["method"] for row in rows if row["phase"] == "search"} == {row.method for row in result.methods}
    assert {bool(row["method.post_hoc.tau"]) for row in rows if row["method"] == "los"} == {False}
    with (place / "per_class.csv").open() as stream:
        classes = list(csv.DictReader(stream))
    names = {name.removesuffix(" accuracy") for name in classes[0] if name.endswith(" accuracy")}
    assert {name.partition(",")[0].removesuffix(" (winner)") for name in names} == {
        row.method for row in result.methods
    }
    for row in result.methods[1:]:
        accuracy = np.mean([float(line[f"{row.method}, seed {row.best_of.seed} accuracy"]) for line in classes])
        assert accuracy == pytest.approx(row.best_of.acc_all, abs=1e-6)
    assert "| los-cosine " in (place / "table.md").read_text()


def test_the_plan_counts_every_method(several: MakeSweep) -> None:
    planned = plan(several())
    assert planned.methods == {"vanilla": 1, "los": 5, "los-cosine": 5, "tau_norm": 5}
    assert (planned.trials, planned.runs) == (16, 38)


def test_tracked_trials_have_the_method_and_values_by_path(several: MakeSweep, tmp_path: Path) -> None:
    queue = finished(several(), tmp_path)
    by_name = {name: tracked_trial(runs, queue.spec) for name, runs in queue.finished.items()}
    cosine, tau = by_name["search-los-cosine-0000"], by_name["search-tau_norm-0001"]
    assert cosine.name.startswith("los-cosine lr=")
    assert cosine.params | {"method": "los-cosine", "kind": "los", "head.kind": "cosine", "epochs": 2} == cosine.params
    assert cosine.params["head.scale"] == 30.0
    assert tau.name.startswith("tau_norm tau=")
    assert tau.params["post_hoc.tau"] == queue.trials["search-tau_norm-0001"].params["method.post_hoc.tau"]
    assert by_name["baseline-vanilla"].name == "vanilla (baseline)"


def test_a_zero_in_one_method_does_not_affect_a_log_scale_in_another(several: MakeSweep) -> None:
    path = "method.weight_decay"
    spec = several(
        [
            {"method": "los", "space": {path: {"loguniform": [1e-5, 1e-2]}}},
            {"method": "ce", "space": {path: {"choice": [0.0, 1e-4]}}},
        ],
        search={"algorithm": "random", "trials": 8},
        baselines=[],
        tracking={"kind": "none", "flush_timeout": 0.0},
    )
    result = sweeps.run(spec)
    assert {0.0, 1e-4} == {trial.params[path] for trial in result.trials if trial.method == "ce"}
    queue = finished(spec, Path(spec.storage) / spec.name)
    log_scaled = {
        runs.trial.candidate
        for runs in queue.finished.values()
        if "log10_weight_decay" in tracked_trial(runs, spec).logarithms
    }
    assert log_scaled == {"los"}


def test_parameters_with_equal_names_are_shown_with_their_paths() -> None:
    assert short_params({"method.lr": 0.1, "method.head.scale": 12.0}) == "lr=0.1 scale=12"
    assert short_params({"method.beta": 0.9999, "method.lr": 1e-5}) == "beta=0.9999 lr=1e-5"
    both = short_params({"method.tau": 1.0, "method.post_hoc.tau": 0.5, "method.weight_decay": 0.0})
    assert both == "method.tau=1 method.post_hoc.tau=0.5 wd=0"
