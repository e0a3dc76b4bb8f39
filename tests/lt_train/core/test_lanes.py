"""Float fields may differ by lane, named by dotted path, at any depth; everything else is static."""

from typing import Annotated, Literal

import pytest
from pydantic import Field
from support.compositions import ALLOWED, DEFAULTS, OPTIONS, PARTS, searchable, set_lane_value

from lt_train.core.lanes import lane_values, part_of, static_fields
from lt_train.core.registry import Spec
from lt_train.methods.base import METHODS, MethodSpec, TrainedMethod

Positive = Annotated[float, Field(gt=0)]
EVERY = {**ALLOWED, **OPTIONS, **PARTS}


class Inner(Spec):
    """A part of a part."""

    tau: float = 1.0
    steps: int = 3


class Part(Spec):
    """A part with a float, annotated, and a part of its own."""

    scale: Positive = 30.0
    squash: bool = False
    inner: Inner = Inner()


class Whole(Spec):
    """Floats by themselves, in parts, and where they are not lane values: in a union, in a tuple, absent."""

    lr: Positive = 0.1
    wd: float = 0.0
    epochs: int = 2
    mode: Literal["one", "other"] = "one"
    maybe: float | None = 0.5
    shares: tuple[float, ...] | None = (0.5, 0.5)
    part: Part = Part()
    other: Inner | None = None


def test_floats_are_lane_values_by_dotted_path() -> None:
    assert lane_values(Whole()) == {"lr": 0.1, "wd": 0.0, "part.scale": 30.0, "part.inner.tau": 1.0}
    assert lane_values(Whole(other=Inner(tau=2.0))).keys() == {*lane_values(Whole()), "other.tau"}


def test_everything_else_is_static() -> None:
    assert static_fields(Whole()) == {
        "epochs": 2,
        "mode": "one",
        "maybe": 0.5,
        "shares": [0.5, 0.5],
        "part": {"squash": False, "inner": {"steps": 3}},
        "other": None,
    }
    assert static_fields(Whole(other=Inner(steps=4)))["other"] == {"steps": 4}


def test_a_part_sees_its_values_by_their_own_names() -> None:
    lanes = {"lr": 1, "part.scale": 2, "part.inner.tau": 3, "particle.tau": 4}
    assert part_of(lanes, "part") == {"scale": 2, "inner.tau": 3}
    assert part_of(part_of(lanes, "part"), "inner") == {"tau": 3}
    assert part_of(lanes, "head") == {}


@pytest.mark.parametrize("method", EVERY.values(), ids=EVERY)
def test_lane_values_and_static_fields_are_the_whole_method(method: MethodSpec) -> None:
    """Together they give the method back; neither has anything of the other."""
    values, document = method.lane_values(), method.static_fields()
    for path, value in values.items():
        *parts, name = path.split(".")
        inner = document
        for part in parts:
            inner = inner[part]
        assert name not in inner
        inner[name] = value
    assert METHODS.parse(document) == method


@pytest.mark.parametrize("method", EVERY.values(), ids=EVERY)
def test_another_lane_value_leaves_the_static_fields(method: MethodSpec) -> None:
    for path in searchable(method):
        other = set_lane_value(method, path, method.lane_values()[path] * 0.5 + 0.001)
        assert other != method
        assert other.static_fields() == method.static_fields()


def test_the_dynamic_numbers_of_the_methods_are_lane_values() -> None:
    """All that the paper searches differs by lane."""
    for method in DEFAULTS.values():
        if isinstance(method, TrainedMethod):
            assert {"lr", "weight_decay", "momentum"} <= method.lane_values().keys()
    found = {path for method in EVERY.values() for path in searchable(method)}
    assert {
        "smooth_factor",
        "gamma",
        "beta",
        "tau",
        "max_margin",
        "rho",
        "smooth_head",
        "smooth_tail",
        "head.scale",
        "constraint.fraction",
        "post_hoc.tau",
    } <= found
