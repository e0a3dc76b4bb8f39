"""What a report calls things: settings, and whoever leads. Knows sweeps as read."""

from __future__ import annotations

from sweeps.reporting.reading import Setting, Sweep

__all__ = ["NO_WIDTH", "called", "role", "times_as_long", "told", "unfinished"]

NO_WIDTH = "All seeds come to the same number: its interval has no width, and says nothing of the test set's."


def called(sweep: Sweep, setting: Setting) -> str:
    """`los, trial 3`: what people call a setting; a baseline by its name."""
    if setting.trial.phase == "baseline":
        return setting.trial.name.removeprefix("baseline-")
    longer = ", trained longer" * (setting.trial.phase == "longer")
    return f"{setting.trial.called}, trial {setting.trial.number}{longer}"


def role(sweep: Sweep) -> str:
    """What the first setting is called: no one has won a sweep that is not finished."""
    return "winner" if sweep.state == "finished" else "leader"


def times_as_long(sweep: Sweep) -> str:
    """`three times as long`: how much longer the winner is trained once more."""
    times = sweep.spec.selection.longer or 1
    return f"{ {2: 'twice', 3: 'three times', 4: 'four times', 5: 'five times'}.get(times, f'{times} times') } as long"


def told(verdict: str, test: str) -> str:
    """A verdict, and by which test where it is not the paired one."""
    return f"{verdict} (Welch)" if test == "welch" else verdict


def unfinished(sweep: Sweep) -> str:
    """How far a sweep is that is not finished, and whether its leader may change."""
    tried, finalists = len(sweep.searched), sweep.spec.selection.finalists
    if tried < sweep.asked:
        last = "no finalist has run on fresh seeds" if finalists else "the sampler has not said its last word"
        return f"{tried} of {sweep.asked} trials are done. The leader may change, and {last}."
    if finalists:
        return (
            f"all {tried} trials are done. The leader may change, and no finalist on fresh seeds is compared here yet."
        )
    return f"all {tried} trials are done, and the leader stays: what is missing decides nothing."
