"""Progress of a sweep on disk, on a terminal and in a job's log: while it runs, once it ends, after its driver died."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from support.ledgers import pack_lines

import sweeps
from sweeps.cli.app import main
from sweeps.config.spec import SweepSpec
from sweeps.reporting.progress import as_line, as_table
from sweeps.store import progress
from sweeps.store.layout import leases, write_document
from sweeps.store.lease import acquire_lease
from sweeps.store.progress import (
    JOB_VARIABLE,
    PROGRESS_PREFIX,
    BestTrial,
    Progress,
    Publisher,
    last_progress,
    read_progress,
    strip_progress,
)

MakeSweep = Callable[..., SweepSpec]

HALF = Progress(
    sweep="half",
    state="running",
    trials_finished=5,
    trials_failed=1,
    trials_stopped=2,
    trials=10,
    runs_finished=25,
    runs=50,
    runs_per_second=2.5,
    seconds_left=10.0,
    best=BestTrial(trial="los d=0.9", objective=0.8125, protocol="val acc_all"),
    packs_lost=1,
    packs_failed=2,
    tracking_behind=3,
    tracking_error="no connection",
    note="a note",
    at_ms=1_700_000_000_000,
)


def shown(progress: Progress) -> str:
    console = Console(width=100, record=True, file=open(os.devnull, "w"))
    console.print(as_table(progress, where="runs/half"))
    return console.export_text()


def test_a_finished_sweep_reports_its_winner(small_sweep: MakeSweep, tmp_path: Path) -> None:
    spec = small_sweep(search={"trials": 4}, selection={"seeds": 2, "finalists": 1})
    result = sweeps.run(spec)
    progress = read_progress(tmp_path / "runs" / "small")
    assert progress is not None
    assert (progress.state, progress.seconds_left) == ("finished", 0.0)
    assert progress.trials_finished == progress.trials == 2 + 4 + 1
    assert progress.runs_finished == progress.runs == 1 + 2 + 8 + 2
    assert progress.best is not None
    best = max(trial.objective for trial in result.trials if trial.objective is not None)
    assert progress.best.objective == pytest.approx(best)
    assert progress.best.protocol == "val acc_all"
    assert f"process {os.getpid()}" in progress.driver
    assert result.winner is not None
    assert progress.winner.startswith(f"trial {result.winner.trial}, d=")
    assert f": test {100 * result.winner.mean.acc_all.value:.2f}" in progress.winner
    assert progress.winner.count(" over ") == 2
    text = shown(progress)
    assert " ".join(progress.winner.split()) in " ".join(text.split())
    for row in ("best", "left", "note"):
        assert row not in text


def test_a_failed_sweep_reports_the_reason(
    small_sweep: MakeSweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("out of ideas")

    monkeypatch.setattr("lt_train.retrain.fused.fit", fail)
    with pytest.raises(RuntimeError, match="out of ideas"):
        sweeps.run(small_sweep())
    progress = read_progress(tmp_path / "runs" / "small")
    assert progress is not None
    assert (progress.state, progress.note) == ("failed", "out of ideas")


def test_status_of_a_running_a_stopped_and_a_killed_sweep(
    small_sweep: MakeSweep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, directory = tmp_path / "sweep.yaml", tmp_path / "runs" / "small"
    file.write_text(yaml.safe_dump(small_sweep(training={"epochs": 100}, search={"trials": 40}).resolved()))

    def start() -> subprocess.Popen[bytes]:
        before = len(pack_lines(directory))
        process = subprocess.Popen([sys.executable, "-m", "sweeps", "run", str(file)], stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while len(pack_lines(directory)) == before:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return process

    def ask() -> dict[str, object]:
        assert main(["status", str(directory), "--json"]) == 0
        found: dict[str, object] = json.loads(capsys.readouterr().out)
        return found

    running = start()
    assert ask()["state"] == "running"
    assert main(["status", str(directory)]) == 0
    table = capsys.readouterr().out
    assert "sweep small: running" in table
    assert f"process {running.pid}" in table.replace("\n", "")
    assert main(["list", "--storage", str(tmp_path / "runs"), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["sweep"], row["state"]) == ("small", "running")

    assert main(["stop", str(directory)]) == 0
    assert f"process {running.pid}" in capsys.readouterr().out
    assert running.wait(10) == 130
    assert ask()["state"] == "stopped"
    assert main(["stop", str(directory)]) == 0
    assert "no driver is running" in capsys.readouterr().out

    running = start()
    running.send_signal(signal.SIGKILL)
    running.wait()
    gone = ask()
    assert gone["state"] == "stopped"
    assert gone["note"] == f"its driver no longer runs; continue with `lt-sweep resume {directory}`"
    assert main(["status", str(directory), "--watch"]) == 1
    assert "sweep small: stopped" in capsys.readouterr().out


def test_a_directory_without_a_sweep_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("status", "stop"):
        assert main([command, str(tmp_path)]) == 2
        assert "is not a sweep directory" in capsys.readouterr().err
    assert main(["list", "--storage", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"no sweeps in {tmp_path}\n"


def test_the_end_of_an_earlier_driver_is_not_that_of_the_current_one(
    small_sweep: MakeSweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "runs" / "small"
    sweeps.run(small_sweep(search={"trials": 1}))

    def ask(*how: str) -> dict[str, object]:
        assert main(["status", str(directory), "--json", *how]) == 0
        found: dict[str, object] = json.loads(capsys.readouterr().out.splitlines()[-1])
        return found

    assert ask()["state"] == "finished"
    with contextlib.ExitStack() as lease:
        current = lease.enter_context(acquire_lease(leases(tmp_path / "runs"), "small"))
        found = ask()
        assert (found["state"], found["driver"], found["winner"]) == ("preparing", current.who, "")
        assert found["note"] == "the last driver ended: finished"
        polls = []

        def wait(_: float) -> None:
            polls.append(1)
            lease.close()

        with monkeypatch.context() as patched:
            patched.setattr("sweeps.cli.status.time.sleep", wait)
            assert ask("--watch")["state"] == "finished"
        assert polls, "the watch did not end while a driver was preparing"
    own = {"driver": current.who, "started_ms": 2**50}
    ended = read_progress(directory)
    assert ended is not None
    write_document(directory / "progress.json", ended.model_dump(mode="json") | own)
    with acquire_lease(leases(tmp_path / "runs"), "small"):
        assert ask()["state"] == "finished", "and is about to release the lease"


def recorded(directory: Path, spec: dict[str, object]) -> Path:
    directory.mkdir(parents=True)
    known = {"sweep_id": "a", "started_ms": 1, "spec_fingerprint": "b", "bank_fingerprint": "c", "spec": spec}
    write_document(directory / "sweep.json", known)
    return directory


def test_a_sweep_with_unknown_kinds_is_shown_and_stopped(
    small_sweep: MakeSweep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = small_sweep().resolved()
    document["method"]["kind"] = "of_a_plugin"
    directory = recorded(tmp_path / "runs" / "mine", document)
    assert main(["status", str(directory)]) == 0
    assert "sweep mine: stopped" in capsys.readouterr().out
    assert main(["stop", str(directory)]) == 0
    assert "no driver is running" in capsys.readouterr().out
    assert main(["list", "--storage", str(directory.parent), "--json"]) == 0
    assert [row["sweep"] for row in json.loads(capsys.readouterr().out)] == ["mine"]
    assert main(["ui", str(directory)]) == 2
    assert "tracking is 'none', which has no user interface" in capsys.readouterr().err


def test_a_damaged_directory_does_not_hide_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recorded(tmp_path / "good", {})
    damaged = recorded(tmp_path / "damaged", {}) / "sweep.json"
    damaged.write_text("{")
    assert main(["list", "--storage", str(tmp_path), "--json"]) == 0
    rows = {row["sweep"]: row for row in json.loads(capsys.readouterr().out)}
    assert (rows["good"]["state"], rows["damaged"]["state"]) == ("stopped", "unreadable")
    assert rows["damaged"]["where"].startswith(f"{damaged} is damaged; remove it and run the sweep file again")
    assert main(["list", "--storage", str(tmp_path)]) == 0
    assert main(["status", str(damaged.parent)]) == 2


def test_a_storage_without_permission_is_named(
    small_sweep: MakeSweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = recorded(tmp_path / "mine", small_sweep().resolved())

    def refuse(path: object) -> list[str]:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("sweeps.store.lease.os.listdir", refuse)
    for command in ("status", "resume"):
        assert main([command, str(directory)]) == 1
        printed = capsys.readouterr().err
        assert printed == f"lt-sweep: cannot access {leases(tmp_path)}: Permission denied\n"
    assert main(["status", str(directory), "--verbose"]) == 1
    assert "Traceback" in capsys.readouterr().err
    with pytest.raises(PermissionError):  # only the command line converts it
        sweeps.resume(directory)


def test_stop_of_another_users_driver_and_of_one_that_has_just_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = recorded(tmp_path / "mine", {})

    def not_mine(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    def gone(*_: object) -> None:
        lease.close()
        raise ProcessLookupError(3, "No such process")

    with contextlib.ExitStack() as lease:
        lease.enter_context(acquire_lease(leases(tmp_path), "mine"))
        monkeypatch.setattr(os, "kill", not_mine)
        assert main(["stop", str(directory)]) == 2
        assert f"process {os.getpid()}; only that user can stop it" in capsys.readouterr().err
        monkeypatch.setattr(os, "kill", gone)
        assert main(["stop", str(directory)]) == 0
        assert f"process {os.getpid()}" in capsys.readouterr().out


def test_the_table_shows_counts_rates_and_errors() -> None:
    text = shown(HALF)
    for part in (
        "sweep half: running",
        "5 of 10 finished, 1 failed, 2 stopped early",
        "25 of 50",
        "val acc_all 81.25 % at los d=0.9",
        "2.5 runs/s",
        "10 s",
        "1 lost",
        "2 failed",
        "3 trials behind",
        "no connection",
        "a note",
        "runs/half",
    ):
        assert part in text
    assert all(len(line) <= 100 for line in text.splitlines())
    line = as_line(HALF)
    assert "\n" not in line
    assert line.startswith("sweep half: running; trials 5 of 10 finished")


def test_notes_are_not_markup(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    note = "cannot read [/data/x.npz] or [red]y[/red]"
    assert note in shown(HALF.model_copy(update={"note": note}))
    directory = recorded(tmp_path / "[" / "x]", {})
    assert main(["list", "--storage", str(directory.parent)]) == 0
    assert main(["status", str(directory)]) == 0
    assert "sweep x]: stopped" in capsys.readouterr().out


def test_no_rate_is_shown_once_all_runs_are_finished() -> None:
    done = HALF.model_copy(update={"trials_finished": 10, "runs_finished": 50, "seconds_left": 0.0})
    assert "rate" not in shown(done)
    assert "no connection" in shown(done.model_copy(update={"state": "stopped"}))


def test_notes_report_the_preparation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(JOB_VARIABLE, "raysubmit_1")
    monkeypatch.setattr(progress, "PUBLISH_INTERVALS", {"file": 0.0, "line": 0.0})
    file = tmp_path / "sweep.yaml"
    file.write_text(
        yaml.safe_dump(
            {
                "version": 1,
                "name": "images",
                "dataset": {"kind": "digits_lt"},
                "backbone": {"kind": "small_cnn", "width": 4},
                "stage1": {"kind": "ce", "epochs": 2},
                "method": "los",
                "search": {"trials": 2, "space": {"method.lr": {"loguniform": [1e-4, 1e-1]}}},
                "selection": {"seeds": 2, "finalists": 0},
                "backend": "inline",
                "tracking": {"kind": "none"},
                "storage": str(tmp_path),
            }
        )
    )
    monkeypatch.chdir(tmp_path)  # a job changes its directory
    assert main(["run", str(file)]) == 0
    printed = [last_progress(line) for line in capsys.readouterr().out.splitlines() if PROGRESS_PREFIX in line]
    notes = [progress.note for progress in printed if progress is not None]
    assert "" == notes[0] == notes[-1]
    assert notes[1].startswith("stage 1 (small_cnn, ce) on cpu: ")
    assert notes[-2] == "writing the result and the remaining trials to tracking"


def test_unknown_counts_are_not_shown() -> None:
    text = shown(Progress(sweep="new", state="preparing", note="stage 1: 3/40 epochs"))
    assert "stage 1: 3/40 epochs" in text
    assert "trials" not in text
    assert "0 of 0" not in text


def test_a_job_prints_progress_that_is_parsed_and_hidden_from_people(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(JOB_VARIABLE, "raysubmit_1")
    monkeypatch.setattr(progress, "PUBLISH_INTERVALS", {"file": 0.0, "line": 0.0})
    publisher = Publisher(Progress(sweep="one", state="preparing"))
    print("a line for people")
    publisher.update(state="running", trials_finished=1)
    publisher.update(trials_finished=2)
    log = capsys.readouterr().out
    assert log.count(PROGRESS_PREFIX) == 3
    found = last_progress(log)
    assert found is not None
    assert (found.state, found.trials_finished) == ("running", 2)
    assert strip_progress(log) == "a line for people\n"
    assert last_progress("nothing\n") is None
    assert last_progress(log + PROGRESS_PREFIX + '{"cut sh') == found
    assert last_progress(f"{PROGRESS_PREFIX}{{}}\n") is None


def test_nothing_is_printed_outside_a_job(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(JOB_VARIABLE, raising=False)
    Publisher(Progress(sweep="one", state="preparing")).update(state="running")
    assert capsys.readouterr().out == ""


def test_progress_is_written_at_intervals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publisher = Publisher(Progress(sweep="one", state="preparing"))
    publisher.directory = tmp_path
    publisher.update(state="running")
    for done in range(1000):
        publisher.update(trials_finished=done)
    seen = read_progress(tmp_path)
    assert seen is not None
    assert seen.trials_finished < 999
    publisher.update(state="finished")
    seen = read_progress(tmp_path)
    assert seen is not None
    assert (seen.state, seen.trials_finished) == ("finished", 999)


def test_the_last_update_of_a_burst_is_published_later(tmp_path: Path) -> None:
    """A pack finishes many trials at once, and the next pack may take an hour."""
    publisher = Publisher(Progress(sweep="one", state="preparing"))
    publisher.directory = tmp_path
    publisher.update(state="running")
    for done in range(12):
        publisher.update(trials_finished=done + 1)
    deadline = time.monotonic() + 20
    while (seen := read_progress(tmp_path)) is None or seen.trials_finished < 12:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_driver_that_lost_its_lease_writes_no_progress(tmp_path: Path) -> None:
    publisher = Publisher(Progress(sweep="one", state="preparing"), may_write=lambda: False)
    publisher.directory = tmp_path
    publisher.update(state="failed", note="a note")
    assert read_progress(tmp_path) is None


def test_a_full_disk_does_not_fail_the_publisher(small_disk: Callable[[str], Path]) -> None:
    disk = small_disk("8k")
    with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(b"\0" * 1024)
    publisher = Publisher(Progress(sweep="one", state="preparing"))
    publisher.directory = disk
    publisher.update(state="finished")


def test_a_job_continues_if_its_log_cannot_be_written(small_sweep: Callable[..., SweepSpec], tmp_path: Path) -> None:
    """Ray keeps the log of a job on the head's disk, which may be full."""
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump(small_sweep(search={"trials": 2}).resolved(), sort_keys=False))
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "sweeps", "run", str(file)]
        subprocess.run(command, stdout=full, stderr=full, env={**os.environ, JOB_VARIABLE: "a job"}, check=False)
    progress = read_progress(tmp_path / "runs" / "small")
    assert progress is not None
    assert progress.state == "finished"


@pytest.mark.parametrize("text", ["", "{", '{"sweep": "x"}', '{"version": 2, "sweep": "x", "state": "running"}'])
def test_unreadable_progress_is_ignored(tmp_path: Path, text: str) -> None:
    (tmp_path / "progress.json").write_text(text)
    assert read_progress(tmp_path) is None


@pytest.mark.parametrize("document", [{"sweep": "x"}, {"version": 2, "sweep": "x", "state": "running"}])
def test_progress_of_another_version_is_ignored(tmp_path: Path, document: dict[str, object]) -> None:
    write_document(tmp_path / "progress.json", document)
    assert read_progress(tmp_path) is None
