"""Fields by dotted path: which can be searched, and a spec with some values replaced."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from lt_train.core.fields import substitute
from lt_train.methods.base import METHODS, MethodSpec
from sweeps.config.methods import searchable, why_not_searchable

COSINE = METHODS.parse({"kind": "los", "head": "cosine", "sampler": "class_balanced"})
NO_VALUE = "is not a single number or word; search its fields, or list several methods in methods"


def test_fields_of_parts_are_searchable_by_path_and_kinds_are_not() -> None:
    assert set(searchable(COSINE)) == {
        "smooth_factor", "lr", "weight_decay", "momentum", "init", "head.scale", "head.squash",
    }  # fmt: skip
    bounded = METHODS.parse({"kind": "ce", "constraint": "maxnorm", "post_hoc": {"kind": "tau_norm"}})
    assert {"constraint.every", "constraint.fraction", "post_hoc.tau", "post_hoc.bias"} <= set(searchable(bounded))


@pytest.mark.parametrize("kind", [pytest.param(kind, id=name) for name, kind in METHODS.kinds().items()])
def test_every_lane_value_of_every_method_can_be_searched(kind: type[MethodSpec]) -> None:
    method = kind()
    lanes = method.lane_values()
    assert set(lanes) <= set(searchable(method))
    for path, value in lanes.items():
        if path == "gamma" and getattr(method, "mode", "focal") != "focal":
            with pytest.raises(ValidationError, match="gamma is the exponent of mode focal"):
                substitute(method, {path: 0.75 * value + 0.01})
            continue
        changed = substitute(method, {path: 0.75 * value + 0.01})
        assert changed.lane_values() == lanes | {path: 0.75 * value + 0.01}
        assert changed.static_fields() == method.static_fields()


def test_values_are_replaced_together_and_validated() -> None:
    changed = substitute(COSINE, {"head.scale": 12.0, "lr": 0.1, "init": "random"})
    assert changed.lane_values() | {"head.scale": 12.0, "lr": 0.1} == changed.lane_values()
    assert changed.static_fields() == COSINE.static_fields() | {"init": "random"}
    with pytest.raises(ValidationError, match="greater than 0"):
        substitute(COSINE, {"head.scale": 0.0})
    with pytest.raises(ValidationError, match="init must be checkpoint, got random"):
        substitute(METHODS.parse({"kind": "ce", "head": "lws"}), {"init": "random"})


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("smoth_factor", ""),
        ("lr.x", ""),
        ("head.scael", ""),
        ("head", f"method.head {NO_VALUE}"),
        ("post_hoc.tau", "cannot be searched because method.post_hoc is not given"),
        ("constraint", f"method.constraint {NO_VALUE}"),
    ],
)
def test_the_reason_why_a_path_cannot_be_searched(path: str, reason: str) -> None:
    assert why_not_searchable(COSINE, path, "method") == reason
