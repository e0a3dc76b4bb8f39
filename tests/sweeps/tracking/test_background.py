"""The background tracker: no waiting, no loss, no duplicates, and a clean end."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import pytest

from lt_train.core.errors import UserError
from sweeps.config.interfaces import Champion, TrackedTrial
from sweeps.tracking import background
from sweeps.tracking.background import BackgroundTracker

NOWHERE = Path("nowhere")


def trial(key: str) -> TrackedTrial:
    return TrackedTrial(key, key, "search", {}, {}, {}, {}, failed=False, finished_ms=0)


class Server:
    """A fake tracker. Blocks unless `open` is set, fails while `error` is set, and records calls and their threads.

    At the call `block_at` it clears `open` and sets `blocked`.
    """

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.threads: set[str] = set()
        self.open = threading.Event()
        self.open.set()
        self.error: Exception | None = None
        self.attempts = 0
        self.block_at = ""
        self.blocked = threading.Event()

    def connect(self) -> Server:
        self._call("connected")
        return self

    def log_trial(self, trial: TrackedTrial) -> None:
        self._call(trial.key)

    def finish(self, metrics: Mapping[str, float], artifacts: Path, champion: Champion | None, note: str = "") -> None:
        self._call("finished")

    def interrupted(self) -> None:
        self._call("interrupted")

    def _call(self, name: str) -> None:
        self.attempts += 1
        if name == self.block_at:
            self.open.clear()
            self.blocked.set()
        assert self.open.wait(20)
        if self.error is not None:
            raise self.error
        self.calls.append(name)
        self.threads.add(threading.current_thread().name)


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.open.set()


def open_when_stopping(server: Server, tracker: BackgroundTracker) -> None:
    """Unblock the server once `interrupted` has been called."""

    def wait() -> None:
        while not tracker._stopping:
            time.sleep(0.01)
        server.open.set()

    threading.Thread(target=wait, daemon=True).start()


def test_one_thread_makes_all_calls_once_and_in_order(server: Server) -> None:
    tracker = BackgroundTracker(server.connect)
    for number in range(20):
        tracker.log_trial(partial(trial, f"t{number}"))
    assert tracker.finish({}, NOWHERE, None)
    assert server.calls == ["connected", *(f"t{number}" for number in range(20)), "finished"]
    assert len(server.threads) == 1
    assert threading.current_thread().name not in server.threads
    assert tracker.last_error is None
    assert tracker.seconds > 0


def test_log_trial_does_not_wait(server: Server) -> None:
    server.open.clear()
    tracker = BackgroundTracker(server.connect)
    for number in range(3):
        tracker.log_trial(partial(trial, f"t{number}"))
    assert server.calls == []
    server.open.set()
    assert tracker.finish({}, NOWHERE, None)
    assert server.calls == ["connected", "t0", "t1", "t2", "finished"]


def test_nothing_is_lost_if_the_server_comes_back(server: Server) -> None:
    server.error = ConnectionError("no answer")
    tracker = BackgroundTracker(server.connect)
    tracker.log_trial(partial(trial, "t0"))
    tracker.log_trial(partial(trial, "t1"))
    deadline = time.monotonic() + 20
    while tracker.last_error is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert isinstance(tracker.last_error, ConnectionError)
    assert tracker.error_summary == "no answer"
    server.error = None
    assert tracker.finish({}, NOWHERE, None)
    assert server.calls == ["connected", "t0", "t1", "finished"]
    assert tracker.last_error is None
    assert tracker.error_summary == ""
    assert server.attempts == 1 + 4, "no call follows a failure at once"


def test_a_failed_server_is_tried_again_after_a_pause(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "RETRY_SECONDS", 0.0)
    server.error = ConnectionError("no answer")
    tracker = BackgroundTracker(server.connect)
    for number in range(3):
        tracker.log_trial(partial(trial, f"t{number}"))
    assert not tracker.finish({}, NOWHERE, None)
    assert str(tracker.last_error) == "no answer"
    assert server.attempts == 6, "connecting: first, for three trials, at the end, and to mark the sweep as stopped"
    assert server.calls == []


def test_a_trial_that_cannot_be_built_does_not_delay_others(server: Server) -> None:
    def unreadable() -> TrackedTrial:
        raise OSError("its curve cannot be read")

    tracker = BackgroundTracker(server.connect)
    for make in (partial(trial, "t0"), unreadable, partial(trial, "t2")):
        tracker.log_trial(make)
    assert not tracker.finish({}, NOWHERE, None)
    assert [call for call in server.calls if call != "connected"] == ["t0", "t2", "interrupted"]
    assert tracker.pending == 1
    assert tracker.error_summary == "its curve cannot be read"


def test_nothing_is_written_after_the_lease_is_lost(server: Server) -> None:
    """The driver that has the lease writes it."""
    tracker = BackgroundTracker(server.connect, may_write=lambda: "t2" not in server.calls)
    server.open.clear()
    for number in range(8):
        tracker.log_trial(partial(trial, f"t{number}"))
    server.open.set()
    assert not tracker.finish({}, NOWHERE, None)
    assert server.calls == ["connected", "t0", "t1", "t2"]


def test_a_sweep_whose_result_cannot_be_written_is_marked_as_stopped(server: Server) -> None:
    def refused(*arguments: object) -> None:
        raise OSError("artifact store unavailable")

    reported: list[str] = []
    tracker = BackgroundTracker(server.connect, on_change=lambda pending, error: reported.append(error))
    server.finish = refused  # type: ignore[assignment]
    assert not tracker.finish({}, NOWHERE, None)
    assert server.calls[-1] == "interrupted"
    assert (str(tracker.last_error), reported[-1]) == ("artifact store unavailable", "artifact store unavailable")


def test_changes_of_the_pending_trials_are_reported(server: Server) -> None:
    server.open.clear()
    reported: list[tuple[int, str]] = []
    tracker = BackgroundTracker(server.connect, on_change=lambda pending, error: reported.append((pending, error)))
    tracker.log_trial(partial(trial, "t0"))
    tracker.log_trial(partial(trial, "t1"))
    server.open.set()
    assert tracker.finish({}, NOWHERE, None)
    assert [pending for pending, _ in reported][-1] == 0
    assert {1, 2} & {pending for pending, _ in reported}
    server.error = ConnectionError("no answer")
    away = BackgroundTracker(server.connect, on_change=lambda pending, error: reported.append((pending, error)))
    away.log_trial(partial(trial, "t2"))
    assert not away.finish({}, NOWHERE, None)
    assert reported[-1] == (1, "no answer")


def test_an_interrupt_waits_for_the_current_call_only(server: Server) -> None:
    server.open.clear()
    tracker = BackgroundTracker(server.connect)
    for number in range(50):
        tracker.log_trial(partial(trial, f"t{number}"))
    open_when_stopping(server, tracker)
    tracker.interrupted()
    assert server.calls == ["connected", "interrupted"]


@pytest.mark.parametrize(
    ("reached", "calls"),
    [("t0", ["connected", "t0", "interrupted"]), ("finished", ["connected", "t0", "t1", "finished"])],
)
def test_an_interrupted_finish_is_completed_or_marked(server: Server, reached: str, calls: list[str]) -> None:
    """A sweep that lacks trials is not marked as finished; one that is finished stays so."""
    tracker = BackgroundTracker(server.connect)
    server.block_at = reached
    tracker.log_trial(partial(trial, "t0"))
    tracker.log_trial(partial(trial, "t1"))
    ending = threading.Thread(target=lambda: tracker.finish({}, NOWHERE, None))
    ending.start()
    assert server.blocked.wait(20)
    open_when_stopping(server, tracker)
    tracker.interrupted()
    assert server.calls == calls
    ending.join(20)


def test_a_user_error_is_not_retried(server: Server) -> None:
    server.error = UserError("mlflow is not installed")
    tracker = BackgroundTracker(server.connect, flush_timeout=60)
    begin = time.monotonic()
    assert not tracker.finish({}, NOWHERE, None)
    assert time.monotonic() - begin < 10
    assert tracker.error_summary == "mlflow is not installed"
