"""Progress without a terminal: few log messages, with the remaining time."""

import logging
import time

import pytest

from lt_train.core.text import progress


def test_messages_are_few(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "lt_train"), progress("training x") as report:
        for done in range(101):
            report(done, 100, f"loss {done}")
    lines = caplog.messages
    assert len(lines) == 2
    assert lines[0] == "training x: 0/100 epochs, loss 0"
    assert lines[1] == "training x: 100/100 epochs, loss 100", "a rate over less than a second is not shown"


def test_the_callback_gets_every_report() -> None:
    reports: list[str] = []
    with progress("training x", on_progress=reports.append) as report:
        report(0, 2)
        report(2, 2, "loss 1")
    assert reports == ["training x: 0 of 2 epochs", "training x: 2 of 2 epochs"]


def test_the_remaining_time_excludes_the_first_unit(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Workers take half a minute to start; then each pack takes a second."""
    clock = iter([0.0, 0.0, 30.0, 41.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    with caplog.at_level(logging.INFO, "lt_train"), progress("training x") as report:
        for done in (0, 1, 12):
            report(done, 22)
    assert caplog.messages[-2:] == [
        "training x: 1/22 epochs",
        "training x: 12/22 epochs, 1 epochs/s, 10 s left",
    ]
