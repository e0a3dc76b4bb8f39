"""Whole sweeps on the inline backend: the result, the artifacts, resuming and refusals."""

from __future__ import annotations

import csv
import importlib
import json
import logging
import math
import pkgutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml
from support.ledgers import run_lines, runs_of

import lt_train
import sweeps
from lt_train.core.errors import BankError, StorageError, UserError
from lt_train.metrics import SPLITS
from sweeps.analysis.result import Result
from sweeps.cli.app import main
from sweeps.config.spec import SweepSpec, load_resolved

MakeSweep = Callable[..., SweepSpec]


def test_result_json_is_the_documented_model_and_is_consistent(small_sweep: MakeSweep):
    spec = small_sweep(selection={"seeds": 3})
    result = sweeps.run(spec)
    written = json.loads((Path(spec.storage) / "small" / "result.json").read_text())
    assert written == json.loads(result.model_dump_json(by_alias=True))
    assert Result.model_validate_json(json.dumps(written)) == result
    assert written["schema"] == 1
    assert set(written) == {
        "schema", "sweep", "spec_fingerprint", "bank_fingerprint", "protocol", "metrics", "runs", "trials", "winner",
        "methods", "baselines", "extended", "extended_skipped", "seconds", "notes",
    }  # fmt: skip
    assert written["runs"] == {"finished": 7 * 3 + 1 + 3, "stopped": 0, "failed": 0, "shared": 0}
    assert {"total", "train", "search", "listeners"} <= set(written["seconds"])
    winner = result.winner
    assert winner is not None
    best = max(result.trials, key=lambda trial: trial.objective or 0)
    assert winner.trial == best.number
    assert best.objective == pytest.approx(np.mean([seed.val_acc_all for seed in best.seeds]))
    assert winner.mean.acc_few.value == pytest.approx(np.mean([seed.acc_few for seed in best.seeds]))
    by_val = max(best.seeds, key=lambda seed: seed.val_acc_all or 0)
    assert winner.best_of == by_val
    gain = winner.gain["vanilla"]["acc_all"]
    assert gain.difference.value == pytest.approx(
        (winner.mean.acc_all.value or 0) - (result.baselines["vanilla"].mean.acc_all.value or 0)
    )
    assert set(result.baselines) == {"vanilla", "ce"}


def test_selection_on_val_never_looks_at_test(small_sweep: MakeSweep, features_file: Path, tmp_path: Path):
    """Scrambled test labels change the reported numbers, but not the winner."""
    honest = sweeps.run(small_sweep())
    arrays = dict(np.load(features_file))
    arrays["test_labels"] = np.roll(arrays["test_labels"], 50)
    np.savez(tmp_path / "scrambled.npz", **arrays)
    scrambled = sweeps.run(small_sweep(name="other", dataset={"path": str(tmp_path / "scrambled.npz")}))
    assert honest.winner is not None
    assert scrambled.winner is not None
    assert scrambled.winner.trial == honest.winner.trial
    assert [trial.objective for trial in scrambled.trials] == [trial.objective for trial in honest.trials]
    assert scrambled.winner.mean.acc_all.value != honest.winner.mean.acc_all.value


def test_the_papers_protocol_selects_best_epoch_and_seed_on_test(small_sweep: MakeSweep):
    spec = small_sweep(selection="paper", training={"epochs": 4})
    result = sweeps.run(spec)
    assert result.protocol.model_dump() == {
        "on": "test", "epoch": "best", "objective": "best", "metric": "acc_all", "seeds": 5, "finalists": 0,
    }  # fmt: skip
    runs = [run for run in runs_of(spec) if run["phase"] != "extended"]  # which selects the last epoch
    best = {run["key"]: max(row[0] for row in run["arrays"]["test"]) for run in runs}
    winner = result.winner
    assert winner is not None
    trials = [max(seed.acc_all for seed in trial.seeds if seed.acc_all is not None) for trial in result.trials]
    assert winner.best_of.acc_all == max(trials)
    assert max(trials) <= max(best.values()) + 1e-7
    for run in runs:
        assert run["arrays"]["test"][run["epoch"] - 1][0] == best[run["key"]]
        assert run["acc_all"] == pytest.approx(best[run["key"]], abs=1e-7)


def test_a_finished_sweep_is_not_trained_again(small_sweep: MakeSweep):
    spec = small_sweep()
    first = sweeps.run(spec)
    recorded = runs_of(spec)
    resumed = sweeps.resume(Path(spec.storage) / spec.name)
    assert resumed == first, "also its times"
    assert runs_of(spec) == recorded
    assert len(recorded) == first.runs.finished


def test_another_spec_under_the_same_name_is_refused_until_fresh(small_sweep: MakeSweep):
    sweeps.run(small_sweep())
    changed = small_sweep(search={"seed": 1}, training={"epochs": 2})
    with pytest.raises(UserError, match=r"search\.seed, training\.epochs differ.*--fresh"):
        sweeps.run(changed)
    fresh = sweeps.run(changed, fresh=True)
    assert len(runs_of(changed)) == fresh.runs.finished
    assert (Path(changed.storage) / "small.previous-1" / "result.json").exists()


def test_fields_that_do_not_affect_results_may_change_between_calls(small_sweep: MakeSweep):
    first = sweeps.run(small_sweep())
    changed = small_sweep(resources={"gpus_per_pack": 0.0}, tracking={"kind": "none"})
    assert sweeps.run(changed) == first
    assert len(runs_of(changed)) == first.runs.finished


def test_artifacts_agree_with_the_result(small_sweep: MakeSweep):
    spec = small_sweep()
    result = sweeps.run(spec)
    place = Path(spec.storage) / "small" / "artifacts"
    assert load_resolved(yaml.safe_load((place / "spec.yaml").read_text())) == spec
    with (place / "trials.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == result.runs.finished
    assert {row["phase"] for row in rows} == {"baseline", "search"}
    with (place / "per_class.csv").open() as stream:
        classes = list(csv.DictReader(stream))
    assert [int(row["training_images"]) for row in classes] == [130, 80, 40, 21, 12, 6]
    assert result.winner is not None
    accuracy = np.mean([float(row[f"los (winner), seed {result.winner.best_of.seed} accuracy"]) for row in classes])
    assert accuracy == pytest.approx(result.winner.best_of.acc_all, abs=1e-6)
    for figure in ("loma.png", "class_accuracy.png"):
        assert (place / figure).read_bytes().startswith(b"\x89PNG")


def test_every_trial_failing_gives_a_result_without_winner(small_sweep: MakeSweep):
    spec = small_sweep(search={"trials": 2, "space": {"method.lr": {"loguniform": [1e37, 1e38]}}})
    result = sweeps.run(spec)
    assert result.winner is None
    assert result.runs.failed == 4
    assert all("diverged" in (seed.failure or "") for trial in result.trials for seed in trial.seeds)
    assert set(result.baselines) == {"vanilla", "ce"}


@pytest.mark.parametrize("classes", [2])
def test_two_classes_and_empty_splits(small_sweep: MakeSweep, tmp_path: Path, classes: int):
    rng = np.random.default_rng(0)
    train, test = np.repeat(np.arange(classes), (150, 30)), np.repeat(np.arange(classes), 20)
    np.savez(
        tmp_path / "two.npz",
        train_features=rng.normal(size=(180, 4)).astype(np.float32) + train[:, None],
        train_labels=train,
        test_features=rng.normal(size=(40, 4)).astype(np.float32) + test[:, None],
        test_labels=test,
    )
    spec = small_sweep(
        dataset={"path": str(tmp_path / "two.npz")},
        method={"init": "random"},
        baselines=[{"kind": "ce", "init": "random"}],
    )
    result = sweeps.run(spec)
    assert result.winner is not None
    assert result.winner.mean.acc_few is None
    assert result.winner.mean.acc_all is not None
    assert result.winner.mean.acc_many is not None
    assert any("held out" in note for note in result.notes)


def test_a_bank_without_head_is_refused_for_methods_that_start_from_it(
    small_sweep: MakeSweep, features_file: Path, tmp_path: Path
):
    arrays = {name: value for name, value in np.load(features_file).items() if name not in ("weight", "bias")}
    np.savez(tmp_path / "headless.npz", **arrays)
    spec = small_sweep(dataset={"path": str(tmp_path / "headless.npz")})
    with pytest.raises(BankError, match=r"method los.*init: random"):
        sweeps.run(spec)


def test_selecting_on_an_empty_split_is_refused(small_sweep: MakeSweep, features_file: Path, tmp_path: Path):
    arrays = dict(np.load(features_file))
    keep = arrays["val_labels"] < 4  # the few classes are 4 and 5
    arrays["val_features"], arrays["val_labels"] = arrays["val_features"][:, keep], arrays["val_labels"][keep]
    np.savez(tmp_path / "nofew.npz", **arrays)
    spec = small_sweep(dataset={"path": str(tmp_path / "nofew.npz")}, selection={"metric": "acc_few"})
    with pytest.raises(UserError, match=r"selection\.metric acc_few.*select on acc_all"):
        sweeps.run(spec)


@pytest.mark.parametrize("name", ["cache", "mlflow-artifacts", "small.previous-1"])
def test_reserved_names_are_refused(small_sweep: MakeSweep, name: str, tmp_path: Path):
    file = tmp_path / "reserved.yaml"
    file.write_text(yaml.safe_dump(small_sweep(name=name).resolved()))
    assert main(["validate", str(file)]) == 2
    with pytest.raises(UserError, match=f"name: '{name}' is reserved"):
        sweeps.run(small_sweep(name=name))


def test_a_sweep_stopped_by_a_full_disk_is_resumed(small_sweep: MakeSweep, small_disk: Callable[[str], Path]):
    disk = small_disk("120k")
    spec = small_sweep(storage=str(disk), search={"trials": 60, "proposal_batch": 6})
    with pytest.raises(StorageError, match="the disk is full"):
        sweeps.run(spec)
    recorded = run_lines(disk / "small")
    assert 0 < len(recorded) < 120
    subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
    result = sweeps.run(spec)
    runs = run_lines(disk / "small")
    assert runs[: len(recorded)] == recorded
    assert len({run["key"] for run in runs}) == len(runs) == result.runs.finished == 120 + 1 + 2


def test_accuracies_are_fractions_of_whole_images(small_sweep: MakeSweep):
    spec = small_sweep()
    sweeps.run(spec)
    for run in runs_of(spec):
        for row in run["arrays"]["test"]:
            assert len(row) == len(SPLITS)
            assert math.isclose(row[0] * 300, round(row[0] * 300), abs_tol=1e-3)


def test_no_module_shadows_a_public_name():
    """A module with the name of a public function would shadow it once it is imported."""
    importlib.import_module("sweeps.cli.app")
    for package, public_modules in ((sweeps, set()), (lt_train, {"methods"})):
        names = {*dir(package)} - public_modules
        for module in pkgutil.iter_modules(package.__path__):
            assert module.name not in names, f"{package.__name__}.{module.name} shadows a public name"
        for name in names:
            assert not isinstance(getattr(package, name), ModuleType)


def halved(small_sweep: MakeSweep, **sections: Any) -> SweepSpec:
    early_stopping = {"kind": "successive_halving", "rungs": [1, 2]}
    search = {"trials": 12, "proposal_batch": 6, "early_stopping": early_stopping}
    return small_sweep(**{"search": search, "selection": {"seeds": 2, "finalists": 2}, **sections})


def test_a_halved_sweep_reports_stopped_trials_and_complete_runs(
    small_sweep: MakeSweep, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO)
    spec = halved(small_sweep)
    result = sweeps.run(spec)
    # Two proposal batches of six in a pack each: three stop after epoch 1, one after epoch 2.
    stops = [trial.stopped for trial in result.trials]
    assert (stops.count(1), stops.count(2), stops.count(None)) == (6, 2, 4)
    assert result.runs.stopped == 16
    assert result.runs.finished == 2 * 4 + 3 + 2 * 2
    assert all(trial.objective is not None for trial in result.trials)
    assert result.winner is not None
    assert result.trials[result.winner.trial].stopped is None
    assert result.methods[0].stopped_trials == 8
    lengths = {(run["status"], run["epochs"]): len(run["arrays"]["test"]) for run in runs_of(spec)}
    # The method `vanilla` trains nothing, so its run has one epoch.
    assert lengths == {("finished", 1): 1, ("finished", 3): 3, ("stopped", 1): 1, ("stopped", 2): 2}
    place = Path(spec.storage) / "small"
    assert Result.model_validate_json((place / "result.json").read_text()) == result
    with (place / "artifacts" / "trials.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["stopped"] for row in rows].count("1") == 12
    assert {row["stopped"] for row in rows if row["phase"] != "search"} == {""}
    shown = capsys.readouterr().err + caplog.text
    assert "packs of up to 12 runs: " in shown
    assert "8 trials stopped early" in shown
    resumed = sweeps.resume(place)
    assert (resumed.trials, resumed.winner) == (result.trials, result.winner)


def test_halving_finds_the_same_winner_if_the_order_of_trials_is_stable(small_sweep: MakeSweep):
    """Learning rates so far apart that the best trial after one epoch is the best at the end."""
    space = {"method.lr": {"choice": [1e-7, 1e-6, 1e-5, 3e-2]}}
    search = {"algorithm": "grid", "trials": 4, "proposal_batch": 4, "space": space}
    whole = sweeps.run(small_sweep(name="whole", search=search))
    halving = {"early_stopping": {"kind": "successive_halving", "rungs": [1, 2]}}
    some = sweeps.run(small_sweep(search=search | halving))
    assert whole.winner is not None
    assert some.winner is not None
    assert some.winner.searched == whole.winner.searched == {"method.lr": 3e-2}
    assert some.winner.mean == whole.winner.mean, "halving does not affect a trial that is not stopped"


def test_memory_too_small_for_a_run_is_refused_before_an_earlier_sweep_is_touched(small_sweep: MakeSweep):
    spec = small_sweep(search={"trials": 2})
    sweeps.run(spec)
    small = small_sweep(search={"trials": 2}, resources={"memory_per_pack": 1000})
    with pytest.raises(UserError, match=r"memory_per_pack is 1000 B.*at least 1MiB"):
        sweeps.run(small, fresh=True)
    assert (Path(spec.storage) / "small" / "result.json").exists()
    with pytest.raises(UserError, match=r"too little for two trials of 2 seeds, which successive halving compares"):
        sweeps.run(halved(small_sweep, resources={"memory_per_pack": "30KiB"}), fresh=True)
    wide = {"trials": 2, "space": {"training.batch_size": {"choice": [8, 100_000]}}}
    with pytest.raises(UserError, match=r"too little for one run: .* batches of 100000\)"):
        sweeps.run(small_sweep(search=wide, resources={"memory_per_pack": "1MiB"}), fresh=True)
