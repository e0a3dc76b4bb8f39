"""`crt`: `resample` from a fresh head."""

import pytest

from lt_train.core.errors import SpecError
from lt_train.methods.base import METHODS
from lt_train.methods.crt import ClassifierRetraining
from lt_train.methods.resample import Resample


def test_it_is_resample_from_a_fresh_head() -> None:
    found, warm = ClassifierRetraining().model_dump(), Resample().model_dump()
    assert {name for name in found if found[name] != warm[name]} == {"kind", "init"}
    assert found["init"] == "random"


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"init": "checkpoint"}, r"crt\.init: must be .random., got .checkpoint"),
        ({"sampler": {"kind": "instance"}}, "known: class_balanced"),
        ({"head": "disalign"}, "disalign re-scales a trained classifier; init must be checkpoint, got random"),
    ],
)
def test_what_it_is_made_of(document: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        METHODS.parse({"kind": "crt", **document})
