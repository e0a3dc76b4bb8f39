"""`resample` and `crt`: cross entropy on class-balanced batches."""

import pytest

from lt_train.core.errors import SpecError
from lt_train.methods import CE, CRT, Resample
from lt_train.methods.base import METHODS


def test_resample_is_ce_with_another_sampler() -> None:
    found, plain = Resample().model_dump(), CE().model_dump()
    assert {name for name in found if found[name] != plain[name]} == {"kind", "sampler"}
    assert found["sampler"] == {"kind": "class_balanced"}


def test_resample_has_a_fixed_sampler() -> None:
    with pytest.raises(SpecError, match=r"resample\.sampler\.kind: unknown kind .instance.; known: class_balanced"):
        METHODS.parse({"kind": "resample", "sampler": {"kind": "instance"}})


def test_crt_is_resample_from_a_random_head() -> None:
    found, warm = CRT().model_dump(), Resample().model_dump()
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
def test_crt_has_a_fixed_start_and_sampler(document: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        METHODS.parse({"kind": "crt", **document})
