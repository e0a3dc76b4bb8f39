"""`vanilla` is the stage-1 head, untouched."""

import numpy as np
import pytest
import torch

from lt_train.core.errors import SpecError
from lt_train.features.bank import EvalSet, FeatureBank
from lt_train.methods.base import METHODS, TrainingSpec
from lt_train.retrain import fused, reference
from lt_train.retrain.base import Engine, EpochSelection, Run


@pytest.mark.parametrize("engine", [reference.fit, fused.fit], ids=["reference", "fused"])
@pytest.mark.parametrize("seed", [0, 5])
def test_the_stage_1_head_is_evaluated_as_it_is(engine: Engine, seed: int) -> None:
    stream = torch.Generator().manual_seed(0)
    features, labels = torch.randn(2, 60, 4, generator=stream), torch.arange(60) % 3
    weight, bias = torch.randn(3, 4, generator=stream), torch.randn(3, generator=stream)
    counts = torch.tensor([200, 50, 3])
    images = EvalSet(features, labels)
    bank = FeatureBank("vanilla", features, labels, images, images, (weight, bias), counts, counts)
    run = Run(METHODS.parse({"kind": "vanilla"}), TrainingSpec(epochs=9), seed)
    result = engine(bank, [run], rule=EpochSelection("best"))[0]
    assert result.kept is not None
    np.testing.assert_array_equal(result.kept.state["weight"], weight.numpy())
    np.testing.assert_array_equal(result.kept.state["bias"], bias.numpy())
    assert result.kept.epoch == 0
    assert np.isnan(result.train_loss).tolist() == [True]
    right = ((features @ weight.T + bias).mean(dim=0).argmax(dim=1) == labels).numpy()
    expected = [right.mean(), *(right[labels.numpy() == k].mean() for k in range(3))]
    np.testing.assert_allclose(result.test_accuracy, [expected], rtol=1e-6)


def test_it_has_nothing_to_set() -> None:
    method = METHODS.parse({"kind": "vanilla"})
    assert not method.trains
    assert method.lane_values() == {}
    assert method.incompatibility(torch.tensor([5, 0])) == ""
    for document, message in (
        ({"lr": 0.1}, "lr: unknown key"),
        ({"head": {"kind": "cosine"}}, "known: linear"),
        ({"post_hoc": {"kind": "tau_norm"}}, r"vanilla\.post_hoc: must be null"),
    ):
        with pytest.raises(SpecError, match=message):
            METHODS.parse({"kind": "vanilla", **document})
