"""Values by dotted path: what may be searched of a method and of its parts, and values put in their places."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from lt_train.methods.base import METHODS, MethodSpec
from sweeps.config.space import searchable, substitute, why_not

COSINE = METHODS.parse({"kind": "los", "head": "cosine", "sampler": "class_balanced"})
NO_VALUE = "is no single number or word; search what is in it, or list several in methods"


def test_fields_of_parts_are_searchable_by_path_and_kinds_are_not() -> None:
    assert set(searchable(COSINE)) == {
        "smooth_factor", "lr", "weight_decay", "momentum", "init", "head.scale", "head.squash",
    }  # fmt: skip
    bounded = METHODS.parse({"kind": "ce", "constraint": "maxnorm", "post_hoc": {"kind": "tau_norm"}})
    assert {"constraint.every", "constraint.fraction", "post_hoc.tau", "post_hoc.bias"} <= set(searchable(bounded))


@pytest.mark.parametrize("kind", [pytest.param(kind, id=name) for name, kind in METHODS.kinds().items()])
def test_every_lane_value_of_every_method_is_searchable_and_arrives_where_it_belongs(kind: type[MethodSpec]) -> None:
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


def test_values_are_put_in_together_and_judged_as_if_the_file_said_so() -> None:
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
        ("post_hoc.tau", "nothing to search by this name, since method.post_hoc is not given"),
        (
            "constraint",
            "method.constraint is no single number or word; search what is in it, or list several in methods",
        ),
    ],
)
def test_a_path_that_is_not_searchable_says_why_where_it_can(path: str, reason: str) -> None:
    assert why_not(COSINE, path, "method") == reason
