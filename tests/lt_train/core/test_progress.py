"""Progress without a terminal: few lines, on standard error, with what is left."""

import time

import pytest

from lt_train.core.progress import progress


def test_lines_go_to_standard_error_and_are_few(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("training x") as report:
        for done in range(101):
            report(done, 100, f"loss {done}")
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert captured.out == ""
    assert len(lines) == 2
    assert lines[0] == "training x: 0/100 epochs, loss 0"
    assert lines[1].startswith("training x: 100/100 epochs, ")
    assert lines[1].endswith("0 s left, loss 100")


def test_others_hear_it_too() -> None:
    heard: list[str] = []
    with progress("training x", told=heard.append) as report:
        report(0, 2)
        report(2, 2, "loss 1")
    assert heard == ["training x: 0 of 2 epochs", "training x: 2 of 2 epochs"]


def test_time_left_does_not_count_what_came_before_the_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Workers that start: half a minute before the first of many packs that take a second each."""
    clock = iter([0.0, 0.0, 30.0, 41.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    with progress("training x") as report:
        for done in (0, 1, 12):
            report(done, 22)
    assert capsys.readouterr().err.splitlines()[-2:] == [
        "training x: 1/22 epochs",
        "training x: 12/22 epochs, 1 epochs/s, 10 s left",
    ]
