"""What becomes of packs that did not come back: tried again, and if the pack itself is to blame, cut until one run is.

A pack whose machine died is tried again elsewhere, as often as that happens up to a bound. A pack whose own process
failed `ATTEMPTS` times is cut in two, and so is each half that fails again, until the run that cannot be trained stands
alone and is reported failed; all others are trained. The parts are put together again before anyone hears of them, so
that a pack is in the ledger whole or not at all. Pure; knows packs and results.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from lt_train.core.errors import LongtailError
from lt_train.metrics.accuracy import SPLITS
from lt_train.retrain.base import Pack, Run, RunResult

__all__ = ["ATTEMPTS", "PATIENCE", "Outcome", "Retries"]

ATTEMPTS = 2
"""How often a pack may fail on its own before it is cut."""

PATIENCE = 25
"""How often a pack may be lost with its machine before the sweep gives up: something is wrong with the cluster."""


@dataclass(frozen=True)
class Outcome:
    """The results of a pack, in the order of its runs, and the seconds of their training."""

    pack: Pack
    results: list[RunResult]
    seconds: float


@dataclass
class _Cut:
    """A pack in parts, and what came of those that are done."""

    pack: Pack
    parts: list[Pack]
    outcomes: dict[str, Outcome] = field(default_factory=dict)


class Retries:
    """The packs of one sweep that failed so far.

    Attributes:
        lost: how many packs were lost with their machines.
        failures: how many failed by themselves.
    """

    def __init__(self) -> None:
        self.lost = self.failures = 0
        self._lost: dict[str, int] = {}
        self._failed: dict[str, int] = {}
        self._cuts: dict[str, _Cut] = {}
        self._parent: dict[str, str] = {}

    def failed(self, pack: Pack, why: str, *, own: bool) -> tuple[list[Pack], Outcome | None]:
        """What to train instead of a pack that did not come back, or the outcome of one that cannot be trained.

        Args:
            pack: as it was handed out.
            why: in words.
            own: whether its own process failed; False for a machine that died or could not serve.

        Raises:
            LongtailError: it was lost `PATIENCE` times.
        """
        if not own:
            self.lost += 1
            self._lost[pack.name] = self._lost.get(pack.name, 0) + 1
            if self._lost[pack.name] >= PATIENCE:
                raise LongtailError(
                    f"pack {pack.name} was lost {PATIENCE} times with the machine it was on, the last time because "
                    f"{why}; look after the cluster, then `lt-sweep resume` goes on from the last finished pack"
                )
            return [pack], None
        self.failures += 1
        self._failed[pack.name] = self._failed.get(pack.name, 0) + 1
        if self._failed[pack.name] < ATTEMPTS:
            return [pack], None
        if len(pack.runs) == 1:
            return [], Outcome(pack, [_untrainable(why)], 0.0)
        parts = [
            replace(pack, name=f"{pack.name}.{number}", runs=tuple(half)) for number, half in enumerate(_halves(pack))
        ]
        self._cuts[pack.name] = _Cut(pack, parts)
        self._parent |= {part.name: pack.name for part in parts}
        return parts, None

    def whole(self, outcome: Outcome) -> Outcome | None:
        """The outcome of the pack that was asked for, when all its parts are there; None while some are not."""
        while outcome.pack.name in self._parent:
            cut = self._cuts[self._parent[outcome.pack.name]]
            cut.outcomes[outcome.pack.name] = outcome
            if len(cut.outcomes) < len(cut.parts):
                return None
            done = [cut.outcomes[part.name] for part in cut.parts]
            results = [result for part in done for result in part.results]
            outcome = Outcome(cut.pack, results, sum(part.seconds for part in done))
        return outcome


def _halves(pack: Pack) -> Iterator[Sequence[Run]]:
    """The runs in two halves, in order; between trials where there are several, so that their seeds stay together."""
    trials = [list(trial) for _, trial in itertools.groupby(pack.runs, key=lambda run: (run.method, run.training))]
    parts: list[list[Run]] = trials if len(trials) > 1 else [[run] for run in pack.runs]
    middle = len(parts) // 2
    for half in (parts[:middle], parts[middle:]):
        yield list(itertools.chain.from_iterable(half))


def _untrainable(why: str) -> RunResult:
    nothing = np.empty((0, len(SPLITS)), dtype=np.float32)
    return RunResult(
        val_accuracy=None,
        test_accuracy=nothing,
        train_loss=np.empty(0, dtype=np.float32),
        kept=None,
        failure=f"its process failed {ATTEMPTS} times with this run alone in it: {why}",
    )
