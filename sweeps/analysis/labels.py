"""Names and short phrases for trials, protocols and states, shared by all outputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from sweeps.analysis.statistics import Comparison, Trend
from sweeps.config.spec import SweepSpec

if TYPE_CHECKING:
    from sweeps.analysis.load import Sweep, TrialRuns

__all__ = [
    "NO_WIDTH",
    "best_text",
    "finalists_text",
    "objective_text",
    "protocol",
    "ranked_by",
    "role",
    "seeds_text",
    "short_params",
    "times_as_long",
    "trend_text",
    "trial_label",
    "unfinished",
    "verdict_text",
]

NO_WIDTH = (
    "All seeds have the same accuracy, so the interval has no width. It does not cover the choice of test images."
)


def trial_label(runs: TrialRuns) -> str:
    """`los, trial 3`; for a baseline its name."""
    if runs.trial.phase == "baseline":
        return runs.trial.name.removeprefix("baseline-")
    extended = ", extended training" * (runs.trial.phase == "extended")
    return f"{runs.trial.display_name}, trial {runs.trial.number}{extended}"


def role(sweep: Sweep) -> str:
    """`winner`, or `leader` if the sweep is unfinished."""
    return "winner" if sweep.state == "finished" else "leader"


def times_as_long(sweep: Sweep) -> str:
    """`3x as long`: the length of extended training."""
    return f"{sweep.spec.selection.extended_training or 1}x as long"


def verdict_text(comparison: Comparison | None) -> str:
    """`better`, or `tied (Welch)` if the test is not paired; empty without a comparison."""
    if comparison is None:
        return ""
    return f"{comparison.verdict} (Welch)" if comparison.test == "welch" else comparison.verdict


def unfinished(sweep: Sweep) -> str:
    """Progress of an unfinished sweep, and whether its leader may still change."""
    tried, finalists = len(sweep.searched), sweep.spec.selection.finalists
    if tried < sweep.planned_trials:
        pending = " No finalist has run on new seeds." * (finalists > 0)
        return f"{tried} of {sweep.planned_trials} trials are finished. The leader may change.{pending}"
    if finalists:
        return f"All {tried} trials are finished, but no finalist on new seeds is included yet. The leader may change."
    return f"All {tried} trials are finished. The remaining runs do not change the leader."


def seeds_text(count: int) -> str:
    """`one seed`, or `5 seeds`."""
    return "one seed" if count == 1 else f"{count} seeds"


def finalists_text(count: int) -> str:
    """`one finalist`, or `3 finalists`."""
    return "one finalist" if count == 1 else f"{count} finalists"


def best_text(count: int) -> str:
    """`the best trial`, or `the best 3 trials`."""
    return "the best trial" if count == 1 else f"the best {count} trials"


def objective_text(how: Literal["mean", "best"], seeds: int) -> str:
    """`mean of 5 seeds`, or `one seed`."""
    return f"{how} of {seeds} seeds" if seeds > 1 else seeds_text(seeds)


SHORT = {"smooth_factor": "d", "weight_decay": "wd"}
"""Abbreviations of parameter names."""


def short_params(params: dict[str, Any]) -> str:
    """Searched values in a few characters: `d=0.912 lr=5e-4 wd=1e-5`; full paths where short names would clash."""
    parts = []
    last = [path.rpartition(".")[2] for path in params]
    for (path, value), name in zip(params.items(), last, strict=True):
        shown = _rounded(value) if isinstance(value, float) else str(value)
        parts.append(f"{path if last.count(name) > 1 else SHORT.get(name, name)}={shown}")
    return " ".join(parts)


def _rounded(value: float) -> str:
    """Three digits, or more so that 0.9999 does not become 1; exponents without padding, such as 5e-4."""
    for digits in range(3, 17):
        shown = f"{value:.{digits}g}"
        if value.is_integer() or not float(shown).is_integer():
            break
    mantissa, _, exponent = f"{float(shown):.{digits - 1}e}".partition("e")
    short = f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}e{int(exponent)}"
    return short if len(short) < len(shown) or "e" in shown else shown


def protocol(spec: SweepSpec) -> str:
    """How trials are ranked: `acc_all on val, last epoch, mean of 5 seeds`."""
    chosen = spec.selection
    over = objective_text(chosen.objective, chosen.seeds)
    return f"{chosen.metric} on {chosen.on}, {chosen.epoch} epoch, {over}"


def ranked_by(spec: SweepSpec) -> str:
    """Name of the tracked metric that trials are ranked by."""
    if spec.selection.objective == "best":
        return "objective"
    return f"{'val_' * (spec.selection.on == 'val')}{spec.selection.metric}"


def trend_text(trend: Trend, seeds: int) -> str:
    """The outcome of extended training: `declining (not converged)`, or `inconclusive with one seed`."""
    if trend is Trend.INCONCLUSIVE:
        return f"inconclusive with {seeds_text(seeds)}"
    return f"{trend} ({'converged' if trend is Trend.STABLE else 'not converged'})"
