"""`resample`: `ce` on class-balanced batches, from the stage-1 head."""

import pytest

from lt_train.core.errors import SpecError
from lt_train.methods.base import METHODS
from lt_train.methods.ce import PlainCrossEntropy
from lt_train.methods.resample import Resample


def test_it_is_ce_but_for_the_sampler() -> None:
    found, plain = Resample().model_dump(), PlainCrossEntropy().model_dump()
    assert {name for name in found if found[name] != plain[name]} == {"kind", "sampler"}
    assert found["sampler"] == {"kind": "class_balanced"}


def test_its_sampler_is_what_it_is_made_of() -> None:
    with pytest.raises(SpecError, match=r"resample\.sampler\.kind: unknown kind .instance.; known: class_balanced"):
        METHODS.parse({"kind": "resample", "sampler": {"kind": "instance"}})
