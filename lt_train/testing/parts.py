"""Checks of the other parts of a method: data samplers, constraints and post-hoc adjustments.

Shapes: S seeds, T lanes, K classes, D features, N images.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lt_train.core.fields import lane_values
from lt_train.core.registry import KindSpec
from lt_train.core.seeding import generator
from lt_train.methods.base import MethodSpec
from lt_train.methods.constraints import ConstraintSpec
from lt_train.methods.cross_entropy import CE
from lt_train.methods.post_hoc import FittedPostHoc, PostHocSpec
from lt_train.methods.samplers import SamplerSpec
from lt_train.testing.kinds import assert_close, check_kind
from lt_train.testing.methods import check_training

__all__ = ["check_constraint", "check_post_hoc", "check_sampler"]

SEEDS, LANES, CLASSES, DIM = 2, 3, 4, 5


def check_sampler(sampler: SamplerSpec | type[SamplerSpec]) -> None:
    """Check a data sampler.

    - `check_kind`.
    - `order` returns N indices of images, int64 on the CPU, also for one image and for labels with empty classes.
    - It depends on labels, seed and epoch alone; the epochs of a seed, and the seeds, have different orders.
    - Both engines train with it alike.

    Args:
        sampler: an instance, or a class whose fields have defaults.

    Raises:
        AssertionError: a requirement is not met.
    """
    checked = check_kind(sampler, SamplerSpec)
    name = type(checked).__name__
    several = torch.tensor([0] * 60 + [2] * 20 + [3] * 5 + [6])[torch.randperm(86, generator=generator("labels"))]
    for labels in (several, torch.zeros(50, dtype=torch.int64), torch.tensor([4])):
        before = labels.clone()
        order = checked.order(labels, 0, 0)
        assert order.dtype == torch.int64, f"{name}.order must be int64, got {order.dtype}"
        assert order.device.type == "cpu", f"{name}.order must be on the CPU, got {order.device}"
        assert order.shape == labels.shape, (
            f"{name}.order must have one index per image, [{len(labels)}], got {tuple(order.shape)}"
        )
        low, high = int(order.min()), int(order.max())
        assert 0 <= low <= high < len(labels), f"{name}.order must be in 0 .. {len(labels) - 1}, got {low} .. {high}"
        assert torch.equal(labels, before), f"{name}.order must not change the labels"
    runs = [(seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    orders = [checked.order(several, seed, epoch) for seed, epoch in runs]
    torch.rand(1)  # advances the global generator
    for (seed, epoch), order in reversed(list(zip(runs, orders, strict=True))):
        assert torch.equal(checked.order(several, seed, epoch), order), (
            f"{name}.order changes when it is called again; take random numbers from `seeding.generator` only"
        )
    distinct = {tuple(order.tolist()) for order in orders}
    assert len(distinct) == len(runs), f"{name}.order must differ between the epochs of a seed, and between seeds"
    check_training(CE(sampler=checked))


def check_constraint(constraint: ConstraintSpec | type[ConstraintSpec]) -> None:
    """Check a constraint.

    - `check_kind`.
    - `project_` changes the rows in place and nothing else. Rows of zeros stay finite, and a second projection changes
      nothing.
    - Stacked rows are projected like those of each run alone.
    - Both engines train with it alike, projected after every epoch and after every step.

    Args:
        constraint: an instance, or a class whose fields have defaults.

    Raises:
        AssertionError: a requirement is not met.
    """
    checked = check_kind(constraint, ConstraintSpec)
    name, lanes = type(checked).__name__, _lanes(checked)
    start_norms = torch.tensor([0.5, 1.0, 2.0, 3.0], dtype=torch.float64)
    unchanged = start_norms.clone()
    before = 3 * torch.randn(SEEDS, DIM, LANES, CLASSES, generator=generator("rows"), dtype=torch.float64)
    before[..., -1] = 0.0
    rows = before.clone()
    checked.project_(rows, 1, start_norms, lanes)
    assert bool(rows.isfinite().all()), f"{name}.project_ gives values that are not finite"
    assert torch.equal(start_norms, unchanged), f"{name}.project_ must not change the norms of stage 1"
    for s in range(SEEDS):
        for t in range(LANES):
            alone = before[s, :, t].T.contiguous()
            checked.project_(alone, -1, start_norms, {path: value[s, 0, t] for path, value in lanes.items()})
            assert_close((rows[s, :, t],), (alone.T,), f"{name}: a lane of stacked rows is projected differently")
    once = rows.clone()
    checked.project_(rows, 1, start_norms, lanes)
    assert_close((rows,), (once,), f"{name}.project_ changes rows that are projected already")
    for every in ("epoch", "step"):
        check_training(CE(constraint=checked.model_copy(update={"every": every})))


def check_post_hoc(adjustment: PostHocSpec | type[PostHocSpec]) -> None:
    """Check a post-hoc adjustment.

    - `check_kind`.
    - `affine` returns a finite scale and offset, broadcastable to `[..., K]`, for each lane as alone; also for a class
      with one image and for weight rows of zeros. A `FittedPostHoc` is checked in training only.
    - Both engines apply it alike.

    Args:
        adjustment: an instance, or a class whose fields have defaults.

    Raises:
        AssertionError: a requirement is not met.
    """
    checked = check_kind(adjustment, PostHocSpec)
    if not isinstance(checked, FittedPostHoc):
        _check_affine(checked)
    method: MethodSpec = CE(post_hoc=checked)
    check_training(method)


def _check_affine(checked: PostHocSpec) -> None:
    name = type(checked).__name__
    counts, shape = torch.tensor([60, 9, 3, 1]), (SEEDS, 1, LANES, CLASSES)
    reason = checked.incompatibility(counts)
    assert not reason, f"{name} refuses class counts without an empty class: {reason}"
    norms: Tensor | None = None
    bias: Tensor | None = None
    if checked.needs_rows:
        norms = torch.rand(shape, generator=generator("norms"), dtype=torch.float64)
        norms[..., -1] = 0.0
        bias = torch.randn(shape, generator=generator("bias"), dtype=torch.float64)
    lanes = {path: value.unsqueeze(-1) for path, value in _lanes(checked).items()}
    found = checked.affine(lanes, counts, norms, bias)
    for what, tensor in zip(("scale", "offset"), found, strict=True):
        assert bool(tensor.isfinite().all()), f"{name}.affine: the {what} is not finite"
        try:
            tensor.expand(shape)
        except RuntimeError:
            problem = f"{name}.affine: the {what} must be broadcastable to {shape}, got {tuple(tensor.shape)}"
            raise AssertionError(problem) from None
    for s in range(SEEDS):
        for t in range(LANES):
            own = (None if one is None else one[s, 0, t] for one in (norms, bias))
            alone = checked.affine({path: value[s, 0, t] for path, value in lanes.items()}, counts, *own)
            several = tuple(tensor.expand(shape)[s, 0, t] for tensor in found)
            expected = tuple(one.expand(CLASSES).to(other.dtype) for one, other in zip(alone, several, strict=True))
            assert_close(several, expected, f"{name}.affine: a lane depends on other lanes")


def _lanes(kind: KindSpec) -> dict[str, Tensor]:
    """Different values in every lane, `[S, 1, T]`."""
    factors = 0.5 + 0.5 * torch.rand(SEEDS, 1, LANES, generator=generator("lanes"), dtype=torch.float64)
    return {path: value * factors for path, value in lane_values(kind).items()}
