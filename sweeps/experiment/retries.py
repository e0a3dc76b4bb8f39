"""Retry policy: reschedule packs lost with their node; bisect packs that crash.

A pack whose node failed is rescheduled, up to `MAX_LOSSES` times. A pack whose own process failed `MAX_FAILURES` times
is split in two, and so is each half that fails again, until the run that cannot be trained is alone and is reported as
failed; all other runs are trained. The parts are reassembled before they are recorded, so that a pack is in the ledger
as a whole or not at all.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from lt_train.core.errors import LongtailError
from lt_train.metrics.accuracy import SPLITS
from lt_train.retrain.base import Pack, Run, RunResult
from sweeps.experiment.packing import split_trials

__all__ = ["MAX_FAILURES", "MAX_LOSSES", "Outcome", "Retries"]

MAX_FAILURES = 2
"""How often the process of a pack may fail before the pack is bisected."""

MAX_LOSSES = 25
"""How often a pack may be lost with its node before the sweep gives up, because the cluster needs attention."""


@dataclass(frozen=True)
class Outcome:
    """The results of a pack, in the order of its runs, and the seconds of their training."""

    pack: Pack
    results: list[RunResult]
    seconds: float


@dataclass
class _Bisection:
    """A pack that was split, its parts, and the outcomes of the parts that are finished."""

    pack: Pack
    parts: list[Pack]
    outcomes: dict[str, Outcome] = field(default_factory=dict)


class Retries:
    """What to do with the packs of a sweep that fail.

    Attributes:
        lost: number of times that a pack was lost with its node.
        failures: number of times that the process of a pack failed.
    """

    def __init__(self) -> None:
        self.lost = self.failures = 0
        self._lost: dict[str, int] = {}
        self._failed: dict[str, int] = {}
        self._bisections: dict[str, _Bisection] = {}
        self._parent: dict[str, str] = {}

    def failed(self, pack: Pack, why: str, *, own: bool) -> tuple[list[Pack], Outcome | None]:
        """The packs to train instead of one that failed, or the outcome of one that cannot be trained.

        Args:
            pack: the pack as it was scheduled.
            why: the reason, for people.
            own: True if the pack's own process failed, False if its node died or could not run it.

        Raises:
            LongtailError: the pack was lost `MAX_LOSSES` times.
        """
        if not own:
            self.lost += 1
            self._lost[pack.name] = self._lost.get(pack.name, 0) + 1
            if self._lost[pack.name] >= MAX_LOSSES:
                raise LongtailError(
                    f"pack {pack.name} was lost {MAX_LOSSES} times with the node it ran on, the last time because "
                    f"{why}; check the cluster, then `lt-sweep resume` continues after the last finished pack"
                )
            return [pack], None
        self.failures += 1
        self._failed[pack.name] = self._failed.get(pack.name, 0) + 1
        if self._failed[pack.name] < MAX_FAILURES:
            return [pack], None
        if len(pack.runs) == 1:
            return [], Outcome(pack, [_failed_run(why)], 0.0)
        parts = [
            replace(pack, name=f"{pack.name}.{number}", runs=tuple(half)) for number, half in enumerate(_halves(pack))
        ]
        self._bisections[pack.name] = _Bisection(pack, parts)
        self._parent |= {part.name: pack.name for part in parts}
        return parts, None

    def reassembled(self, outcome: Outcome) -> Outcome | None:
        """The outcome of the original pack once all its parts are finished, else None."""
        while outcome.pack.name in self._parent:
            bisection = self._bisections[self._parent[outcome.pack.name]]
            bisection.outcomes[outcome.pack.name] = outcome
            if len(bisection.outcomes) < len(bisection.parts):
                return None
            done = [bisection.outcomes[part.name] for part in bisection.parts]
            results = [result for part in done for result in part.results]
            outcome = Outcome(bisection.pack, results, sum(part.seconds for part in done))
        return outcome


def _halves(pack: Pack) -> Iterator[Sequence[Run]]:
    """The runs in two halves, in order; the seeds of a trial stay together while the pack has several trials."""
    trials = split_trials(pack.runs)
    parts = trials if len(trials) > 1 else [[run] for run in pack.runs]
    middle = len(parts) // 2
    for half in (parts[:middle], parts[middle:]):
        yield list(itertools.chain.from_iterable(half))


def _failed_run(why: str) -> RunResult:
    return RunResult(
        val_accuracy=None,
        test_accuracy=np.empty((0, len(SPLITS)), dtype=np.float32),
        train_loss=np.empty(0, dtype=np.float32),
        kept=None,
        failure=f"the worker process failed {MAX_FAILURES} times while training this run alone: {why}",
    )
