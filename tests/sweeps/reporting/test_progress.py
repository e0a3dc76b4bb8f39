"""The progress of a matrix is the sum over its sweeps."""

from __future__ import annotations

import pytest

from sweeps.reporting.progress import as_line, sum_progress
from sweeps.store.progress import Progress

DONE = Progress(sweep="fam-a", state="finished", trials=4, trials_finished=4, runs=9, runs_finished=9, started_ms=5)
AT = Progress(sweep="fam-b", state="running", note="pack 2", trials=4, trials_finished=1, started_ms=7, at_ms=9)
FAILED = Progress(sweep="fam-c", state="failed", note="no data")


def test_a_running_matrix() -> None:
    one = sum_progress("fam", [DONE, AT, None], led=True)
    assert (one.sweep, one.state, one.trials, one.trials_finished) == ("fam", "running", 8, 5)
    assert (one.started_ms, one.at_ms) == (5, 9)
    assert one.note == "1 of 3 sweeps finished; running fam-b: pack 2"
    assert sum_progress("fam", [DONE, None], led=True).state == "running", "between two sweeps too"


def test_counts_of_some_sweeps_are_marked_as_such() -> None:
    some = sum_progress("fam", [DONE, FAILED, None], led=True)
    assert "trials 4 of 4 finished in 1 of 3 sweeps" in as_line(some)
    assert "runs 9 of 9 in 1 of 3 sweeps" in as_line(some)
    assert some.started_ms == 5
    assert "trials 8 of 8 finished; " in as_line(sum_progress("fam", [DONE, DONE], led=False))


@pytest.mark.parametrize(
    ("members", "state"),
    [([DONE, DONE], "finished"), ([DONE, FAILED], "failed"), ([DONE, None], "stopped"), ([None, None], "stopped")],
)
def test_a_matrix_without_a_driver(members: list[Progress | None], state: str) -> None:
    one = sum_progress("fam", members, led=False)
    assert one.state == state
    assert ("fam-c failed: no data" in one.note) is (FAILED in members)
