"""A sweep with metrics from a file outside the package: recorded, selected on, and shown like the accuracies."""

from __future__ import annotations

import csv
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rich.console import Console
from support.ledgers import runs_by_key, runs_of
from support.reports import directory, rows, text

import sweeps
from lt_train.core.errors import UserError
from lt_train.metrics import METRICS
from sweeps.analysis.matrix_table import matrix_table
from sweeps.config.matrix import SweepMatrix
from sweeps.config.spec import SweepSpec
from sweeps.reporting import terminal
from sweeps.reporting.result_tables import comparison_sections, matrix_tables
from sweeps.reporting.write import write

pytestmark = pytest.mark.slow

MakeSweep = Callable[..., SweepSpec]

SOURCE = '''
"""Metrics of a user."""
from typing import Literal
import numpy as np
from pydantic import Field
from lt_train.metrics import METRICS, MetricSpec

@METRICS.register
class LargeClasses(MetricSpec):
    """Accuracy of the largest classes; undefined for none."""
    kind: Literal["large_classes"] = "large_classes"
    classes: int = Field(default=1, ge=0, description="number of classes")

    def __call__(self, probabilities, predictions, labels, class_counts):
        own = np.isin(labels, np.argsort(class_counts)[len(class_counts) - self.classes :])
        return (predictions == labels)[own].mean() if own.any() else np.nan

@METRICS.register
class Confidence(MetricSpec):
    """Mean of the largest probability, a vector if `broken`."""
    percent = False
    kind: Literal["confidence"] = "confidence"
    broken: bool = Field(default=False, description="whether it returns a vector")

    def __call__(self, probabilities, predictions, labels, class_counts):
        return probabilities.max(axis=1) if self.broken else probabilities.max()
'''


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_kinds: None) -> Iterator[Path]:
    """The file, imported as the program of a user does; what is registered is undone."""
    (tmp_path / "own_metrics.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.import_module("own_metrics")
    yield tmp_path / "own_metrics.py"
    del sys.modules["own_metrics"]


LISTED = ["large_classes", "nll", "confidence"]
SEARCH = {"trials": 8, "proposal_batch": 4, "algorithm": "random"}


def selected(small_sweep: MakeSweep, **sections: Any) -> SweepSpec:
    """A sweep that selects on the metric of the user."""
    selection = {"metric": "large_classes", "seeds": 2, **sections.pop("selection", {})}
    return small_sweep(**{"metrics": LISTED, "search": SEARCH, **sections}, selection=selection)


def test_it_is_selected_on_and_recorded(small_sweep: MakeSweep) -> None:
    spec = selected(small_sweep)
    result, plain = sweeps.run(spec), sweeps.run(small_sweep(name="plain", search=SEARCH))
    assert result.winner is not None
    assert plain.winner is not None
    assert result.winner.trial != plain.winner.trial, "the best trial is another one than that of acc_all"
    runs = runs_of(spec)
    best = max(result.trials, key=lambda trial: trial.objective or 0.0)
    own = [run for run in runs if run["phase"] == "search" and run["number"] == best.number]
    assert best.number == result.winner.trial
    assert best.objective == pytest.approx(np.mean([run["val_metrics"]["large_classes"] for run in own]))
    for run in runs:
        assert list(run["metrics"]) == list(run["val_metrics"]) == LISTED
        largest = run["arrays"]["class_accuracy"][0]
        assert run["metrics"]["large_classes"] == pytest.approx(largest), "class 0 has the most images"
        assert run["arrays"]["test"][-1][4] == pytest.approx(largest)
    document = json.loads((directory(spec) / "result.json").read_text())
    assert document["metrics"] == [
        {"name": "large_classes", "percent": True, "higher_is_better": True},
        {"name": "nll", "percent": False, "higher_is_better": False},
        {"name": "confidence", "percent": False, "higher_is_better": True},
    ]
    winner = document["winner"]
    assert winner["mean"]["metrics"]["large_classes"]["value"] == pytest.approx(
        np.mean([run["metrics"]["large_classes"] for run in own])
    )
    assert winner["best_of"]["metrics"].keys() == winner["mean"]["metrics"].keys() == set(LISTED)
    # Against the baseline that is confident in the large classes, nll falls, and that is better.
    nll = winner["gain"]["vanilla"]["nll"]
    assert nll["verdict"] == ("better" if nll["difference"]["value"] < 0 else "worse")
    assert sweeps.resume(directory(spec)) == result


def test_the_other_numbers_do_not_change_and_nothing_is_shared(small_sweep: MakeSweep) -> None:
    """Metrics are part of the identity of runs; without them keys are what they were."""
    plain, spec = small_sweep(name="plain", search=SEARCH), small_sweep(metrics=LISTED, search=SEARCH)
    without, found = sweeps.run(plain), sweeps.run(spec)
    assert [trial.objective for trial in found.trials] == [trial.objective for trial in without.trials]
    assert not runs_by_key(plain).keys() & runs_by_key(spec).keys()
    assert "metrics" not in runs_of(plain)[0]


def test_it_is_shown_like_the_accuracies(small_sweep: MakeSweep) -> None:
    spec = selected(small_sweep, selection={"seeds": 3, "finalists": 2, "extended_training": 2}, training={"epochs": 4})
    result = sweeps.run(spec)
    written = write([directory(spec)])
    tables = written.page.parent / "tables"
    winner = rows(tables / "winner.csv")[0]
    assert result.winner is not None
    for name in LISTED:
        assert float(winner[name]) == pytest.approx(result.winner.mean.metrics[name].value)
        assert name in rows(tables / "methods.csv")[0]
        assert f"test {name}" in rows(tables / "trials.csv")[0]
        assert name in rows(written.page.parent / "data" / "runs.csv")[0]
    value = 100 * result.winner.mean.metrics["large_classes"].value
    page = text(written)
    assert f"{value:.2f}" in page
    assert "% large_classes" in page
    assert "Selected on val large_classes" in page
    (report,) = written.reports
    panels = {figure.name: figure.panels for figure in report.figures()}
    assert [panel.title for panel in panels["epochs"]] == ["on val", "on test", "nll", "confidence"]
    on_test = {series.name: series for series in panels["epochs"][1].series}
    assert on_test["large_classes"].y[-1] == pytest.approx(value)
    assert not on_test["large_classes"].faint
    assert "large_classes, 2x as long" in on_test
    assert panels["history"][0].y_label == "val large_classes, %"
    with (directory(spec) / "artifacts" / "trials.csv").open() as file:
        assert {*LISTED} <= next(csv.DictReader(file)).keys()
    console = Console(width=200)
    with console.capture() as shown:
        console.print(terminal.comparison(result))
    assert f"{value:.2f}" in shown.get()
    assert "large_classes" in shown.get()
    assert f"test large_classes {value:.2f}" in terminal.winner_line(result)


def test_comparisons_and_matrices_have_it(small_sweep: MakeSweep) -> None:
    one, other, plain = selected(small_sweep, name="m-a"), selected(small_sweep, name="m-b"), small_sweep(name="plain")
    other = other.model_copy(update={"training": other.training.model_copy(update={"epochs": 2})})
    for spec in (one, other, plain):
        sweeps.run(spec)
    compared = sweeps.compare(directory(one), directory(other), directory(plain))
    with_metric, without = compared.pairs
    assert with_metric.metric == "large_classes"
    assert {"large_classes", "nll"} <= with_metric.winners.gain.keys()
    assert without.metric == "acc_all"
    assert "large_classes" not in without.winners.gain
    assert any("based on acc_all" in caution for caution in without.cautions)
    gains = comparison_sections(compared)[1].tables[0]
    assert ("large_classes", "gain") in [(column.title, column.kind) for column in gains.columns]
    assert ("nll", "change") in [(column.title, column.kind) for column in gains.columns]
    table = matrix_table(SweepMatrix("m", "training.epochs", {"a": one, "b": other}))
    names = [each.name for each in matrix_tables(table)]
    assert names[-3:] == ["m_large_classes", "m_nll", "m_confidence"]


def test_mlflow_shows_it(small_sweep: MakeSweep, tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    spec = selected(small_sweep, tracking={"kind": "mlflow", "uri": uri})
    result = sweeps.run(spec)
    client = mlflow.MlflowClient(uri)
    found = client.search_runs([one.experiment_id for one in client.search_experiments()], max_results=100)
    assert result.winner is not None
    parent = next(run for run in found if "best_of_large_classes" in run.data.metrics)
    mean = result.winner.mean.metrics["large_classes"].value
    assert parent.data.metrics["large_classes"] == pytest.approx(mean, abs=1e-6)
    trial = next(run for run in found if run.data.tags.get("lt.key", "").endswith(f"search-{result.winner.trial:04d}"))
    assert {
        "large_classes",
        "val_large_classes",
        "nll",
        "epoch_val_large_classes",
        "seed_nll",
    } <= trial.data.metrics.keys()
    assert trial.data.metrics["val_large_classes"] == pytest.approx(result.methods[0].objective, abs=1e-6)


def test_an_undefined_value_is_null_and_fails_the_trial_that_it_ranks(small_sweep: MakeSweep) -> None:
    undefined = [{"kind": "large_classes", "classes": 0}]
    reported = small_sweep(name="reported", metrics=undefined)
    assert sweeps.run(reported).winner is not None
    assert {run["metrics"]["large_classes"] for run in runs_of(reported)} == {None}
    assert "Undefined for the winner and shown as a dash: large_classes." in text(write([directory(reported)]))
    spec = selected(small_sweep, metrics=undefined)
    result = sweeps.run(spec)
    assert result.winner is None
    assert all(trial.objective is None for trial in result.trials)
    assert result.runs.failed == 0
    assert any(
        "counts as failed: " in note and "large_classes on val is undefined for seed 0" in note for note in result.notes
    )
    page = text(write([directory(spec)]))
    assert "large_classes on val is undefined" in page


def test_a_broken_metric_stops_at_the_first_pack(small_sweep: MakeSweep) -> None:
    broken = [{"kind": "confidence", "broken": True}]
    with pytest.raises(UserError, match=r"metric confidence must return one number .* ndarray of shape"):
        sweeps.run(small_sweep(metrics=broken))
    assert runs_of(small_sweep(metrics=broken)) == []


def test_the_code_of_a_metric_is_part_of_the_identity(small_sweep: MakeSweep, module: Path) -> None:
    spec = small_sweep(metrics=["large_classes"])
    sweeps.run(spec)
    module.write_text(SOURCE.replace(".mean() if", ".mean() / 2 if"))
    del sys.modules["own_metrics"]
    METRICS._kinds.pop("large_classes"), METRICS._kinds.pop("confidence")
    importlib.invalidate_caches()
    importlib.import_module("own_metrics")
    with pytest.raises(UserError, match="that of own_metrics:LargeClasses has changed since"):
        sweeps.run(small_sweep(metrics=["large_classes"]))
    changed = small_sweep(name="changed", metrics=["large_classes"])
    sweeps.run(changed)
    assert not runs_by_key(spec).keys() & runs_by_key(changed).keys()


def test_workers_of_ray_compute_it(small_sweep: MakeSweep, module: Path, one_thread: None) -> None:
    """From the command line, where a local Ray has two workers; a metric that is broken there is named."""
    inline, spec = selected(small_sweep, name="inline"), selected(small_sweep, backend="ray")
    broken = small_sweep(name="broken", metrics=[{"kind": "confidence", "broken": True}], backend="ray")
    ended = [lt_sweep_run(one, module) for one in (spec, broken)]
    assert ended[0].returncode == 0, ended[0].stderr
    expected = sweeps.run(inline)
    assert runs_by_key(spec) == runs_by_key(inline)
    assert expected.winner is not None
    assert json.loads((directory(spec) / "result.json").read_text())["winner"]["trial"] == expected.winner.trial
    assert ended[1].returncode == 2
    assert "metric confidence must return one number for a set of images, got ndarray of shape" in ended[1].stderr


def lt_sweep_run(spec: SweepSpec, module: Path) -> subprocess.CompletedProcess[str]:
    file = module.with_name(f"{spec.name}.yaml")
    file.write_text(yaml.safe_dump(spec.resolved(), sort_keys=False))
    command = [sys.executable, "-m", "sweeps", "run", str(file), "--allow-import", module.stem]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=module.parent, env=environment, capture_output=True, text=True, check=False)
