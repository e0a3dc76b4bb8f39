"""Extended training of the winner: it is a phase of the sweep like others and does not affect the result."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from support.ledgers import pack_lines, run_lines, runs_of, without_extended_training
from support.queues import in_random_order, outcomes, train_all
from support.stores import all_runs

import sweeps
from lt_train.features.bank import FeatureBank
from lt_train.methods.base import METHODS, TrainingSpec
from lt_train.retrain import fused, reference
from lt_train.retrain.base import EpochSelection, Run, RunResult
from sweeps.analysis import selection
from sweeps.analysis.load import read_sweep
from sweeps.analysis.result import Result
from sweeps.analysis.selection import TrialRuns
from sweeps.config.matrix import load_matrix
from sweeps.config.spec import SweepSpec, load_sweep
from sweeps.config.trials import Trial, search_size
from sweeps.experiment.plan import plan
from sweeps.experiment.prepare import prepare
from sweeps.experiment.trial_queue import TrialQueue
from sweeps.store.ledger import Ledger
from sweeps.store.records import Record, RunArrays

pytestmark = pytest.mark.slow

MakeSweep = Callable[..., SweepSpec]

WHOLE = {"selection": {"seeds": 2, "finalists": 2, "extended_training": 3}, "resources": {"lanes_per_pack": 2}}
HALVED = {
    "search": {"trials": 8, "proposal_batch": 4, "early_stopping": {"kind": "successive_halving", "rungs": [1, 2]}},
    "selection": {"extended_training": 2},
    "resources": {"lanes_per_pack": 8},
}


def directory(spec: SweepSpec) -> Path:
    return Path(spec.storage) / spec.name


def extended_runs(spec: SweepSpec) -> list[dict[str, Any]]:
    """The runs of this phase in the ledger, in seed order."""
    return [run for run in runs_of(spec) if run["phase"] == "extended"]


def test_it_is_on_by_default_and_the_default_is_not_in_the_fingerprint(small_sweep: MakeSweep) -> None:
    demo = load_sweep(Path(sweeps.__file__).parent / "specs" / "demo.yaml")
    assert demo.selection.extended_training == 3
    assert search_size(demo).extended_runs == 5
    three, two, none = (small_sweep(selection={"extended_training": times}) for times in (3, 2, None))
    document = three.resolved()
    del document["selection"]["extended_training"]
    assert sweeps.config.spec.load_resolved(document).fingerprint() == three.fingerprint()
    assert len({one.fingerprint() for one in (three, two, none)}) == 3


def test_the_winner_is_trained_longer_on_the_seeds_of_its_numbers(small_sweep: MakeSweep) -> None:
    spec = small_sweep(**WHOLE)
    result = sweeps.run(spec)
    winner, extended = result.winner, result.extended
    assert winner is not None
    assert extended is not None
    assert extended.seeds == winner.seeds == [2, 3]
    assert extended.params == winner.params | {"epochs": 9}
    assert pack_lines(directory(spec))[-1]["pack"] == "extended-0", "it is the last pack"
    (method,) = {run.method for run in read_sweep(directory(spec)).extended.trial.runs()}
    runs = [Run(method, TrainingSpec(epochs=9), seed) for seed in (2, 3)]
    plain = reference.fit(prepare(spec), runs)
    for run, expected in zip(extended_runs(spec), plain, strict=True):
        assert np.array(run["arrays"]["test"]) == pytest.approx(
            expected.test_accuracy, abs=0.011
        )  # an image of a hundred
    assert extended.mean.acc_all.value == pytest.approx(np.mean([run["acc_all"] for run in extended_runs(spec)]))
    curves = [run["arrays"]["val"] for run in extended_runs(spec)]
    assert extended.objective.value == pytest.approx(np.mean([curve[8][0] for curve in curves]))
    assert extended.test_change["acc_all"].difference.value == pytest.approx(
        extended.mean.acc_all.value - winner.mean.acc_all.value
    )
    assert (extended.times, result.extended_skipped) == (3, "")


@pytest.mark.parametrize("sections", [WHOLE, HALVED], ids=["whole", "halved"])
def test_it_changes_no_other_number(small_sweep: MakeSweep, sections: dict[str, Any]) -> None:
    spec = small_sweep(**sections)
    without = sections["selection"] | {"extended_training": None}
    plain = sweeps.run(small_sweep(**sections | {"name": "plain", "selection": without}))
    result = sweeps.run(spec)
    for part in ("winner", "trials", "methods", "baselines", "protocol"):
        assert getattr(result, part) == getattr(plain, part), part
    assert result.runs.finished == plain.runs.finished + 2
    assert result.runs.stopped == plain.runs.stopped
    assert (plain.extended, plain.extended_skipped) == (None, "")
    for run in extended_runs(spec):
        assert run["status"] == "finished", "it is not stopped early"


def test_it_does_not_depend_on_the_order_of_packs(small_sweep: MakeSweep, tmp_path: Path) -> None:
    spec = small_sweep(**WHOLE)
    bank = prepare(spec)
    found = []
    for seed in range(4):
        ledger = Ledger(tmp_path / str(seed))
        queue = TrialQueue(spec, bank, ledger)
        packs = train_all(queue, bank, in_random_order(seed), workers=3)
        ledger.close()
        assert [pack.name for pack in packs if pack.name.startswith("extended")] == ["extended-0"]
        winner = queue.winner()
        assert winner is not None
        assert queue.extended is not None
        (trial,) = queue.extended
        won = winner.trial
        assert (trial.method, trial.seeds, trial.number) == (won.method, won.seeds, won.number)
        found.append(outcomes(queue))
        assert trial.name in found[-1]
    assert found == found[:1] * 4


def test_its_last_epoch_counts_whatever_the_protocol(small_sweep: MakeSweep) -> None:
    spec = small_sweep(
        method={"kind": "los", "smooth_factor": 0.7},
        search={"algorithm": "grid", "trials": 1, "space": {"method.lr": {"choice": [0.02]}}},
        selection={"on": "test", "epoch": "best", "objective": "best", "extended_training": 4},
    )
    result = sweeps.run(spec)
    runs = extended_runs(spec)
    assert [run["epoch"] for run in runs] == [12, 12]
    last = [run["arrays"]["test"][11][0] for run in runs]
    assert [run["acc_all"] for run in runs] == pytest.approx(last)
    assert max(last) < min(max(row[0] for row in run["arrays"]["test"]) for run in runs), "the best epoch is another"
    assert result.extended is not None
    assert result.extended.objective.value == pytest.approx(np.mean(last))


def test_one_seed(small_sweep: MakeSweep) -> None:
    result = sweeps.run(small_sweep(selection={"seeds": 1, "extended_training": 3}))
    assert result.extended is not None
    assert (result.extended.objective.low, result.extended.change.difference.low) == (None, None)


def test_extended_training_is_only_for_the_overall_winner(small_sweep: MakeSweep) -> None:
    methods = ["vanilla", "los", {"name": "short", "method": "ce", "training": {"epochs": 2}}]
    spec = small_sweep(
        method=None,
        methods=methods,
        search={"trials": 3},
        selection={"finalists": 1, "extended_training": 3},
        baselines=[],
    )
    result = sweeps.run(spec)
    assert result.winner is not None
    assert result.extended is not None
    assert result.winner.method != "vanilla"
    assert result.extended.params["epochs"] == 3 * result.winner.params["epochs"]
    assert result.extended.over_start is None, "there is no baseline to compare with"
    (name,) = {line["pack"] for line in pack_lines(directory(spec)) if line["pack"].startswith("extended")}
    assert name == f"extended-{result.winner.method}-0"
    assert result.runs.finished == sum(row.runs for row in result.methods) + 2


def test_a_method_that_trains_nothing_is_not_trained_longer(small_sweep: MakeSweep) -> None:
    spec = small_sweep(
        method=None,
        methods=["los", {"method": "tau_norm", "space": {"method.post_hoc.tau": {"uniform": [0, 2]}}}],
        search={"space": {"method.lr": {"loguniform": [1e-9, 1e-8]}}},
        selection={"on": "test", "extended_training": 3},
    )
    result = sweeps.run(spec)
    assert result.winner is not None
    assert result.winner.method == "tau_norm"
    assert result.extended is None
    assert result.extended_skipped
    assert extended_runs(spec) == []
    progress = json.loads((directory(spec) / "progress.json").read_text())
    assert progress["runs_finished"] == progress["runs"] == search_size(spec).runs - 2
    alone = small_sweep(
        method=None, methods=["vanilla"], search={"trials": 1, "space": {}}, selection={"extended_training": 3}
    )
    assert search_size(alone).extended_runs == plan(alone).extended_runs == 0


def test_progress_and_plan_count_it(small_sweep: MakeSweep) -> None:
    spec, without = small_sweep(selection={"extended_training": 3}), small_sweep()
    result = sweeps.run(spec)
    progress = json.loads((directory(spec) / "progress.json").read_text())
    assert progress["runs_finished"] == progress["runs"] == result.runs.finished == 7 * 2 + 3 + 2
    assert progress["trials_finished"] == progress["trials"] == 7 + 2 + 1
    planned, plain = plan(spec, tflops=1.0), plan(without, tflops=1.0)
    assert (planned.extended_runs, planned.extended_factor, plain.extended_runs) == (2, 3, 0)
    assert (planned.runs, planned.packs) == (plain.runs + 2, plain.packs + 1)
    # 7 trials x 2 seeds and ce x 2 seeds of 3 epochs, and 2 runs of 9.
    assert planned.train_seconds / plain.train_seconds == pytest.approx((16 * 3 + 2 * 9) / (16 * 3))


def test_a_searched_number_of_epochs_is_multiplied_and_may_equal_another_trial(
    small_sweep: MakeSweep,
) -> None:
    space = {"training.epochs": {"choice": [6, 18]}}
    spec = small_sweep(
        method={"kind": "los", "smooth_factor": 0.7, "lr": 0.03},
        search={"algorithm": "grid", "trials": 2, "space": space},
        selection={"extended_training": 3},
        baselines=[],
    )
    result = sweeps.run(spec)
    assert result.winner is not None
    assert result.winner.params["epochs"] == 6, "the values are chosen so that more epochs are worse"
    assert result.extended is not None
    assert result.extended.trend == "declining"
    assert (extended_runs(spec), result.runs.finished, result.runs.shared) == ([], 4, 2)
    assert result.extended.mean.acc_all.value == pytest.approx(
        np.mean([seed.acc_all for seed in result.trials[1].seeds])
    )
    (trial,) = [one for one in read_sweep(directory(spec)).every if one.trial.phase == "extended"]
    assert trial.trial.params == {"training.epochs": 18}


def test_its_heads_are_removed_and_the_winners_are_kept(small_sweep: MakeSweep) -> None:
    spec = small_sweep(**WHOLE)
    sweeps.run(spec)
    assert not list((directory(spec) / "heads").glob("extended*"))
    sweep = read_sweep(directory(spec))
    assert sweep.winner is not None
    assert sweep.classifier(sweep.winner) is not None


def test_a_resume_adds_it_to_a_sweep_that_was_finished_without(small_sweep: MakeSweep) -> None:
    spec = small_sweep(**WHOLE)
    first = sweeps.run(spec)
    runs = runs_of(spec)
    without_extended_training(directory(spec))
    recorded = run_lines(directory(spec))
    assert len(recorded) == len(runs) - 2
    sweep = read_sweep(directory(spec))
    assert (sweep.state, sweep.extended) == ("finished", None)
    assert sweep.winner is not None
    resumed = sweeps.resume(directory(spec))
    assert resumed.extended == first.extended
    assert resumed.winner == first.winner
    assert run_lines(directory(spec))[:-2] == recorded, "no other pack is trained"
    assert [run["arrays"] for run in runs_of(spec)] == [run["arrays"] for run in runs]
    assert Result.model_validate_json((directory(spec) / "result.json").read_text()).extended == first.extended


def test_a_failure_does_not_cost_the_winner(small_sweep: MakeSweep, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = small_sweep(**WHOLE)
    first = sweeps.run(spec)
    without_extended_training(directory(spec))
    fit = fused.fit

    def failing(bank: FeatureBank, runs: Sequence[Run], *options: Any) -> list[RunResult]:
        """Train the only pack that is left, of which the second run diverges in epoch 3."""
        sound, other = fit(bank, runs, *options)
        assert other.val_accuracy is not None
        other = replace(
            other,
            val_accuracy=other.val_accuracy[:2],
            test_accuracy=other.test_accuracy[:2],
            train_loss=other.train_loss[:2],
            kept=None,
            failure="diverged: in a test",
        )
        return [sound, other]

    monkeypatch.setattr(fused, "fit", failing)
    result = sweeps.resume(directory(spec))
    assert result.winner == first.winner
    assert (result.extended, result.runs.failed) == (None, 1)
    assert result.extended_skipped
    assert any("diverged: in a test" in note for note in result.notes)
    assert [(run["status"], run["epochs"]) for run in extended_runs(spec)] == [("finished", 9), ("failed", 2)]


def test_each_sweep_of_a_matrix_has_its_own(small_sweep: MakeSweep, tmp_path: Path) -> None:
    document = small_sweep(search={"trials": 2}, selection={"extended_training": 2}).resolved() | {
        "name": "grid",
        "matrix": {"training.epochs": [1, 2]},
    }
    file = tmp_path / "matrix.yaml"
    file.write_text(yaml.safe_dump(document))
    matrix = load_matrix(file)
    table = sweeps.run(matrix)
    assert [len(row.cells) for row in table.rows] == [3, 3]
    epochs = [
        Result.model_validate_json((directory(spec) / "result.json").read_text()).extended.params["epochs"]
        for spec in matrix.sweeps
    ]
    assert epochs == [2, 4]


def test_in_mlflow_it_is_a_separate_run_without_objective(
    small_sweep: MakeSweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    spec = small_sweep(**WHOLE, tracking={"kind": "mlflow", "experiment": "tests"})
    result = sweeps.run(spec)
    runs = {run.data.tags["lt.key"]: run for run in all_runs(spec)}
    assert result.winner is not None
    assert result.extended is not None
    extended = read_sweep(directory(spec)).extended
    assert extended is not None
    run = runs[extended.trial.name]
    assert (run.data.params["phase"], run.data.params["epochs"]) == ("extended", "9")
    assert run.data.metrics["acc_all"] == pytest.approx(result.extended.mean.acc_all.value)
    assert "objective" not in run.data.metrics
    parent = runs["sweep"]
    assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert parent.data.metrics["acc_all"] == pytest.approx(result.winner.mean.acc_all.value)
    assert "extended_training" not in parent.data.params["selection"], (
        "MLflow refuses a value that changes with a resume"
    )


def test_a_driver_killed_in_this_phase_is_resumed_to_the_undisturbed_result(
    small_sweep: MakeSweep, tmp_path: Path
) -> None:
    sections = {
        "training": {"epochs": 40},
        "search": {"trials": 4},
        "selection": {"finalists": 1, "extended_training": 40},
    }
    spec = small_sweep(**sections)
    expected = sweeps.run(small_sweep(**sections | {"name": "undisturbed"}))
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump(spec.resolved(), sort_keys=False))
    driver = subprocess.Popen([sys.executable, "-m", "sweeps", "run", file], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not any(line["pack"].startswith("finalist") for line in pack_lines(directory(spec))):
        assert driver.poll() is None, driver.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    driver.kill()
    driver.communicate()
    assert not extended_runs(spec), "it is killed in the phase"
    assert not (directory(spec) / "result.json").exists()
    before = runs_of(spec)
    result = sweeps.resume(directory(spec))
    assert (result.winner, result.extended, result.trials) == (expected.winner, expected.extended, expected.trials)
    assert runs_of(spec)[:-2] == before, "nothing is trained twice"
    assert len(before) == expected.runs.finished - 2


class Curves:
    """The arrays of runs whose accuracies are equal in all splits, by key."""

    def __init__(self, curves: Sequence[Sequence[float]]) -> None:
        self.curves = {
            f"key{seed}": np.repeat(np.array(curve)[:, None], 4, axis=1) for seed, curve in enumerate(curves)
        }

    def arrays(self, key: str) -> RunArrays:
        curve, nothing = self.curves[key], np.empty(0)
        return RunArrays(curve, curve, nothing, nothing, nothing, nothing)


def trial_with(*curves: Sequence[float], failed: tuple[int, ...] = (), selected: Sequence[int] = ()) -> TrialRuns:
    """A trial with these accuracies after every epoch of each seed; the `selected` epochs count, else the last."""
    records = []
    for seed, curve in enumerate(curves):
        epoch = selected[seed] if len(selected) else len(curve) - 1
        at_epoch = (curve[epoch],) * 4
        status, why = ("failed", "diverged") if seed in failed else ("finished", None)
        records.append(
            Record(f"key{seed}", seed, status, why, len(curve), epoch, at_epoch, at_epoch, None, None, "pack", 0)  # type: ignore[arg-type]
        )
    trial = Trial("t", "search", 0, {}, METHODS.parse({"kind": "los"}), TrainingSpec(), tuple(range(len(curves))))
    return TrialRuns(trial, tuple(records), None, Curves(curves))  # type: ignore[arg-type]


def runs_at(values: Sequence[float]) -> TrialRuns:
    return trial_with(*([0.1, value] for value in values))


SPREAD = [0.001, -0.001, 0.0005, -0.0005, 0.0]


@pytest.mark.parametrize(
    ("after", "ends", "beside"),
    [
        (0.70, "declining", "better"),
        (0.60, "declining", "tied"),
        (0.55, "declining", "worse"),
        (0.80, "stable", "better"),
        (0.8009, "stable", "better"),
        (0.82, "improving", "better"),
    ],
)
def test_the_trend_follows_from_the_interval_over_seeds(after: float, ends: str, beside: str) -> None:
    shorter = runs_at([0.8] * 5)
    extended = runs_at([after + gap for gap in SPREAD])
    found = selection.extended_training(extended, shorter, runs_at([0.6]), metric="acc_all", on="val")
    assert found is not None
    assert (found.trend, found.over_start.verdict) == (ends, beside)
    assert found.change.difference.value == pytest.approx(after - 0.8)
    assert found.over_start is not None
    assert found.over_start.difference.value == pytest.approx(after - 0.6)


def test_seeds_that_disagree_are_inconclusive_and_so_is_half_a_point_with_one_seed() -> None:
    scattered = runs_at([0.8 + gap for gap in (0.05, -0.06, 0.04, -0.05, -0.02)])
    found = selection.extended_training(scattered, runs_at([0.8] * 5), None, metric="acc_all", on="test")
    assert found is not None
    assert (found.trend, found.over_start) == ("inconclusive", None)
    for after, ends in ((0.796, "inconclusive"), (0.79, "declining"), (0.81, "improving")):
        one = selection.extended_training(runs_at([after]), runs_at([0.8]), None, metric="acc_all", on="test")
        assert one is not None
        assert (one.trend, one.accuracy.low, one.change.p_value) == (ends, None, None)


def test_a_decline_within_the_noise_of_two_seeds_is_inconclusive() -> None:
    extended, head = runs_at([0.74, 0.78]), runs_at([0.77])
    found = selection.extended_training(extended, runs_at([0.8, 0.79]), head, metric="acc_all", on="val")
    assert found is not None
    assert found.change.difference.value == pytest.approx(-0.035)
    assert (found.trend, found.over_start.verdict) == ("inconclusive", "undecided")


def test_it_is_stable_only_if_the_interval_lies_within_one_point() -> None:
    for spread, ends in ((0.003, "stable"), (0.012, "inconclusive")):
        extended = runs_at([0.8 + spread * gap for gap in (1, -1, 0.5, -0.5, 0)])
        found = selection.extended_training(extended, runs_at([0.8] * 5), None, metric="acc_all", on="val")
        assert found is not None
        assert found.trend == ends


def test_last_epochs_are_compared_also_if_the_best_epoch_counts() -> None:
    """The best epoch of a stable, noisy curve is above its last."""
    chance, ends = np.random.default_rng(0), []
    for _ in range(200):
        curves = chance.normal(0.8, 0.003, (5, 100))
        winner = trial_with(*curves, selected=[int(row.argmax()) for row in curves])
        extended = runs_at(chance.normal(0.8, 0.003, 5).tolist())
        found = selection.extended_training(extended, winner, None, metric="acc_all", on="val")
        assert found is not None
        ends.append(found.trend)
    assert ends.count("declining") / 200 <= 0.05


@pytest.mark.parametrize(
    ("trials", "falls", "gains"),
    [(1, (0.01, 0.045), (0.01, 0.045)), (3, (0.04, 0.09), (0, 0.01)), (24, (0.12, 0.2), (0, 0))],
)
def test_error_rates_for_stable_winners(trials: int, falls: tuple[float, float], gains: tuple[float, float]) -> None:
    """A thousand sweeps with equal mean accuracy; seeds are normally distributed and the best trial wins."""
    chance, ends = np.random.default_rng(0), []
    for _ in range(1000):
        found = chance.normal(0.8, 0.003, (trials, 5))
        winner, extended = found[found.mean(axis=1).argmax()], chance.normal(0.8, 0.003, 5)
        judged = selection.extended_training(
            runs_at(extended.tolist()), runs_at(winner.tolist()), None, metric="acc_all", on="val"
        )
        assert judged is not None
        ends.append(judged.trend)
    for end, (low, high) in (("declining", falls), ("improving", gains)):
        assert low <= ends.count(end) / 1000 <= high


def test_failed_runs_are_not_compared() -> None:
    broken, sound = trial_with([0.8], [0.8], failed=(1,)), trial_with([0.8], [0.8])
    assert selection.extended_training(broken, sound, None, metric="acc_all", on="test") is None
    found = selection.extended_training(sound, sound, broken, metric="acc_all", on="test")
    assert found is not None
    assert found.over_start is None


def test_its_pack_selects_the_last_epoch_and_is_not_stopped_early(small_sweep: MakeSweep, tmp_path: Path) -> None:
    spec = small_sweep(**HALVED | {"selection": {"epoch": "best", "extended_training": 2}})
    bank, ledger = prepare(spec), Ledger(tmp_path)
    packs = train_all(TrialQueue(spec, bank, ledger), bank, workers=3)
    ledger.close()
    assert (packs[-1].rule, packs[-1].halving) == (EpochSelection("last"), None)
    assert packs[0].rule == EpochSelection("best")
