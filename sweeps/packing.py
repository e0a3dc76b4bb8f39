"""Trials x seeds -> packs. Which run lies in which pack follows from the sweep file alone.

That is what makes a resumed sweep, one worker and a cluster agree to the last bit: the width of a matrix product
may change its rounding. Knows runs; knows no search, backend or ledger.
"""

from __future__ import annotations

from collections.abc import Sequence

from lt_train.retrain.base import EpochRule, Pack, Run

__all__ = ["pack_runs"]


def pack_runs(name: str, runs: Sequence[Run], rule: EpochRule, lanes_per_pack: int) -> list[Pack]:
    """Cut `runs` (trial by trial, each with all its seeds) into packs of at most `lanes_per_pack`.

    Runs share a pack only if their static fields (method kind, epochs, batch size, ...) agree. Packs hold whole
    trials where a pack can hold one, so that every seed of a pack has as many lanes.

    Args:
        name: prefix of the packs' names, unique within the sweep.
        runs: in trial order, the seeds of a trial next to each other.
        rule: which epoch's head counts.
        lanes_per_pack: the most runs a pack may hold.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.static_key(), []).append(run)
    packs: list[Pack] = []
    for group in groups.values():
        seeds = len({run.seed for run in group})
        most = max(lanes_per_pack // seeds * seeds, min(lanes_per_pack, seeds))
        for start in range(0, len(group), most):
            packs.append(Pack(f"{name}-{len(packs)}", tuple(group[start : start + most]), rule))
    return packs
