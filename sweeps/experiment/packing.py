"""Group the runs of trials into packs, and retry packs that fail.

A pack is one Ray Tune trial: runs that train together in one loop. Which runs share a pack follows from the sweep file
and the shape of the bank alone, so that a resumed sweep, one worker and a cluster give bit-identical results: the width
of a matrix product may change its rounding, and early stopping compares the trials of a pack. For the same reason
memory is computed from shapes, never measured.

A pack whose node failed is rescheduled, up to `MAX_PACK_LOSSES` times. A pack whose own process failed
`MAX_PACK_FAILURES` times is split in two, and so is each half that fails again, until the run that cannot be trained is
alone and is reported as failed; all other runs are trained. The parts are reassembled before they are recorded, so that
a pack is in the ledger as a whole or not at all.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from lt_train.core.errors import LongtailError, UserError
from lt_train.core.text import format_bytes, whole_mebibytes
from lt_train.retrain.base import EpochSelection, Halving, Pack, Run, RunResult
from lt_train.retrain.memory import lane_bytes
from sweeps.config.sections import ResourcesSpec
from sweeps.search.base import EarlyStoppingSpec

__all__ = ["MAX_PACK_FAILURES", "MAX_PACK_LOSSES", "Outcome", "PackSize", "Retries", "pack_runs", "split_evenly"]


@dataclass(frozen=True)
class PackSize:
    """How many runs a pack may hold on a bank of this shape: `lanes_per_pack`, or what `memory_per_pack` allows."""

    resources: ResourcesSpec
    early_stopping: EarlyStoppingSpec
    num_classes: int
    feature_dim: int

    def lanes(self, run: Run) -> int:
        """The maximum number of runs in a pack with `run`."""
        given = self.resources.lanes_per_pack
        return self.resources.memory_per_pack // self.run_bytes(run) if given == "auto" else given

    def run_bytes(self, run: Run) -> int:
        """Memory per run of a pack, in bytes, computed from shapes."""
        halving = self.early_stopping.halving(run.training) if run.method.trains else None
        return lane_bytes(
            run.method,
            run.training,
            num_classes=self.num_classes,
            feature_dim=self.feature_dim,
            halving_factor=None if halving is None else halving.factor,
        )

    def check(self, run: Run, seeds: int, halving: Halving | None) -> None:
        """Refuse packs that cannot hold one run, or with early stopping two whole trials to compare.

        Raises:
            UserError: memory_per_pack is too small.
        """
        needed = 1 if halving is None else 2 * seeds
        if self.lanes(run) >= needed:
            return
        per_run = self.run_bytes(run)
        what = "one run" if needed == 1 else f"two trials of {seeds} seeds, which successive halving compares"
        raise UserError(
            f"resources.memory_per_pack is {format_bytes(self.resources.memory_per_pack)}, too little for {what}: "
            f"a run of method {run.method.kind} takes {format_bytes(per_run)} ({self.num_classes} classes, "
            f"{self.feature_dim} "
            f"features, batches of {run.training.batch_size}); set it to at least {whole_mebibytes(needed * per_run)}"
        )

    def describe(self, run: Run, lanes: int) -> str:
        """`packs of up to 60 runs: 1.2 MiB per run, 2 GiB per pack`."""
        text = f"packs of up to {lanes} run{'s' * (lanes > 1)}: {format_bytes(self.run_bytes(run))} per run"
        if self.resources.lanes_per_pack != "auto":
            return f"{text}, resources.lanes_per_pack is {self.resources.lanes_per_pack}"
        return f"{text}, {format_bytes(self.resources.memory_per_pack)} per pack"


def pack_runs(
    name: str,
    runs: Sequence[Run],
    rule: EpochSelection,
    lanes: Callable[[Run], int],
    halving: Callable[[Run], Halving | None] = lambda run: None,
) -> list[Pack]:
    """Group runs into packs.

    Runs share a pack only if their static fields (method kind, epochs, batch size, ...) agree. Packs hold whole trials
    if a trial fits into one, so that every seed of a pack has the same number of lanes. Their sizes differ by one trial
    at most, so that no pack is left with a single trial that early stopping cannot compare with another.

    Args:
        name: prefix of the packs' names, unique within the sweep.
        runs: in trial order, the seeds of a trial next to each other.
        rule: which epoch's head counts.
        lanes: the maximum number of runs in a pack with a run; equal for runs with equal static fields.
        halving: how the trials of a run's pack are stopped early, if at all; equal for runs with equal static fields.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.static_key(), []).append(run)
    packs: list[Pack] = []
    for group in groups.values():
        trials = split_trials(group)
        limit, seeds = lanes(group[0]), max(map(len, trials))
        assert limit >= 1, "a run that does not fit into a pack is refused before the sweep starts (PackSize.check)"
        whole = limit >= seeds
        parts = iter(trials if whole else [[run] for run in group])
        for count in split_evenly(len(trials), limit // seeds) if whole else split_evenly(len(group), limit):
            packed = itertools.chain.from_iterable(itertools.islice(parts, count))
            packs.append(Pack(f"{name}-{len(packs)}", tuple(packed), rule, halving(group[0])))
    return packs


def split_trials(runs: Sequence[Run]) -> list[list[Run]]:
    """Split runs into trials: adjacent runs that differ in the seed only."""
    return [list(trial) for _, trial in itertools.groupby(runs, key=lambda run: (run.method, run.training))]


def split_evenly(count: int, limit: int) -> list[int]:
    """The fewest numbers up to `limit` that add up to `count`; they are equal or differ by one, larger ones first."""
    parts = math.ceil(count / limit)
    size, larger = divmod(count, max(parts, 1))
    return [size + 1] * larger + [size] * (parts - larger)


MAX_PACK_FAILURES = 2
"""How often the process of a pack may fail before the pack is bisected."""

MAX_PACK_LOSSES = 25
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
            LongtailError: the pack was lost `MAX_PACK_LOSSES` times.
        """
        if not own:
            self.lost += 1
            self._lost[pack.name] = self._lost.get(pack.name, 0) + 1
            if self._lost[pack.name] >= MAX_PACK_LOSSES:
                raise LongtailError(
                    f"pack {pack.name} was lost {MAX_PACK_LOSSES} times with the node it ran on, the last time because "
                    f"{why}; check the cluster, then `lt-sweep resume` continues after the last finished pack"
                )
            return [pack], None
        self.failures += 1
        self._failed[pack.name] = self._failed.get(pack.name, 0) + 1
        if self._failed[pack.name] < MAX_PACK_FAILURES:
            return [pack], None
        if len(pack.runs) == 1:
            return [], Outcome(pack, [_failed_run(pack.rule, why)], 0.0)
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


def _failed_run(rule: EpochSelection, why: str) -> RunResult:
    return RunResult(
        val_accuracy=None,
        test_accuracy=np.empty((0, len(rule.scores)), dtype=np.float32),
        train_loss=np.empty(0, dtype=np.float32),
        kept=None,
        failure=f"the worker process failed {MAX_PACK_FAILURES} times while training this run alone: {why}",
    )
