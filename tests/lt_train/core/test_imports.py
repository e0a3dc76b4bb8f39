"""The stand-ins for modules of torch: attributes are torch's own, and they can be pickled."""

import pickle

import pytest
import torch

from lt_train.core import imports


def test_attributes_are_those_of_the_module() -> None:
    assert imports.torch.Tensor is torch.Tensor
    assert imports.nn.Module is torch.nn.Module
    assert imports.functional.relu is torch.nn.functional.relu


def test_stand_ins_are_pickled_by_name() -> None:
    for module in (imports.torch, imports.nn, imports.functional):
        again = pickle.loads(pickle.dumps(module))
        assert again.__name__ == module.__name__
    assert pickle.loads(pickle.dumps(imports.torch)).float32 is torch.float32


def test_a_function_that_uses_a_stand_in_can_be_pickled_by_value() -> None:
    cloudpickle = pytest.importorskip("cloudpickle")
    namespace: dict[str, object] = {"torch": imports.torch, "__name__": "__main__"}
    exec("def ones(): return torch.ones(2)", namespace)
    again = pickle.loads(cloudpickle.dumps(namespace["ones"]))
    assert torch.equal(again(), torch.ones(2))
