"""What a report calls things: settings, and whoever leads. Knows sweeps as read."""

from __future__ import annotations

from sweeps.reporting.reading import Setting, Sweep

__all__ = ["called", "role", "times_as_long"]


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
