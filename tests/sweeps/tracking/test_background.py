"""Tracking in its thread: nobody waits for it, nothing is lost or shown twice, and it ends when told to."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import pytest

from sweeps.config.tracking import Champion, TrialFinished
from sweeps.tracking import background as patient
from sweeps.tracking.background import BackgroundTracker

NOWHERE = Path("nowhere")


def card(key: str) -> TrialFinished:
    return TrialFinished(key, key, "search", {}, {}, {}, {}, failed=False, finished_ms=0)


class Server:
    """Answers when `open` is set; refuses as long as `away`; notes what it was told and by which thread.

    Told `hold_at`, it closes itself before it answers, and sets `held`.
    """

    def __init__(self) -> None:
        self.told: list[str] = []
        self.threads: set[str] = set()
        self.open = threading.Event()
        self.open.set()
        self.away = False
        self.attempts = 0
        self.hold_at = ""
        self.held = threading.Event()

    def connect(self) -> Server:
        self._answer("connected")
        return self

    def log_trial(self, card: TrialFinished) -> None:
        self._answer(card.key)

    def finish(self, metrics: Mapping[str, float], artifacts: Path, champion: Champion | None, note: str = "") -> None:
        self._answer("finished")

    def interrupted(self) -> None:
        self._answer("interrupted")

    def _answer(self, what: str) -> None:
        self.attempts += 1
        if what == self.hold_at:
            self.open.clear()
            self.held.set()
        assert self.open.wait(20)
        if self.away:
            raise ConnectionError("nobody is there")
        self.told.append(what)
        self.threads.add(threading.current_thread().name)


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.open.set()


def open_once_stopping(server: Server, tracker: BackgroundTracker) -> None:
    """However late the caller gets to `interrupted`."""

    def wait() -> None:
        while not tracker._stopping:
            time.sleep(0.01)
        server.open.set()

    threading.Thread(target=wait, daemon=True).start()


def test_everything_is_shown_once_in_order_by_one_thread(server: Server) -> None:
    tracker = BackgroundTracker(server.connect)
    for number in range(20):
        tracker.log_trial(partial(card, f"t{number}"))
    assert tracker.finish({}, NOWHERE, None)
    assert server.told == ["connected", *(f"t{number}" for number in range(20)), "finished"]
    assert len(server.threads) == 1
    assert threading.current_thread().name not in server.threads
    assert tracker.trouble is None
    assert tracker.seconds > 0


def test_nobody_waits_while_a_trial_is_being_shown(server: Server) -> None:
    server.open.clear()
    tracker = BackgroundTracker(server.connect)
    for number in range(3):
        tracker.log_trial(partial(card, f"t{number}"))
    assert server.told == []
    server.open.set()
    assert tracker.finish({}, NOWHERE, None)
    assert server.told == ["connected", "t0", "t1", "t2", "finished"]


def test_a_server_that_comes_back_is_told_all_of_it(server: Server) -> None:
    server.away = True
    tracker = BackgroundTracker(server.connect)
    tracker.log_trial(partial(card, "t0"))
    tracker.log_trial(partial(card, "t1"))
    deadline = time.monotonic() + 20
    while tracker.trouble is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert isinstance(tracker.trouble, ConnectionError)
    assert tracker.why_behind == "nobody is there"
    server.away = False
    assert tracker.finish({}, NOWHERE, None)
    assert server.told == ["connected", "t0", "t1", "finished"]
    assert tracker.trouble is None
    assert tracker.why_behind == ""
    assert server.attempts == 1 + 4, "left alone for a while after it did not answer"


def test_a_server_is_tried_again_after_a_while(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patient, "RETRY_SECONDS", 0.0)
    server.away = True
    tracker = BackgroundTracker(server.connect)
    for number in range(3):
        tracker.log_trial(partial(card, f"t{number}"))
    assert not tracker.finish({}, NOWHERE, None)
    assert str(tracker.trouble) == "nobody is there"
    assert server.attempts == 6, "of connecting: first, after each of three, at the end, and to say that it is given up"
    assert server.told == []


def test_what_cannot_be_shown_is_trouble_and_holds_up_nothing_behind_it(server: Server) -> None:
    def spoiled() -> TrialFinished:
        raise OSError("its curve cannot be read")

    tracker = BackgroundTracker(server.connect)
    for make in (partial(card, "t0"), spoiled, partial(card, "t2")):
        tracker.log_trial(make)
    assert not tracker.finish({}, NOWHERE, None)
    assert [told for told in server.told if told != "connected"] == ["t0", "t2", "interrupted"]
    assert tracker.behind == 1
    assert tracker.why_behind == "its curve cannot be read"


def test_who_may_not_write_any_more_shows_no_more(server: Server) -> None:
    """Another driver has the lease, and shows what is to be shown."""
    tracker = BackgroundTracker(server.connect, may_write=lambda: "t2" not in server.told)
    server.open.clear()
    for number in range(8):
        tracker.log_trial(partial(card, f"t{number}"))
    server.open.set()
    assert not tracker.finish({}, NOWHERE, None)
    assert server.told == ["connected", "t0", "t1", "t2"]


def test_a_sweep_that_cannot_be_shown_is_not_left_as_running(server: Server) -> None:
    def refused(*arguments: object) -> None:
        raise OSError("no artifact today")

    heard: list[str] = []
    tracker = BackgroundTracker(server.connect, told=lambda behind, why: heard.append(why))
    server.finish = refused  # type: ignore[assignment]
    assert not tracker.finish({}, NOWHERE, None)
    assert server.told[-1] == "interrupted"
    assert (str(tracker.trouble), heard[-1]) == ("no artifact today", "no artifact today")


def test_how_far_it_is_behind_is_told_whenever_that_changes(server: Server) -> None:
    server.open.clear()
    heard: list[tuple[int, str]] = []
    tracker = BackgroundTracker(server.connect, told=lambda behind, why: heard.append((behind, why)))
    tracker.log_trial(partial(card, "t0"))
    tracker.log_trial(partial(card, "t1"))
    server.open.set()
    assert tracker.finish({}, NOWHERE, None)
    assert [behind for behind, _ in heard][-1] == 0
    assert {1, 2} & {behind for behind, _ in heard}
    server.away = True
    away = BackgroundTracker(server.connect, told=lambda behind, why: heard.append((behind, why)))
    away.log_trial(partial(card, "t2"))
    assert not away.finish({}, NOWHERE, None)
    assert heard[-1] == (1, "nobody is there")


def test_an_interrupt_waits_for_one_trial_and_not_for_all(server: Server) -> None:
    server.open.clear()
    tracker = BackgroundTracker(server.connect)
    for number in range(50):
        tracker.log_trial(partial(card, f"t{number}"))
    open_once_stopping(server, tracker)
    tracker.interrupted()
    assert server.told == ["connected", "interrupted"]


@pytest.mark.parametrize(
    ("reached", "told"),
    [("t0", ["connected", "t0", "interrupted"]), ("finished", ["connected", "t0", "t1", "finished"])],
)
def test_an_interrupt_of_the_end_is_no_end_half_told(server: Server, reached: str, told: list[str]) -> None:
    """What was under way is waited for; a sweep that lacks trials is not called finished, one that is stays so."""
    tracker = BackgroundTracker(server.connect)
    server.hold_at = reached
    tracker.log_trial(partial(card, "t0"))
    tracker.log_trial(partial(card, "t1"))
    ending = threading.Thread(target=lambda: tracker.finish({}, NOWHERE, None))
    ending.start()
    assert server.held.wait(20)
    open_once_stopping(server, tracker)
    tracker.interrupted()
    assert server.told == told
    ending.join(20)
