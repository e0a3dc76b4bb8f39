"""A sweep matrix: its sweeps run one after another, their results form a table, and a failure stops no other."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.ledgers import cut, run_lines

import sweeps
import sweeps.cli.app
import sweeps.experiment.runner
from lt_train.core.errors import UserError
from sweeps.analysis.matrix_table import MatrixTable, matrix_table
from sweeps.config.matrix import SweepMatrix, load_matrix
from sweeps.config.spec import SweepSpec
from sweeps.experiment.runner import MatrixFailed, resume, run
from sweeps.store.directory import save_matrix
from sweeps.store.layout import leases, read_document, sweep_directory, write_document
from sweeps.store.lease import acquire_lease
from sweeps.store.progress import JOB_VARIABLE

pytestmark = pytest.mark.slow

MakeSweep = Callable[..., SweepSpec]
MakeMatrix = Callable[..., Path]

BIG_LR = {"methods": [{"method": "ce", "space": {"method.lr": {"loguniform": [1e37, 1e38]}}}]}


@dataclass(frozen=True)
class Completed:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def matrix_file(small_sweep: MakeSweep, tmp_path: Path) -> MakeMatrix:
    """`matrix_file(axis, search={...}, ...)`: the file of a small matrix that compares two methods."""

    def make(axis: dict[str, Any], **sections: Any) -> Path:
        document = small_sweep(search={"trials": 2, "space": {"method.lr": {"loguniform": [1e-3, 1e-1]}}}).resolved()
        del document["method"], document["baselines"]
        document |= {"name": "fam", "methods": ["ce", "los"], "matrix": axis} | sections
        file = tmp_path / "fam.yaml"
        file.write_text(yaml.safe_dump(document, sort_keys=False))
        return file

    return make


@pytest.fixture
def lt_sweep(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> Iterator[Callable[..., Completed]]:
    def call(*arguments: object) -> Completed:
        capsys.readouterr()
        caplog.clear()
        code = sweeps.cli.app.main([str(argument) for argument in arguments])
        shown = capsys.readouterr()
        return Completed(code, shown.out, shown.err + caplog.text)

    caplog.set_level(logging.INFO, "sweeps")
    handler = signal.getsignal(signal.SIGTERM)
    yield call
    signal.signal(signal.SIGTERM, handler)


def test_each_is_an_ordinary_sweep_and_the_table_holds_their_results(matrix_file: MakeMatrix, tmp_path: Path) -> None:
    matrix = load_matrix(matrix_file({"training.epochs": [1, 2]}))
    table = run(matrix)
    assert (table.matrix, table.axis, table.methods) == ("fam", "training.epochs", ["vanilla", "ce", "los"])
    assert [(row.value, row.sweep, row.missing) for row in table.rows] == [("1", "fam-1", ""), ("2", "fam-2", "")]
    for row, spec in zip(table.rows, matrix.sweeps, strict=True):
        result = run(spec)
        assert len(run_lines(Path(spec.storage) / spec.name)) == result.runs.finished, (
            "a finished sweep is not trained again"
        )
        for method in result.methods:
            assert row.cells[method.method].mean == method.mean
            assert row.cells[method.method].searched == method.searched
        assert row.cells["vanilla"].mean == result.baselines["vanilla"].mean
        highest = max(cell.mean.acc_all.value or 0 for cell in row.cells.values())
        assert {cell.mean.acc_all.value for cell in row.cells.values() if cell.best} == {highest}
    assert len(list((tmp_path / "runs" / "cache" / "banks").iterdir())) == 1, "sweeps of a matrix share banks"
    assert matrix_table(matrix) == table
    assert resume(tmp_path / "runs" / "fam") == table


def test_a_failure_does_not_stop_the_others(matrix_file: MakeMatrix, features_file: Path, tmp_path: Path) -> None:
    file = matrix_file({"dataset.path": {"gone": str(tmp_path / "no.npz"), "here": str(features_file)}})
    with pytest.raises(MatrixFailed, match=r"1 of 2 sweeps of fam failed:\n  fam-gone: .*no\.npz") as failed:
        run(load_matrix(file))
    gone, here = failed.value.table.rows
    assert (gone.cells, set(here.cells)) == ({}, {"vanilla", "ce", "los"})
    assert gone.missing.startswith("failed: ")
    assert failed.value.exit_code == UserError.exit_code, "only the user can fix it"


def test_a_sweep_without_a_winner_has_failed(matrix_file: MakeMatrix) -> None:
    sound = ["ce"]
    with pytest.raises(MatrixFailed, match="fam-broken: every trial") as failed:
        run(load_matrix(matrix_file({"methods": {"broken": BIG_LR["methods"], "sound": sound}})))
    assert failed.value.exit_code == 1
    assert [list(row.cells) for row in failed.value.table.rows] == [["vanilla"], ["vanilla", "ce"]]


def test_a_fresh_run_that_was_stopped_resumes_the_fresh_sweeps(
    matrix_file: MakeMatrix, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix, runs = load_matrix(matrix_file({"training.epochs": [1, 2]})), tmp_path / "runs"
    run(matrix)
    before = {name: sweep_directory(runs / name).sweep_id for name in ("fam-1", "fam-2")}
    with acquire_lease(leases(runs), "fam-2"), pytest.raises(UserError, match="sweep fam-2 is being run by"):
        run(matrix, fresh=True)
    assert not (runs / "fam-1.previous-1").exists(), "nothing is archived while a sweep is being run"

    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("sweeps.experiment.runner.run", stopped)
        with pytest.raises(KeyboardInterrupt):
            run(matrix, fresh=True)
    resume(runs / "fam")
    for name, sweep_id in before.items():
        assert sweep_directory(runs / f"{name}.previous-1").sweep_id == sweep_id
        assert sweep_directory(runs / name).sweep_id != sweep_id


def test_a_result_of_another_spec_is_a_failure(matrix_file: MakeMatrix, tmp_path: Path) -> None:
    run(load_matrix(matrix_file({"training.epochs": [1, 2]})))
    changed = load_matrix(matrix_file({"training.epochs": {"1": 1, "2": 3}}))
    with pytest.raises(MatrixFailed, match=r"fam-2: .* holds another sweep"):
        run(changed)
    with pytest.raises(
        MatrixFailed, match=r"1 of 2 sweeps of fam failed:\n  fam-2: .*an earlier version of the sweep file"
    ) as failed:
        resume(tmp_path / "runs" / "fam")
    assert failed.value.exit_code == UserError.exit_code


def test_a_matrix_has_one_driver(matrix_file: MakeMatrix, tmp_path: Path) -> None:
    matrix = load_matrix(matrix_file({"training.epochs": [1, 2]}))
    with acquire_lease(leases(tmp_path / "runs"), "fam"), pytest.raises(UserError, match=str(os.getpid())):
        run(matrix)
    assert not (tmp_path / "runs" / "fam-1").exists()


def test_a_matrix_and_a_sweep_do_not_share_a_directory(
    matrix_file: MakeMatrix, small_sweep: MakeSweep, tmp_path: Path
) -> None:
    run(small_sweep(name="fam", search={"trials": 1}))
    matrix = load_matrix(matrix_file({"training.epochs": [1, 2]}))
    with pytest.raises(UserError, match="holds a sweep of this name"):
        run(matrix)
    run(SweepMatrix("other", matrix.axis, matrix.members))
    with pytest.raises(UserError, match="is a matrix's directory"):
        run(small_sweep(name="other"))


def test_the_table_reports_missing_results(matrix_file: MakeMatrix) -> None:
    matrix = load_matrix(matrix_file({"training.epochs": [1, 2]}))
    run(matrix.sweeps[1])
    assert [row.missing for row in matrix_table(matrix).rows] == ["not started", ""]
    changed = load_matrix(matrix_file({"training.epochs": [1, 2]}, selection={"seeds": 3}))
    assert "an earlier version of the sweep file" in matrix_table(changed).rows[1].missing
    place = Path(matrix.sweeps[1].storage) / matrix.sweeps[1].name
    cut(place, 2)
    assert matrix_table(matrix).rows[1].missing == "not finished"


def test_from_the_command_line(lt_sweep: Callable[..., Completed], matrix_file: MakeMatrix, tmp_path: Path) -> None:
    file, directory = matrix_file({"training.epochs": [1, 2]}), tmp_path / "runs" / "fam"
    assert "no sweep of fam has a result" in lt_sweep("table", file).stderr
    assert lt_sweep("validate", file).returncode == 0
    ran = lt_sweep("run", file)
    assert ran.returncode == 0, ran.stderr
    assert "fam-2: 2 of 2 sweeps of fam" in ran.stderr
    assert "*" in ran.stdout, "the best of each row is marked"
    assert all(len(line) <= 80 for line in ran.stdout.splitlines()), ran.stdout
    for again in (("table", file), ("table", directory), ("resume", directory), ("resume", file)):
        assert lt_sweep(*again).stdout == ran.stdout, again
    as_json = MatrixTable.model_validate_json(lt_sweep("table", file, "--json").stdout)
    assert as_json == matrix_table(load_matrix(file))
    markdown = lt_sweep("table", directory, "--markdown").stdout
    header = [cell.strip() for cell in markdown.splitlines()[0].strip("|").split("|")]
    assert header == ["training.epochs", "vanilla", "ce", "los"]
    assert markdown.count("**") >= 4, "one in each row is bold"
    progress = json.loads(lt_sweep("status", directory, "--json").stdout)
    assert (progress["sweep"], progress["state"], progress["note"]) == ("fam", "finished", "2 of 2 sweeps finished")
    assert progress["runs_finished"] == sum(
        json.loads(lt_sweep("status", tmp_path / "runs" / name, "--json").stdout)["runs_finished"]
        for name in ("fam-1", "fam-2")
    )
    assert "sweep fam-2: finished" in lt_sweep("status", directory).stdout
    assert lt_sweep("status", directory, "--watch").returncode == 0
    assert f"no driver is running {directory}" in lt_sweep("stop", directory).stdout
    fresh = lt_sweep("run", file, "--fresh")
    assert fresh.stdout == ran.stdout
    assert (tmp_path / "runs" / "fam-1.previous-1").is_dir()


def test_each_protocol_is_shown_with_its_rows(lt_sweep: Callable[..., Completed], matrix_file: MakeMatrix) -> None:
    file = matrix_file({"selection.on": ["val", "test"]})
    ran = lt_sweep("run", file)
    as_printed, markdown = (" ".join(lt_sweep("table", file, *how).stdout.split()) for how in ((), ("--markdown",)))
    assert as_printed == " ".join(ran.stdout.split())
    for shown in (as_printed, markdown):
        assert "val: selected on val acc_all, last epoch, mean of 2 seeds" in shown
        assert "test: selected on test acc_all, last epoch, mean of 2 seeds" in shown
        assert len(re.findall("flatter|optimistic", shown)) == 1
    assert [row["protocol"]["on"] for row in json.loads(lt_sweep("table", file, "--json").stdout)["rows"]] == [
        "val",
        "test",
    ]


def test_the_table_of_a_single_sweep_can_be_shown(
    lt_sweep: Callable[..., Completed], small_sweep: MakeSweep, tmp_path: Path
) -> None:
    run(small_sweep(search={"trials": 1}))
    shown = lt_sweep("table", tmp_path / "runs" / "small")
    assert "small: test accuracy" in shown.stdout
    assert json.loads(lt_sweep("table", tmp_path / "runs" / "small", "--json").stdout)["sweep"] == "small"
    assert lt_sweep("table", tmp_path).returncode == 2


def test_exit_codes_are_those_of_a_single_sweep(
    lt_sweep: Callable[..., Completed], matrix_file: MakeMatrix, features_file: Path, tmp_path: Path
) -> None:
    file = matrix_file({"dataset.path": {"gone": str(tmp_path / "no.npz"), "here": str(features_file)}})
    ran = lt_sweep("run", file)
    assert ran.returncode == 2
    assert "lt-sweep: 1 of 2 sweeps of fam failed" in ran.stderr
    assert "Traceback" not in ran.stderr, "a traceback is for bugs only"
    assert "fam-gone: failed" in ran.stdout
    assert "here" in ran.stdout
    state = json.loads(lt_sweep("status", tmp_path / "runs" / "fam", "--json").stdout)
    assert state["state"] == "failed"
    assert state["note"].startswith("1 of 2 sweeps finished; fam-gone failed: ")
    assert "no.npz" in state["note"]
    shown = lt_sweep("status", tmp_path / "runs" / "fam").stdout
    assert "sweep fam-gone: failed" in shown
    (tmp_path / "no.npz").write_bytes(features_file.read_bytes())
    assert lt_sweep("resume", tmp_path / "runs" / "fam").returncode == 0
    assert "failed" not in lt_sweep("status", tmp_path / "runs" / "fam").stdout


def test_a_file_uploaded_with_an_earlier_job_is_requested_again(
    matrix_file: MakeMatrix, features_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a cluster the files uploaded with a job are removed with it."""
    monkeypatch.setenv(JOB_VARIABLE, "raysubmit_1")
    uploaded = tmp_path / "job" / "features.npz"
    matrix = load_matrix(matrix_file({"training.epochs": [1, 2]}, dataset={"kind": "arrays", "path": str(uploaded)}))
    advice = r"dataset\.path was uploaded with an earlier job, upload it again with `lt-sweep submit`"
    with pytest.raises(MatrixFailed, match=advice) as failed:
        run(matrix)
    assert failed.value.exit_code == UserError.exit_code
    with pytest.raises(MatrixFailed, match=advice):
        resume(tmp_path / "runs" / "fam")
    monkeypatch.delenv(JOB_VARIABLE)
    with pytest.raises(MatrixFailed) as local:
        resume(tmp_path / "runs" / "fam")
    assert "with an earlier job" not in str(local.value)


def test_a_damaged_matrix_file_is_set_aside(matrix_file: MakeMatrix, tmp_path: Path) -> None:
    matrix, file = load_matrix(matrix_file({"training.epochs": [1, 2]})), tmp_path / "runs" / "fam" / "matrix.json"
    save_matrix(matrix, failed={})
    content = file.read_bytes()
    save_matrix(matrix, failed={})
    assert not file.with_name("matrix.json.damaged").exists()
    file.write_bytes(content[:-10])
    save_matrix(matrix, failed={})
    assert file.read_bytes() == content
    assert file.with_name("matrix.json.damaged").read_bytes() == content[:-10]


def test_a_matrix_continues_if_an_identity_is_missing(matrix_file: MakeMatrix, tmp_path: Path) -> None:
    matrix = load_matrix(matrix_file({"training.epochs": [1, 2]}))
    run(matrix)
    before = matrix_table(matrix)
    identity = tmp_path / "runs" / "fam-1" / "sweep.json"
    identity.unlink()
    assert matrix_table(matrix) == before
    assert resume(tmp_path / "runs" / "fam") == before
    assert identity.is_file()


def test_a_sweep_without_permission_fails_in_one_line(
    matrix_file: MakeMatrix, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    matrix, is_sweep = load_matrix(matrix_file({"training.epochs": [1, 2]})), sweeps.experiment.runner.is_sweep
    run(matrix)

    def refuse(path: Path) -> bool:
        if path.name == "fam-1":
            raise PermissionError(13, "Permission denied", str(path))
        return is_sweep(path)

    monkeypatch.setattr("sweeps.experiment.runner.is_sweep", refuse)
    with contextlib.suppress(MatrixFailed):
        resume(tmp_path / "runs" / "fam")
    (error,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert error.getMessage().startswith("fam-1: ")
    assert "Permission denied" in error.getMessage()
    assert error.exc_info is None


def test_a_matrix_with_unknown_kinds_is_shown(
    lt_sweep: Callable[..., Completed], matrix_file: MakeMatrix, tmp_path: Path
) -> None:
    lt_sweep("run", matrix_file({"training.epochs": [1, 2]}))
    for file in (tmp_path / "runs").glob("fam*/*.json"):
        if file.name in ("matrix.json", "sweep.json"):
            document = read_document(file)
            assert document is not None
            write_document(file, json.loads(json.dumps(document).replace('"kind": "los"', '"kind": "of_a_plugin"')))
    shown = lt_sweep("status", tmp_path / "runs" / "fam")
    assert shown.returncode == 0, shown.stderr
    assert "sweep fam-2: finished" in shown.stdout
    assert lt_sweep("stop", tmp_path / "runs" / "fam").returncode == 0
    assert "of_a_plugin" in lt_sweep("resume", tmp_path / "runs" / "fam").stderr


@pytest.mark.parametrize("from_home", [False, True])
def test_a_local_matrix_is_not_looked_up_on_the_cluster(
    from_home: bool,
    lt_sweep: Callable[..., Completed],
    matrix_file: MakeMatrix,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file, directory = matrix_file({"training.epochs": [1, 2]}), tmp_path / "runs" / "fam"
    lt_sweep("run", file)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")
    monkeypatch.setenv("HOME", str(tmp_path))
    targets = (Path("~/fam.yaml"), Path("~/runs/fam")) if from_home else (file, directory)
    for command, target in (("status", targets[1]), ("stop", targets[1]), ("resume", targets[1])):
        done = lt_sweep(command, target)
        assert done.returncode == 0, done.stderr
    if not from_home:
        assert lt_sweep("resume", file).returncode == 0
    assert "127.0.0.1:1" in lt_sweep("status", "fam").stderr


def test_the_plan_adds_up_and_counts_shared_work_once(
    lt_sweep: Callable[..., Completed], matrix_file: MakeMatrix
) -> None:
    file = matrix_file({"training.epochs": [1, 2]})
    planned = json.loads(lt_sweep("plan", file, "--json").stdout)
    one, two = planned["sweeps"]["fam-1"], planned["sweeps"]["fam-2"]
    assert planned["sum"]["runs"] == one["runs"] + two["runs"]
    assert planned["sum"]["bank_bytes"] == one["bank_bytes"] == two["bank_bytes"]
    shown = lt_sweep("plan", file, file, "--tflops", "10").stdout
    assert "10 TFLOP/s" in shown
    assert shown.count("fam-1") == 2
