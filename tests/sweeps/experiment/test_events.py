"""Events: their order in a fresh, a resumed and an interrupted sweep, and that a failing listener harms nothing."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.queues import in_random_order, train_all

import sweeps
from lt_train.core.errors import LongtailError, StorageError, UserError
from sweeps.config.spec import SweepSpec
from sweeps.experiment.events import (
    Dispatcher,
    Event,
    PackFailed,
    PackStarted,
    PhaseFinished,
    Preparing,
    RunFinished,
    SweepFinished,
    SweepStarted,
    SweepStopped,
    TrialFinished,
)
from sweeps.experiment.prepare import prepare
from sweeps.experiment.runner import TrackingBehind
from sweeps.experiment.trial_queue import TrialQueue
from sweeps.store.ledger import Ledger
from sweeps.store.progress import read_progress

MakeSweep = Callable[..., SweepSpec]

PHASES = ["baseline", "search", "finalist", "extended"]


@pytest.fixture
def spec(small_sweep: MakeSweep) -> SweepSpec:
    return small_sweep(search={"trials": 4}, selection={"seeds": 2, "finalists": 1, "extended_training": 2})


def trials(events: list[Event], recorded: bool) -> list[str]:
    return [one.runs.trial.name for one in events if isinstance(one, TrialFinished) and one.recorded is recorded]


def check_order(events: list[Event]) -> None:
    """Phases end in order, each after its trials; a trial ends after its runs, a run after the start of its pack."""
    assert [one.phase for one in events if isinstance(one, PhaseFinished)] == PHASES
    started: set[str] = set()
    trained: set[str] = set()
    ended: set[str] = set()
    for one in events:
        if isinstance(one, PackStarted):
            started.add(one.pack.name)
        elif isinstance(one, RunFinished):
            assert one.record.pack in started
            assert one.record.key not in trained
            trained.add(one.record.key)
        elif isinstance(one, TrialFinished):
            assert one.recorded or {record.key for record in one.runs.records} <= trained
            assert one.runs.trial.phase not in ended
        elif isinstance(one, PhaseFinished):
            ended.add(one.phase)


def without_times(directory: Path) -> list[dict[str, Any]]:
    """The ledger without times, and without digests of files that contain times."""
    lines = [json.loads(line) for line in (directory / "ledger.jsonl").read_text().splitlines()]
    varying = ("at_ms", "seconds", "times", "arrays", "check", "driver", "sweep_id", "started_ms")
    return [{name: value for name, value in line.items() if name not in varying} for line in lines]


def test_a_fresh_and_a_resumed_sweep(spec: SweepSpec, tmp_path: Path) -> None:
    fresh: list[Event] = []
    result = sweeps.run(spec, callbacks=[fresh.append])
    check_order(fresh)
    assert isinstance(fresh[0], SweepStarted)
    assert fresh[0].directory.path == tmp_path / "runs" / "small"
    assert fresh[-1] == SweepFinished(fresh[-1].sweep, result)  # type: ignore[union-attr]
    names = trials(fresh, recorded=False)
    assert len(names) == len(set(names)) == 2 + 4 + 1 + 1
    assert len([one for one in fresh if isinstance(one, RunFinished)]) == result.runs.finished

    resumed: list[Event] = []
    assert sweeps.resume(tmp_path / "runs" / "small", callbacks=[resumed.append]) == result
    check_order(resumed)
    assert trials(resumed, recorded=True) == names
    assert {type(one) for one in resumed} == {SweepStarted, TrialFinished, PhaseFinished, SweepFinished}


def test_phases_end_after_lost_heads_are_trained_again(spec: SweepSpec, tmp_path: Path) -> None:
    sweeps.run(spec)
    for file in (tmp_path / "runs" / "small" / "heads").iterdir():
        file.unlink()
    events: list[Event] = []
    sweeps.run(spec, callbacks=[events.append])
    kinds = [type(one) for one in events]
    assert PackStarted in kinds
    last = len(kinds) - 1 - kinds[::-1].index(RunFinished)
    assert PhaseFinished not in kinds[:last]
    assert kinds[last + 1 :] == [*[PhaseFinished] * len(PHASES), SweepFinished]


def test_a_callback_can_stop_a_sweep_which_is_resumed(spec: SweepSpec, tmp_path: Path) -> None:
    def stop(event: Event) -> None:
        if isinstance(event, PackStarted) and event.pack.name.startswith("search-0001"):
            raise KeyboardInterrupt

    first: list[Event] = []
    with pytest.raises(KeyboardInterrupt):
        sweeps.run(spec, callbacks=[first.append, stop])
    assert isinstance(first[-1], SweepStopped)
    assert isinstance(first[-1].error, KeyboardInterrupt)
    progress = read_progress(tmp_path / "runs" / "small")
    assert progress is not None
    assert progress.state == "stopped"

    rest: list[Event] = []
    result = sweeps.run(spec, callbacks=[rest.append])
    check_order(rest)
    assert (
        trials(rest, recorded=True)
        == trials(first, recorded=False)
        == [
            "baseline-vanilla",
            "baseline-ce",
            "search-0000",
            "search-0001",
        ]
    )
    assert trials(rest, recorded=False) == ["search-0002", "search-0003", *trials(rest, recorded=False)[2:]]
    assert len([one for one in (*first, *rest) if isinstance(one, RunFinished)]) == result.runs.finished


def test_phases_end_in_order_whatever_the_order_of_packs(small_sweep: MakeSweep, tmp_path: Path) -> None:
    spec = small_sweep(
        method=None,
        methods=["los", "ce"],
        selection={"finalists": 1},
        search={"space": {"method.lr": {"choice": [1e-3, 1e-2]}}},
    )
    bank = prepare(spec)
    for seed in range(3):
        events: list[Event] = []
        ledger = Ledger(tmp_path / f"{seed}")
        train_all(TrialQueue(spec, bank, ledger, events.append), bank, in_random_order(seed), workers=4)
        ledger.close()
        check_order(events)


def test_a_failed_pack_is_reported_and_started_again(spec: SweepSpec, tmp_path: Path) -> None:
    events: list[Event] = []
    ledger = Ledger(tmp_path)
    queue = TrialQueue(spec, prepare(spec), ledger, events.append)
    pack = queue.next_pack()
    assert pack is not None
    queue.failed(pack, "its node died", own=False)
    queue.next_pack()
    ledger.close()
    assert events == [PackStarted(pack), PackFailed(pack, "its node died", lost=True), PackStarted(pack)]


def test_a_failing_callback_changes_nothing(
    small_sweep: MakeSweep, spec: SweepSpec, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(event: Event) -> None:
        raise ZeroDivisionError("division by zero")

    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "runs"
    expected = sweeps.run({**spec.resolved(), "storage": str(undisturbed)})
    events: list[Event] = []
    result = sweeps.run(spec, callbacks=[broken, events.append])
    check_order(events)
    assert result.model_copy(update={"seconds": {}}) == expected.model_copy(update={"seconds": {}})
    lines, others = (without_times(place / "small") for place in (disturbed, undisturbed))
    lines[1]["spec"]["storage"] = others[1]["spec"]["storage"]
    assert lines == others
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.getMessage() == (
        "test_a_failing_callback_changes_nothing.<locals>.broken failed at SweepStarted: "
        "ZeroDivisionError: division by zero; the sweep is not affected"
    )


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class UnprintableLongtail(Unprintable, LongtailError):
    pass


@pytest.mark.parametrize("kind", ["unprintable", "unprintable LongtailError", "notes", "no notes"])
def test_a_failure_that_cannot_be_described_is_logged(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    error = {"unprintable": Unprintable(), "unprintable LongtailError": UnprintableLongtail()}.get(
        kind, ValueError("x")
    )
    if "notes" in kind:
        error.__notes__ = [1, "two"] if kind == "notes" else 3  # type: ignore[assignment]

    def broken(event: Event) -> None:
        raise error

    events: list[Event] = []
    emit = Dispatcher([broken, events.append])
    emit(Preparing("the bank"))
    assert events == [Preparing("the bank")]
    (warning,) = [record.getMessage() for record in caplog.records]
    assert f"failed at Preparing: {type(error).__name__}" in warning
    assert ("x; 1; two" in warning) == (kind == "notes")


@pytest.mark.parametrize("error", [StorageError("the disk is full"), RuntimeError("cannot draw")])
def test_a_sweep_is_finished_if_its_artifacts_cannot_be_written(
    error: Exception, spec: SweepSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise error

    place = tmp_path / "runs" / "small"
    with monkeypatch.context() as patched:
        patched.setattr("sweeps.experiment.listeners.write_artifacts", fail)
        result = sweeps.run(spec)
    assert sweeps.Result.model_validate_json((place / "result.json").read_text()) == result
    progress = read_progress(place)
    assert progress is not None
    assert progress.state == "finished"
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert f"{error}; `lt-sweep resume {place}` writes the artifacts again" in warning
    assert not (place / "artifacts").exists()
    written = (place / "result.json").stat().st_mtime_ns
    assert sweeps.resume(place) == result
    assert (place / "artifacts" / "table.md").exists()
    assert (place / "result.json").stat().st_mtime_ns == written, "an equal result is not written again"


def test_an_error_in_what_is_tracked_keeps_the_result(
    small_sweep: MakeSweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    spec = small_sweep(search={"trials": 1}, baselines=[], tracking={"kind": "mlflow", "uri": uri, "flush_timeout": 0})

    def fail(*_: object) -> None:
        raise RuntimeError("no description")

    monkeypatch.setattr("sweeps.experiment.listeners.finished_note", fail)
    with pytest.raises(TrackingBehind, match=r"no description; `lt-sweep resume") as raised:
        sweeps.run(spec)
    place = tmp_path / "runs" / "small"
    assert sweeps.Result.model_validate_json((place / "result.json").read_text()) == raised.value.result
    progress = read_progress(place)
    assert progress is not None
    assert (progress.state, progress.note) == ("finished", str(raised.value))


def test_files_and_mappings_are_run(small_sweep: MakeSweep, tmp_path: Path) -> None:
    document = small_sweep(search={"trials": 1}, baselines=[]).resolved()
    file, matrix = tmp_path / "sweep.yaml", tmp_path / "matrix.yaml"
    file.write_text(yaml.safe_dump(document, sort_keys=False))
    matrix.write_text(yaml.safe_dump({**document, "name": "both", "matrix": {"training.epochs": [1, 2]}}))
    result = sweeps.run(file)
    assert sweeps.run(document) == sweeps.run(str(file)) == result
    events: list[Event] = []
    assert len(sweeps.run(matrix, callbacks=[events.append]).rows) == 2
    sweeps.resume(tmp_path / "runs" / "both", callbacks=[events.append])
    started = [one.spec.name for one in events if isinstance(one, SweepStarted)]
    assert started == ["both-1", "both-2", "both-1", "both-2"]


def test_the_same_sweep_cannot_be_run_while_it_runs(spec: SweepSpec) -> None:
    refused: list[UserError] = []

    def run_again(event: Event) -> None:
        if isinstance(event, TrialFinished):
            with pytest.raises(UserError) as caught:
                sweeps.run(spec)
            refused.append(caught.value)

    assert sweeps.run(spec, callbacks=[run_again]).winner is not None
    assert "sweep small is being run by" in str(refused[0])
    assert "an earlier call in this process runs it" in str(refused[0])
