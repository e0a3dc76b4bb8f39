"""Methods that keep the stage-1 head: unchanged, adjusted, or re-scaled."""

import numpy as np
import pytest
import torch
from support.engines import Engine

from lt_train.core.errors import SpecError
from lt_train.features.bank import EvalSet, FeatureBank
from lt_train.losses import CrossEntropy
from lt_train.methods import LWS, DisAlign, LogitAdjust, TauNorm
from lt_train.methods.base import METHODS, TrainingSpec
from lt_train.methods.samplers import Instance
from lt_train.retrain import fused, reference
from lt_train.retrain.base import EpochSelection, Run


@pytest.mark.parametrize("engine", [reference.fit, fused.fit], ids=["reference", "fused"])
@pytest.mark.parametrize("seed", [0, 5])
def test_vanilla_evaluates_the_stage_1_head(engine: Engine, seed: int) -> None:
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


def test_vanilla_has_no_hyperparameters() -> None:
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


def test_tau_norm_searches_tau_only() -> None:
    method = TauNorm()
    assert not method.trains
    assert method.lane_values() == {"post_hoc.tau": 1.0}
    assert method.static_fields() == {
        "kind": "tau_norm", "head": {"kind": "linear"}, "post_hoc": {"kind": "tau_norm", "bias": "drop"}
    }  # fmt: skip


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"post_hoc": None}, r"tau_norm\.post_hoc: must be a mapping"),
        ({"post_hoc": {"kind": "tau_norm", "tau": -0.5}}, r"tau_norm\.post_hoc\.tau: must be at least 0, got -0\.5"),
        ({"post_hoc": {"kind": "logit_adjust"}}, "known: tau_norm"),
        ({"head": {"kind": "cosine"}}, "known: linear"),
        ({"lr": 0.1}, r"tau_norm\.lr: unknown key"),
    ],
)
def test_tau_norm_rejected_values(document: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        METHODS.parse({"kind": "tau_norm", **document})


def test_logit_adjust_searches_tau_only() -> None:
    method = LogitAdjust()
    assert not method.trains
    assert method.lane_values() == {"post_hoc.tau": 1.0}
    assert method.static_fields()["post_hoc"] == {"kind": "logit_adjust", "prior": None}


def test_logit_adjust_rejected_values() -> None:
    assert "1 of 2 have none: 1" in LogitAdjust().incompatibility(torch.tensor([3, 0]))
    given = METHODS.parse({"kind": "logit_adjust", "post_hoc": {"kind": "logit_adjust", "prior": [0.7, 0.3]}})
    assert given.incompatibility(torch.tensor([3, 0])) == ""
    for document, message in (
        ({"post_hoc": None}, r"logit_adjust\.post_hoc: must be a mapping"),
        ({"post_hoc": {"kind": "logit_adjust", "prior": [0.7, 0.2]}}, r"post_hoc\.prior: shares must sum to 1"),
        ({"head": {"kind": "lws"}}, "known: linear"),
        ({"sampler": {"kind": "instance"}}, "sampler: unknown key"),
    ):
        with pytest.raises(SpecError, match=message):
            METHODS.parse({"kind": "logit_adjust", **document})


def test_lws_defaults_are_those_of_the_original() -> None:
    method = LWS()
    assert method.lane_values() == {"lr": 0.2, "weight_decay": 5e-4, "momentum": 0.9}
    assert (method.head.kind, method.sampler.kind, method.init) == ("lws", "class_balanced", "checkpoint")


def test_lws_sampler_is_free_and_start_is_not() -> None:
    method = METHODS.parse({"kind": "lws", "sampler": "instance"})
    assert isinstance(method, LWS)
    assert method.sampler == Instance()
    with pytest.raises(SpecError, match="init must be checkpoint, got random"):
        METHODS.parse({"kind": "lws", "init": "random"})
    with pytest.raises(SpecError, match="known: lws"):
        METHODS.parse({"kind": "lws", "head": {"kind": "linear"}})


COUNTS = torch.tensor([100, 25, 4])


def weights(rho: torch.Tensor, counts: torch.Tensor = COUNTS) -> torch.Tensor:
    loss = DisAlign().loss({"rho": rho}, counts)
    assert isinstance(loss, CrossEntropy)
    assert isinstance(loss.weight, torch.Tensor)
    return loss.weight


def test_disalign_weights_by_hand() -> None:
    # Square roots 10, 5 and 2: their inverses are 1, 2 and 5 in parts of 8, and sum to K = 3.
    assert weights(torch.tensor(0.5)).tolist() == pytest.approx([3 / 8, 6 / 8, 15 / 8])
    assert weights(torch.tensor(0.0)).tolist() == pytest.approx([1.0] * 3)


def test_disalign_rho_differs_by_lane_and_does_not_overflow() -> None:
    found = weights(torch.tensor([[[0.5, 60.0]]]), torch.tensor([10**6, 10**6 - 1, 2]))
    assert found.shape == (1, 1, 2, 3)
    assert bool(found.isfinite().all())
    assert found[0, 0].sum(dim=-1).tolist() == pytest.approx([3.0, 3.0])


def test_disalign_defaults_and_rejected_values() -> None:
    method = DisAlign()
    assert method.lane_values() == {"lr": 5e-4, "weight_decay": 0.0, "momentum": 0.9, "rho": 1.5}
    assert (method.head.kind, method.sampler.kind) == ("disalign", "instance")
    assert "1 of 2 have none: 1" in method.incompatibility(torch.tensor([3, 0]))
    for document, message in (
        ({"rho": -1.0}, r"disalign\.rho: must be at least 0, got -1\.0"),
        ({"init": "random"}, "init must be checkpoint, got random"),
        ({"head": {"kind": "linear"}}, "known: disalign"),
    ):
        with pytest.raises(SpecError, match=message):
            METHODS.parse({"kind": "disalign", **document})
