"""Group the runs of trials into packs.

A pack is one Ray Tune trial: runs that train together in one loop. Which runs share a pack follows from the sweep file
and the shape of the bank alone, so that a resumed sweep, one worker and a cluster give bit-identical
results: the width of a matrix product may change its rounding, and early stopping compares the trials of a pack. For
the same reason memory is computed from shapes, never measured.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lt_train.core.errors import UserError
from lt_train.core.text import format_bytes, whole_mebibytes
from lt_train.retrain.base import EpochSelection, Halving, Pack, Run
from lt_train.retrain.memory import lane_bytes
from sweeps.config.sections import ResourcesSpec
from sweeps.search.early_stopping import EarlyStoppingSpec

__all__ = ["PackSize", "pack_runs", "split_evenly", "split_trials"]


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
