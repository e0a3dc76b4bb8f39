"""`sweeps.open_sweep`: states, DataFrames, the winner and matrices, against the records they are made from."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.ledgers import runs_of

import sweeps
from lt_train.core.errors import UserError
from lt_train.features.files import open_test
from sweeps.config.spec import SweepSpec, load_resolved

pytestmark = pytest.mark.slow

METRICS = ["acc_all", "acc_many", "acc_medium", "acc_few"]


@pytest.fixture(scope="module")
def spec(features_file: Path, tmp_path_factory: pytest.TempPathFactory) -> SweepSpec:
    """A finished sweep over two methods; trials of one fail, some of the other are stopped early."""
    document = {
        "name": "two",
        "dataset": {"kind": "arrays", "path": str(features_file)},
        "methods": [
            {"method": "los", "space": {"method.lr": {"loguniform": [1e-3, 1e-1]}}},
            {"method": "ce", "space": {"method.lr": {"choice": [0.01, 1e38]}}},
        ],
        "training": {"epochs": 4},
        "search": {"trials": 6, "algorithm": "random", "early_stopping": {"kind": "successive_halving", "rungs": [2]}},
        "selection": {"seeds": 3, "finalists": 1, "extended_training": 2},
        "backend": "inline",
        "tracking": "none",
        "storage": str(tmp_path_factory.mktemp("runs")),
    }
    sweeps.run(document)
    return load_resolved(document)


@pytest.fixture(scope="module")
def sweep(spec: SweepSpec) -> sweeps.OpenSweep:
    return sweeps.open_sweep(spec)


def test_trials_are_those_of_the_result(sweep: sweeps.OpenSweep) -> None:
    found = sweep.trials
    searched = found[found.phase == "search"]
    assert len(searched) == len(sweep.result.trials) == 12
    assert set(searched.status) == {"finished", "stopped", "failed"}
    for row, one in zip(searched.to_dict("records"), sweep.result.trials, strict=True):
        assert (row["method"], row["number"], row["method.lr"]) == (one.method, one.number, one.params["method.lr"])
        assert row["objective"] == one.objective or (one.objective is None and np.isnan(row["objective"]))
        if one.objective is not None:
            assert row["acc_few"] == pytest.approx(np.mean([seed.acc_few for seed in one.seeds]))
        else:
            assert "diverged" in row["failure"]
    assert list(dict.fromkeys(found.phase)) == ["baseline", "search", "finalist", "extended"]
    assert found.finished_at.dt.tz is not None


def test_runs_are_the_lines_of_the_ledger(sweep: sweeps.OpenSweep, spec: SweepSpec) -> None:
    lines = {line["key"]: line for line in runs_of(spec)}
    found = sweep.runs
    assert set(found.key) == set(lines)
    for row in found.to_dict("records"):
        line = lines[row["key"]]
        assert (row["seed"], row["status"], row["epochs"]) == (line["seed"], line["status"], line["epochs"])
        if line["status"] != "failed":
            assert [row[name] for name in METRICS] == [line[name] for name in METRICS]
            assert row["val_acc_all"] == line["val_acc_all"]
            assert row["epoch"] == line["epoch"]


def test_accuracies_by_class_and_epoch_lead_to_those_of_the_trial(sweep: sweeps.OpenSweep) -> None:
    winner = sweep.trials.set_index("trial").loc[sweep.winner.trial]
    classes = sweep.per_class[sweep.per_class.trial == sweep.winner.trial]
    assert np.average(classes.accuracy, weights=classes.test_images) == pytest.approx(winner.acc_all, abs=1e-6)
    few = classes[classes.split == "few"]
    assert np.average(few.accuracy, weights=few.test_images) == pytest.approx(winner.acc_few, abs=1e-6)
    last = sweep.curves().query("epoch == 4")
    assert len(last) == 3
    assert last.acc_all.mean() == pytest.approx(winner.acc_all, abs=1e-6)
    stopped = sweep.trials.query("status == 'stopped'").trial.iloc[0]
    assert sweep.curves(stopped).epoch.max() == 2


def test_frames_are_copies(sweep: sweeps.OpenSweep) -> None:
    mine = sweep.trials
    mine["acc_all"] = 0.0
    assert sweep.trials.acc_all.max() > 0


def test_the_winner_predicts_what_was_recorded(sweep: sweeps.OpenSweep, spec: SweepSpec) -> None:
    winner = sweep.winner
    test = open_test(Path(spec.storage) / "cache" / "banks" / sweep.result.bank_fingerprint)
    logits = winner.classifier()(test.features.float()).mean(dim=0)
    correct = (logits.argmax(-1) == test.labels).float().mean().item()
    row = sweep.runs[(sweep.runs.trial == winner.trial) & (sweep.runs.seed == winner.seed)].iloc[0]
    assert correct == pytest.approx(row.acc_all, abs=1e-6)
    assert winner.accuracy.acc_all == sweep.result.winner.mean.acc_all
    assert winner.method.lr == winner.params["method.lr"]


def test_the_result_as_a_table(sweep: sweeps.OpenSweep) -> None:
    frame = sweep.result.to_frame()
    assert list(frame.role) == ["winner", "method", *["baseline"] * len(sweep.result.baselines)]
    first = sweep.result.methods[0].mean.acc_all
    assert frame.loc[0, ["acc_all", "acc_all_low", "acc_all_high"]].tolist() == [first.value, first.low, first.high]
    assert sweep.name in sweep._repr_html_()


@pytest.mark.parametrize(("ask", "message"), [("nothing", "trial must be a finished trial"), ("failed", "diverged")])
def test_a_trial_without_curves_is_named(sweep: sweeps.OpenSweep, ask: str, message: str) -> None:
    failed = sweep.trials.query("status == 'failed'").trial.iloc[0]
    with pytest.raises(UserError, match=message):
        sweep.curves(failed if ask == "failed" else ask)


def test_states(small_sweep: Callable[..., SweepSpec]) -> None:
    spec, seen = small_sweep(), []
    with pytest.raises(UserError, match=r"was not started; start it with sweeps\.run"):
        sweeps.open_sweep(spec)

    def look(event: sweeps.Event) -> None:
        if isinstance(event, sweeps.TrialFinished) and event.runs.trial.phase == "search" and len(seen) < 3:
            seen.append(sweeps.open_sweep(spec))
            if len(seen) == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweeps.run(spec, callbacks=[look])
    assert [one.state for one in seen] == ["running"] * 3
    sweep = seen[-1].refresh()
    assert sweep.state == "interrupted"
    assert len(sweep.trials.query("phase == 'search'")) < 7
    assert sweep.winner is not None
    result = sweeps.run(spec)
    assert sweep.refresh().state == "finished"
    assert sweep.refresh().result == result
    assert "interrupted" in repr(sweep)


def test_matrices_use_the_same_functions(features_file: Path, tmp_path: Path) -> None:
    file = tmp_path / "fam.yaml"
    document = {
        "name": "fam",
        "dataset": {"kind": "arrays", "path": str(features_file)},
        "method": "los",
        "search": {"trials": 2, "space": {"method.lr": {"choice": [0.01, 0.1]}}},
        "selection": {"seeds": 2, "extended_training": None},
        "tracking": "none",
        "storage": str(tmp_path / "runs"),
        "matrix": {"training.epochs": [1, 2]},
    }
    file.write_text(json.dumps(document))
    assert sweeps.validate(file) == []
    assert {value: plan.trials for value, plan in sweeps.plan(file).items()} == {"1": 2, "2": 2}
    with pytest.raises(UserError, match="no sweep of the matrix fam was started"):
        sweeps.open_sweep(file)
    table = sweeps.run(file, backend="inline")
    assert isinstance(table, sweeps.MatrixTable)
    for place in (file, tmp_path / "runs" / "fam"):
        matrix = sweeps.open_sweep(place)
        assert matrix.table == table == sweeps.resume(matrix)
        assert matrix["2"].spec.training.epochs == 2
        assert matrix.trials.groupby("value").size().to_dict() == {"1": 4, "2": 4}
        assert len(matrix.runs) == 2 * (2 * 2 + 1 + 2)
    frame = table.to_frame()
    assert frame.query("best").acc_all.tolist() == [
        max(frame[frame.sweep == name].acc_all) for name in ("fam-1", "fam-2")
    ]
    assert matrix.report().is_file()
    difference = sweeps.compare(matrix).to_frame().query("what == 'winner' and metric == 'acc_all'")
    means = [matrix[value].winner.accuracy.acc_all.value for value in "12"]
    assert difference.difference.item() == pytest.approx(means[1] - means[0])


def test_an_open_sweep_stands_for_its_directory(sweep: sweeps.OpenSweep, spec: SweepSpec, tmp_path: Path) -> None:
    other = SweepSpec(**spec.resolved() | {"name": "other", "training": {"epochs": 3}})
    sweeps.run(other)
    comparison = sweep.compare(sweeps.open_sweep(other))
    assert [one.label for one in comparison.sweeps] == ["two", "other"]
    assert sweeps.report(sweep, sweeps.open_sweep(other), out=tmp_path / "report").is_file()


def test_an_instance_of_a_backend_replaces_that_of_the_file(small_sweep: Callable[..., Any]) -> None:
    from sweeps.backends.inline import InlineBackend

    spec = small_sweep(backend="ray")
    assert sweeps.run(spec, backend=InlineBackend()) == sweeps.run(spec, backend="inline")
    with pytest.raises(UserError, match="backend must be one of inline, ray, got 'slurm'"):
        sweeps.run(spec, backend="slurm")


def test_problems_of_a_mapping() -> None:
    problems = sweeps.validate({"name": "x", "dataset": "digit", "method": "los", "search": {"trials": 0}})
    assert "did you mean 'digits_lt'?" in problems[0]
    assert "search.trials: must be at least 1, got 0" in problems
