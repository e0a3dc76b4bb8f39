"""`maxnorm`: `ce` with bounded rows."""

import pytest

from lt_train.core.errors import SpecError
from lt_train.methods.base import METHODS
from lt_train.methods.ce import PlainCrossEntropy
from lt_train.methods.maxnorm import MaxNormRetraining


def test_it_is_ce_but_for_the_constraint() -> None:
    found, plain = MaxNormRetraining().model_dump(), PlainCrossEntropy().model_dump()
    assert {name for name in found if found[name] != plain[name]} == {"kind", "constraint"}
    assert found["constraint"] == {"kind": "maxnorm", "every": "epoch", "fraction": 0.1}
    assert MaxNormRetraining().lane_values()["constraint.fraction"] == 0.1


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"constraint": None}, r"maxnorm\.constraint: must be a mapping"),
        ({"constraint": {"kind": "maxnorm", "fraction": 0.0}}, r"maxnorm\.constraint\.fraction: must be above 0"),
        (
            {"head": "cosine"},
            "maxnorm bounds the length of trained weight rows, and head cosine has none; use one of linear",
        ),
    ],
)
def test_what_is_refused(document: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        METHODS.parse({"kind": "maxnorm", **document})
