"""What people read of moments and durations."""

from __future__ import annotations

import time

import pytest

from sweeps.store.moments import shown_duration, shown_moment


def test_a_moment_is_shown_in_local_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    try:
        assert shown_moment(1_767_225_600_999) == "2026-01-01 00:00:00"
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    ("seconds", "shown"),
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
def test_a_duration_is_shown_in_the_unit_that_suits_it(seconds: float, shown: str) -> None:
    assert shown_duration(seconds) == shown
