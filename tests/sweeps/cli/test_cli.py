"""`lt-sweep` on one machine: output, exit codes, and signals to real processes."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import json
import logging
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from support.ledgers import pack_lines, run_lines

import sweeps.cli.app
from lt_train.core.errors import LongtailError
from sweeps.config.spec import SweepSpec
from sweeps.experiment.plan import plan

pytestmark = pytest.mark.slow

SPECS = Path(__file__).parents[3] / "sweeps" / "specs"


@dataclass(frozen=True)
class Ended:
    returncode: int
    stdout: str
    stderr: str


Command = Callable[..., Ended]
MakeSweep = Callable[..., SweepSpec]


@pytest.fixture
def lt_sweep(capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """The command in this process."""

    def call(*arguments: object) -> Ended:
        capsys.readouterr()
        code = sweeps.cli.app.main([str(argument) for argument in arguments])
        shown = capsys.readouterr()
        return Ended(code, shown.out, shown.err)

    handler = signal.getsignal(signal.SIGTERM)
    yield call
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def spec_file(small_sweep: MakeSweep, tmp_path: Path) -> Path:
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(small_sweep().resolved(), sort_keys=False))
    return file


def test_every_command_has_help_with_an_example(lt_sweep: Command):
    top = lt_sweep("--help")
    assert top.returncode == 0
    assert top.stdout.splitlines()[2].startswith("  Run hyperparameter sweeps")
    assert "2 invalid input" in top.stdout
    listed = re.findall(r"^  (\w+)  +\w", top.stdout.partition("Commands:")[2], re.MULTILINE)
    assert {"demo", "run", "resume", "validate", "plan", "kinds", "schema", "submit", "ui"} < set(listed)
    for command in listed:
        shown = lt_sweep(command, "-h")
        assert shown.returncode == 0
        assert f"Example:\n    lt-sweep {command}" in shown.stdout
        assert all(len(line) <= 80 for line in shown.stdout.splitlines())


def test_the_version_is_that_of_the_package(lt_sweep: Command):
    assert lt_sweep("--version") == Ended(0, importlib.metadata.version("longtail-sweeps") + "\n", "")


def test_shell_completion_knows_commands(lt_sweep: Command, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("_LT_SWEEP_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "lt-sweep va")
    monkeypatch.setenv("COMP_CWORD", "1")
    assert lt_sweep().stdout.split() == ["validate"]


def test_a_bundled_spec_is_found_by_its_name_unless_a_file_has_it(
    lt_sweep: Command, spec_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    assert lt_sweep("validate", "demo", "table1").stdout == "2 sweep files valid\n"
    assert json.loads(lt_sweep("plan", "demo", "--json").stdout)["classes"] == 10
    for command in ("run", "validate", "plan", "table"):
        unknown = lt_sweep(command, "demoo")
        assert unknown.returncode == 2
        assert "bundled: cifar100_lt_ir10, " in unknown.stderr
    spec_file.rename("demo")
    assert json.loads(lt_sweep("plan", "demo", "--json").stdout)["classes"] == 6


@pytest.mark.parametrize("missing", [(), ("ray",), ("ray", "mlflow")])
def test_the_demo_runs_without_optional_packages(
    missing: tuple[str, ...], lt_sweep: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    def run(spec: SweepSpec, *, fresh: bool) -> None:
        assert fresh
        assert (spec.name, spec.storage) == ("demo", "runs")
        ran.append((spec.backend.kind, spec.tracking.kind))
        raise LongtailError("not run here")

    ran: list[tuple[str, str]] = []
    find_spec = importlib.util.find_spec
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sweeps.experiment.runner.run", run)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in missing else find_spec(name))
    ended = lt_sweep("demo")
    assert ran == [("inline" if "ray" in missing else "ray", "none" if "mlflow" in missing else "mlflow")]
    assert ended.stderr.count("\n") == (2 if missing else 1)
    if missing:
        assert f"{' and '.join(sorted(missing))} not installed: running with backend inline" in ended.stderr
        assert f"pip install 'longtail-sweeps[{','.join(sorted(missing))}]'" in ended.stderr


def test_validate_counts_files_and_prints_all_problems_of_all_files(lt_sweep: Command, tmp_path: Path):
    files = sorted(SPECS.glob("*.yaml"))
    good = lt_sweep("validate", *files)
    assert (good.returncode, good.stdout) == (0, f"{len(files)} sweep files valid\n")
    bad = tmp_path / "bad.yaml"
    bad.write_text(files[0].read_text().replace("version: 1", "version: 2\ntrails: 3"))
    worse = tmp_path / "worse.yaml"
    worse.write_text("version: 1\nversion: 1\n")
    refused = lt_sweep("validate", files[0], bad, worse)
    assert refused.returncode == 2
    assert f"{bad}:" in refused.stderr
    assert "trails" in refused.stderr
    assert f"{worse}:2" in refused.stderr
    as_json = json.loads(lt_sweep("validate", "--json", bad).stdout)
    assert as_json["files"] == 1
    assert len(as_json["problems"]) == 2


def test_plan_prints_trials_runs_and_times(lt_sweep: Command, spec_file: Path):
    planned = json.loads(lt_sweep("plan", "--json", spec_file).stdout)
    assert planned["trials"] == 7
    assert planned["proposal_batches"] == 4
    assert planned["runs"] == 7 * 2 + 3
    assert planned["classes"] == 6
    assert planned["feature_dim"] == 12
    assert planned["train_seconds"] > 0
    shown = lt_sweep("plan", spec_file)
    assert "7 in 4 proposal batches of 2" in shown.stdout
    assert "17: search 14 (2 seeds), baselines 3, finalists 0" in shown.stdout
    assert "as long" not in shown.stdout
    spec_file.write_text(spec_file.read_text().replace("extended_training: null", "extended_training: 4"))
    extended = lt_sweep("plan", spec_file).stdout
    assert "19: search 14 (2 seeds), baselines 3, finalists 0" in extended
    assert "and 2 of the winner, trained 4x as long" in extended


def test_run_prints_the_table_and_the_next_commands_and_resume_agrees(
    lt_sweep: Command, spec_file: Path, tmp_path: Path
):
    ran = lt_sweep("run", spec_file)
    assert ran.returncode == 0, ran.stderr
    for word in (
        "vanilla",
        "ce",
        "los",
        "best of 2",
        "mean ±95%",
        "many",
        "medium",
        "few",
        "lt-sweep report",
        "winner",
    ):
        assert word in ran.stdout
    assert "lt-sweep ui" not in ran.stdout, "this sweep has no tracker"
    assert all(len(line) <= 80 for line in ran.stdout.splitlines() if str(tmp_path) not in line), ran.stdout
    assert len(ran.stdout.splitlines()) <= 24, "the summary fits a screen"
    assert "17/17 runs" in ran.stderr
    again = lt_sweep("resume", "--json", tmp_path / "runs" / "small")
    result = json.loads(again.stdout)
    assert result["runs"] == {"finished": 17, "stopped": 0, "failed": 0, "shared": 0}


def test_invalid_input_exits_with_2_and_one_message(lt_sweep: Command, spec_file: Path, tmp_path: Path):
    missing = lt_sweep("run", tmp_path / "nowhere.yaml")
    assert missing.returncode == 2
    assert "nowhere.yaml" in missing.stderr
    document = yaml.safe_load(spec_file.read_text())
    document["dataset"]["path"] = str(tmp_path / "no.npz")
    spec_file.write_text(yaml.safe_dump(document))
    no_data = lt_sweep("run", spec_file)
    assert no_data.returncode == 2
    assert str(tmp_path / "no.npz") in no_data.stderr
    assert "Traceback" not in no_data.stderr
    backend = lt_sweep("run", spec_file, "--backend", "slurm")
    assert backend.returncode == 2
    assert "backend must be one of inline, ray, got 'slurm'" in backend.stderr
    assert lt_sweep("resume", tmp_path).returncode == 2
    assert lt_sweep("frobnicate").returncode == 2
    usage = lt_sweep("plan", spec_file, "--tflops", "0")
    assert usage.returncode == 2
    assert "--tflops: must be above 0, got 0" in usage.stderr.replace("'", "")


def test_a_sweep_in_which_every_trial_fails_exits_with_1(lt_sweep: Command, small_sweep: MakeSweep, tmp_path: Path):
    spec = small_sweep(search={"trials": 1, "space": {"method.lr": {"loguniform": [1e37, 1e38]}}})
    file = tmp_path / "failing.yaml"
    file.write_text(yaml.safe_dump(spec.resolved(), sort_keys=False))
    ran = lt_sweep("run", file)
    assert ran.returncode == 1
    assert "every trial failed" in ran.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_exits_with_130_and_resume_continues(
    lt_sweep: Command, small_sweep: MakeSweep, tmp_path: Path, number: signal.Signals
):
    spec = small_sweep(training={"epochs": 60}, search={"trials": 40})
    file = tmp_path / "long.yaml"
    file.write_text(yaml.safe_dump(spec.resolved(), sort_keys=False))
    running = subprocess.Popen([sys.executable, "-m", "sweeps", "run", str(file)], stderr=subprocess.PIPE, text=True)
    while not pack_lines(tmp_path / "runs" / "small"):
        assert running.poll() is None
        time.sleep(0.02)
    os.kill(running.pid, number)
    _, printed = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "interrupted; finished runs are kept, and the same command continues" in printed
    assert "Traceback" not in printed
    before = {run["key"]: run for run in run_lines(tmp_path / "runs" / "small")}
    result = json.loads(lt_sweep("resume", "--json", tmp_path / "runs" / "small").stdout)
    assert result["runs"]["finished"] == 83
    after = run_lines(tmp_path / "runs" / "small")
    assert len(after) == len({run["key"] for run in after}), "nothing is trained twice"
    assert before.items() <= {run["key"]: run for run in after}.items()


def test_a_stop_while_a_finished_sweep_is_being_tracked_closes_its_run(
    small_sweep: MakeSweep, lt_sweep: Command, tmp_path: Path
):
    """Ray resets the SIGTERM handler when it shuts down: a later stop left the parent run RUNNING."""
    spec = small_sweep(search={"trials": 2}, backend={"kind": "ray"}, tracking={"kind": "mlflow"})
    file = tmp_path / "late.yaml"
    file.write_text(yaml.safe_dump(spec.resolved(), sort_keys=False))
    store = tmp_path / "runs" / "mlflow.db"
    with (tmp_path / "log").open("w+") as log:
        running = subprocess.Popen(
            [sys.executable, "-m", "sweeps", "run", str(file)], stdout=log, stderr=log, env=without_ray()
        )
        while not parent_status(store):
            assert running.poll() is None
            time.sleep(0.1)
        with contextlib.closing(sqlite3.connect(store, timeout=30, isolation_level=None)) as busy:
            busy.execute("BEGIN EXCLUSIVE")
            while not (tmp_path / "runs" / "small" / "result.json").exists():
                assert running.poll() is None
                time.sleep(0.02)
            os.kill(running.pid, signal.SIGTERM)
            busy.execute("ROLLBACK")
        running.wait(60)
        log.seek(0)
        assert running.returncode == 130, log.read()
    assert parent_status(store) == "KILLED"
    assert lt_sweep("resume", tmp_path / "runs" / "small").returncode == 0
    assert parent_status(store) == "FINISHED"


def without_ray() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}


def parent_status(store: Path) -> str:
    """Status of the sweep's run in an MLflow store on SQLite; empty if there is no run."""
    if not store.exists():
        return ""
    with contextlib.closing(sqlite3.connect(store)) as opened:
        try:
            found = opened.execute("SELECT status FROM runs WHERE name = 'small'").fetchone()
        except sqlite3.OperationalError:  # not created yet
            return ""
    return found[0] if found else ""


def test_kinds_lists_every_plugin_group(lt_sweep: Command):
    listed = json.loads(lt_sweep("kinds", "--json").stdout)
    parts = {"method.head", "method.sampler", "method.constraint", "method.post_hoc"}
    assert {"dataset", "backbone", "stage1", "method", "search.algorithm", "backend", "tracking"} | parts <= set(listed)
    assert listed["method"]["los"]["smooth_factor"] == 0.98
    shown = lt_sweep("kinds")
    assert shown.returncode == 0
    assert "Label Over-Smooth" in shown.stdout or "smooth_factor" in shown.stdout


def test_schema_is_json_schema(lt_sweep: Command):
    schema = json.loads(lt_sweep("schema").stdout)
    assert schema["properties"]["search"]
    assert schema["additionalProperties"] is False


def test_plan_prints_the_size_of_packs_and_what_early_stopping_saves(
    lt_sweep: Command, small_sweep: MakeSweep, tmp_path: Path
):
    file = tmp_path / "halved.yaml"
    search = {"trials": 12, "proposal_batch": 6, "early_stopping": {"kind": "successive_halving", "rungs": [1, 2]}}
    file.write_text(yaml.safe_dump(small_sweep(search=search).resolved(), sort_keys=False))
    planned = json.loads(lt_sweep("plan", "--json", file).stdout)
    # Six trials train epoch 1, three epoch 2, two epoch 3: 11 of 18.
    assert planned["epochs_saved"] == pytest.approx(1 - 11 / 18)
    assert planned["lanes_per_pack"] == 12
    assert planned["pack_bytes"] == 12 * planned["run_bytes"]
    assert planned["packs_per_batch"] == 1
    shown = " ".join(lt_sweep("plan", file).stdout.replace("│", " ").split())
    assert "packs of up to 12 runs: " in shown
    assert "iB per run, 2 GiB per pack" in shown
    assert "successive_halving saves 39% of the search's epochs" in shown
    small = small_sweep(search=search, resources={"memory_per_pack": "30KiB"})
    file.write_text(yaml.safe_dump(small.resolved(), sort_keys=False))
    refused = lt_sweep("plan", file)
    assert refused.returncode == 2
    assert "resources.memory_per_pack is 30 KiB, too little for two trials of 2 seeds" in refused.stderr


def test_on_a_gpu_packs_of_baselines_take_time(small_sweep: MakeSweep):
    """The time of a small pack on a GPU is that of its steps, 0.5 ms each."""
    alone, beside = (
        plan(small_sweep(resources={"gpus_per_pack": 1}, baselines=baselines, selection={"seeds": 2}))
        for baselines in ([{"kind": "vanilla"}], [{"kind": "vanilla"}, {"kind": "ce"}])
    )
    packs, more = alone.packs - 1, beside.packs - alone.packs
    assert more == 1
    assert beside.train_seconds == pytest.approx(alone.train_seconds * (packs + more) / packs)


def test_plan_notes_what_prevents_trials_from_sharing_packs(lt_sweep: Command, small_sweep: MakeSweep, tmp_path: Path):
    file = tmp_path / "static.yaml"
    lr = {"method.lr": {"loguniform": [1e-3, 1e-1]}}
    for space, expected in ((lr, ""), (lr | {"training.batch_size": {"choice": [32, 64]}}, "training.batch_size")):
        file.write_text(yaml.safe_dump(small_sweep(search={"space": space}).resolved(), sort_keys=False))
        noted = lt_sweep("plan", file).stderr
        assert ("share no pack" in noted) is bool(expected)
        assert expected in noted


def test_the_table_counts_stopped_trials(lt_sweep: Command, small_sweep: MakeSweep, tmp_path: Path):
    file = tmp_path / "halved.yaml"
    search = {"trials": 4, "proposal_batch": 4, "early_stopping": {"kind": "successive_halving", "rungs": [1]}}
    file.write_text(yaml.safe_dump(small_sweep(search=search).resolved(), sort_keys=False))
    ran = lt_sweep("run", file)
    assert ran.returncode == 0, ran.stderr
    assert "2 of 4 trials (4 runs) were stopped early" in ran.stdout
    assert "7 runs finished, 0 failed" in ran.stdout


@pytest.mark.parametrize(
    "command",
    [
        ["--help"],
        ["run", "--help"],
        ["list"],
        ["status", "SWEEP"],
        ["stop", "SWEEP"],
        ["table", "SWEEP"],
        ["compare", "SWEEP", "OTHER"],
    ],
)
def test_commands_that_train_nothing_import_no_heavy_package(
    command: list[str], small_sweep: MakeSweep, tmp_path: Path
):
    sweeps.run(small_sweep(search={"trials": 1}))
    if "OTHER" in command:
        sweeps.run(small_sweep(name="other", search={"trials": 1}))
    paths = {"SWEEP": str(tmp_path / "runs" / "small"), "OTHER": str(tmp_path / "runs" / "other")}
    arguments = [paths.get(word, word) for word in command]
    code = f"import sys\nfrom sweeps.cli.app import main\nmain({arguments})\n"
    code += "print(sorted({'torch', 'optuna', 'sklearn', 'mlflow', 'ray', 'pandas'} & {*sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == "[]"


def test_quiet_drops_notes_and_keeps_warnings(
    lt_sweep: Command, small_sweep: MakeSweep, monkeypatch: pytest.MonkeyPatch
):
    def load_file(spec: object) -> SweepSpec:
        for level in ("debug", "info", "warning"):
            getattr(logging.getLogger("sweeps.config.matrix"), level)("a %s", level)
        return small_sweep()

    monkeypatch.setattr("sweeps.config.matrix.load_file", load_file)
    assert lt_sweep("validate", "x.yaml").stderr == "a info\nwarning: a warning\n"
    assert lt_sweep("validate", "x.yaml", "-q").stderr == "warning: a warning\n"
    assert lt_sweep("validate", "x.yaml", "-v").stderr == "a debug\na info\nwarning: a warning\n"
    assert not [one for one in logging.getLogger("sweeps").handlers if not isinstance(one, logging.NullHandler)]
