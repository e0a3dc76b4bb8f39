"""What a report calls things: settings, and whoever leads. Knows sweeps as read."""

from __future__ import annotations

from typing import Any

from sweeps.analysis import selection
from sweeps.analysis.load import Sweep, TrialRuns
from sweeps.config.spec import SweepSpec

__all__ = ["NO_WIDTH", "called", "protocol", "ranked_by", "role", "short_params", "times_as_long", "told", "unfinished"]

NO_WIDTH = "All seeds come to the same number: its interval has no width, and says nothing of the test set's."


def called(sweep: Sweep, setting: TrialRuns) -> str:
    """`los, trial 3`: what people call a setting; a baseline by its name."""
    if setting.trial.phase == "baseline":
        return setting.trial.name.removeprefix("baseline-")
    extended = ", trained longer" * (setting.trial.phase == "extended")
    return f"{setting.trial.called}, trial {setting.trial.number}{extended}"


def role(sweep: Sweep) -> str:
    """What the first setting is called: no one has won a sweep that is not finished."""
    return "winner" if sweep.state == "finished" else "leader"


def times_as_long(sweep: Sweep) -> str:
    """`three times as long`: how much longer the winner is trained once more."""
    times = sweep.spec.selection.extended_training or 1
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


SHORT = {"smooth_factor": "d", "weight_decay": "wd"}
"""Symbols of the paper and of everyday speech for parameter names in titles."""


def short_params(params: dict[str, Any]) -> str:
    """Searched values in a few characters: `d=0.912 lr=5e-4 wd=1e-5`; with the part where names would be equal."""
    parts = []
    last = [path.rpartition(".")[2] for path in params]
    for (path, value), name in zip(params.items(), last, strict=True):
        shown = _rounded(value) if isinstance(value, float) else str(value)
        parts.append(f"{path if last.count(name) > 1 else SHORT.get(name, name)}={shown}")
    return " ".join(parts)


def _rounded(value: float) -> str:
    """Three digits, or as many as it takes for 0.9999 not to look like 1; as a person writes them, 5e-4 and 0.012."""
    for digits in range(3, 17):
        shown = f"{value:.{digits}g}"
        if value.is_integer() or not float(shown).is_integer():
            break
    mantissa, _, exponent = f"{float(shown):.{digits - 1}e}".partition("e")
    short = f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}e{int(exponent)}"
    return short if len(short) < len(shown) or "e" in shown else shown


def protocol(spec: SweepSpec) -> str:
    """What trials are ranked by, in a line."""
    chosen = spec.selection
    over = selection.chosen_over(chosen.objective, chosen.seeds)
    return f"{chosen.metric} on {chosen.on}, {chosen.epoch} epoch, {over}"


def ranked_by(spec: SweepSpec) -> str:
    """The metric that `protocol` means."""
    if spec.selection.objective == "best":
        return "objective"
    return f"{'val_' * (spec.selection.on == 'val')}{spec.selection.metric}"
