"""Trials x seeds -> packs. Which run lies in which pack follows from the sweep file and the bank's shape alone.

That is what makes a resumed sweep, one worker and a cluster agree to the last bit: the width of a matrix product
may change its rounding, and a scheduler stops a trial or not by who else is in its pack. So memory is counted here and
never measured. Knows runs and resources; knows no search, backend or ledger.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lt_train.core.errors import UserError
from lt_train.retrain.base import EpochSelection, Halving, Pack, Run
from lt_train.retrain.memory import lane_bytes
from sweeps.config.sections import ResourcesSpec
from sweeps.config.sizes import enough, shown_size
from sweeps.search.early_stopping import EarlyStoppingSpec

__all__ = ["PackSize", "evenly", "pack_runs"]


@dataclass(frozen=True)
class PackSize:
    """How many runs a pack may hold on a bank of this shape: as many as the file says, or as its memory takes."""

    resources: ResourcesSpec
    scheduler: EarlyStoppingSpec
    num_classes: int
    feature_dim: int

    def lanes(self, run: Run) -> int:
        """The most runs that may share a pack with `run`."""
        given = self.resources.lanes_per_pack
        return self.resources.memory_per_pack // self.run_bytes(run) if given == "auto" else given

    def run_bytes(self, run: Run) -> int:
        """Memory that one run of a pack takes, from shapes."""
        halving = self.scheduler.halving(run.training) if run.method.trains else None
        return lane_bytes(
            run.method,
            run.training,
            num_classes=self.num_classes,
            feature_dim=self.feature_dim,
            halving_factor=None if halving is None else halving.factor,
        )

    def check(self, run: Run, seeds: int, halving: Halving | None) -> None:
        """Refuse packs that cannot hold what has to lie in one: a run, or two whole trials where one may be stopped.

        Raises:
            UserError: memory_per_pack is too small for it.
        """
        needed = 1 if halving is None else 2 * seeds
        if self.lanes(run) >= needed:
            return
        each = self.run_bytes(run)
        what = "one run" if needed == 1 else f"two trials of {seeds} seeds, which successive halving compares"
        raise UserError(
            f"resources.memory_per_pack is {shown_size(self.resources.memory_per_pack)}, too little for {what}: a run "
            f"of method {run.method.kind} takes {shown_size(each)} ({self.num_classes} classes, {self.feature_dim} "
            f"features, batches of {run.training.batch_size}); set it to at least {enough(needed * each)}"
        )

    def told(self, run: Run, lanes: int) -> str:
        """`packs of up to 60 runs: 1.2 MiB a run, 2 GiB a pack`."""
        each = f"packs of up to {lanes} run{'s' * (lanes > 1)}: {shown_size(self.run_bytes(run))} a run"
        if self.resources.lanes_per_pack != "auto":
            return f"{each}, resources.lanes_per_pack is {self.resources.lanes_per_pack}"
        return f"{each}, {shown_size(self.resources.memory_per_pack)} a pack"


def pack_runs(
    name: str,
    runs: Sequence[Run],
    rule: EpochSelection,
    lanes: Callable[[Run], int],
    halving: Callable[[Run], Halving | None] = lambda run: None,
) -> list[Pack]:
    """Cut `runs` (trial by trial, each with all its seeds) into packs.

    Runs share a pack only if their static fields (method kind, epochs, batch size, ...) agree. Packs hold whole
    trials where a pack can hold one, so that every seed of a pack has as many lanes; they differ in size by one trial
    at most, so that none is left with a single trial that a scheduler has nothing to compare with.

    Args:
        name: prefix of the packs' names, unique within the sweep.
        runs: in trial order, the seeds of a trial next to each other.
        rule: which epoch's head counts.
        lanes: the most runs that may share a pack with a run; equal for runs whose static fields are.
        halving: how the trials of a run's pack are stopped early, if they are; equal likewise.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.static_key(), []).append(run)
    packs: list[Pack] = []
    for group in groups.values():
        trials = [list(trial) for _, trial in itertools.groupby(group, key=lambda run: (run.method, run.training))]
        most, whole = lanes(group[0]), max(map(len, trials))
        assert most >= 1, "a run that fits no pack is refused before the sweep starts (PackSize.check)"
        parts = iter(trials if most >= whole else [[run] for run in group])
        for count in evenly(len(trials), most // whole) if most >= whole else evenly(len(group), most):
            members = itertools.chain.from_iterable(itertools.islice(parts, count))
            packs.append(Pack(f"{name}-{len(packs)}", tuple(members), rule, halving(group[0])))
    return packs


def evenly(count: int, most: int) -> list[int]:
    """As few numbers of at most `most` as add up to `count`, equal or one apart, the larger first."""
    parts = math.ceil(count / most)
    size, larger = divmod(count, max(parts, 1))
    return [size + 1] * larger + [size] * (parts - larger)
