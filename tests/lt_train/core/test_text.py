"""Points in time and durations as text."""

from __future__ import annotations

import time

import pytest

from lt_train.core.text import format_duration, format_time


def test_times_are_local(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    try:
        assert format_time(1_767_225_600_999) == "2026-01-01 00:00:00"
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 s"),
        (0.31, "0.31 s"),
        (119, "119 s"),
        (210, "3.5 minutes"),
        (6_000, "100 minutes"),
        (43_200, "12 hours"),
        (720_000, "200 hours"),
    ],
)
def test_durations_have_a_suitable_unit(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
