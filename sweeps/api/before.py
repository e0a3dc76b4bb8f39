"""What may be asked of a sweep before it runs: whether its file is valid, and what it will cost."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, overload

from lt_train.core.errors import SpecError
from sweeps.config.matrix import SweepMatrix, sweeps_of
from sweeps.config.spec import SweepSpec
from sweeps.experiment.runner import Sweepable, to_spec
from sweeps.store.directory import check_name

if TYPE_CHECKING:
    from sweeps.analysis.result import Plan

__all__ = ["plan", "validate"]


def validate(spec: Sweepable) -> list[str]:
    """All problems of a sweep or matrix; empty if it is valid. Data and checkpoints are not read.

    Args:
        spec: its file, the name of a bundled file, its spec, or a mapping in the form of a file.

    Returns:
        Messages `file:line: dotted.path: rule, value, what is allowed`; without file and line for a mapping.
    """
    try:
        for sweep in sweeps_of(to_spec(spec)):
            check_name(sweep)
    except SpecError as error:
        return list(error.problems)
    return []


@overload
def plan(spec: SweepSpec | Mapping[str, Any], *, tflops: float | None = ...) -> Plan: ...
@overload
def plan(spec: SweepMatrix, *, tflops: float | None = ...) -> dict[str, Plan]: ...
@overload
def plan(spec: str | os.PathLike[str], *, tflops: float | None = ...) -> Plan | Any: ...
def plan(spec: Sweepable, *, tflops: float | None = None) -> Plan | dict[str, Plan]:
    """Estimate trials, runs, packs, memory and time of a sweep. The data is read; nothing is trained.

    Args:
        spec: the sweep or matrix, its file, the name of a bundled file, or a mapping in the form of a file.
        tflops: rate of the device in 10^12 operations per second; None: 20 if packs are trained on GPUs, otherwise
            measured on this machine.

    Returns:
        Sizes in bytes and times in seconds; for a matrix by the name of the value.

    Raises:
        UserError: the spec does not fit the data, or the data is missing and its class counts are not published.
    """
    from sweeps.experiment.plan import plan as plan_sweep

    found = to_spec(spec)
    if isinstance(found, SweepMatrix):
        return {value: plan_sweep(member, tflops) for value, member in found.members.items()}
    return plan_sweep(found, tflops)
