"""The progress of a family is the sum of its sweeps'."""

from __future__ import annotations

import pytest

from sweeps.family_progress import as_one
from sweeps.status import Progress

DONE = Progress(sweep="fam-a", state="finished", trials=4, trials_finished=4, runs=9, runs_finished=9, started_ms=5)
AT = Progress(sweep="fam-b", state="running", note="pack 2", trials=4, trials_finished=1, started_ms=7, at_ms=9)
FAILED = Progress(sweep="fam-c", state="failed", note="no data")


def test_a_family_under_way() -> None:
    one = as_one("fam", [DONE, AT, None], led=True)
    assert (one.sweep, one.state, one.trials, one.trials_finished) == ("fam", "running", 8, 5)
    assert (one.started_ms, one.at_ms) == (5, 9)
    assert one.note == "1 of 3 sweeps finished; at fam-b: pack 2"
    assert as_one("fam", [DONE, None], led=True).state == "running", "between two sweeps too"


@pytest.mark.parametrize(
    ("members", "state"),
    [([DONE, DONE], "finished"), ([DONE, FAILED], "failed"), ([DONE, None], "stopped"), ([None, None], "stopped")],
)
def test_a_family_that_nobody_runs(members: list[Progress | None], state: str) -> None:
    one = as_one("fam", members, led=False)
    assert one.state == state
    assert ("fam-c failed: no data" in one.note) is (FAILED in members)
