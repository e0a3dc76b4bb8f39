"""`lws`: factors on the stage-1 head's logits, on class-balanced batches unless asked otherwise."""

import pytest

from lt_train.core.errors import SpecError
from lt_train.methods.base import METHODS
from lt_train.methods.lws import WeightScaling
from lt_train.methods.samplers.instance import Instance


def test_defaults_are_the_originals() -> None:
    method = WeightScaling()
    assert method.lane_values() == {"lr": 0.2, "weight_decay": 5e-4, "momentum": 0.9}
    assert (method.head.kind, method.sampler.kind, method.init) == ("lws", "class_balanced", "checkpoint")


def test_the_sampler_is_open_and_the_start_is_not() -> None:
    method = METHODS.parse({"kind": "lws", "sampler": "instance"})
    assert isinstance(method, WeightScaling)
    assert method.sampler == Instance()
    with pytest.raises(SpecError, match="init must be checkpoint, got random"):
        METHODS.parse({"kind": "lws", "init": "random"})
    with pytest.raises(SpecError, match="known: lws"):
        METHODS.parse({"kind": "lws", "head": {"kind": "linear"}})
