"""`los`: the more smoothing, the smaller Logits Magnitude."""

import pytest
import torch

from lt_train.errors import SpecError
from lt_train.features.bank import EvalSet, FeatureBank
from lt_train.methods.base import TrainedMethod, TrainingSpec, parse_method
from lt_train.retrain.base import Run
from lt_train.retrain.fused import fit


def test_the_loss_is_torchs_label_smoothing() -> None:
    method = parse_method({"kind": "los"})
    assert isinstance(method, TrainedMethod)
    logits, labels = torch.randn(9, 4, generator=torch.Generator().manual_seed(0)), torch.arange(9) % 4
    expected = torch.nn.functional.cross_entropy(logits, labels, reduction="none", label_smoothing=0.3)
    torch.testing.assert_close(method.loss(logits, labels, {"smooth_factor": torch.tensor(0.3)}), expected)


def test_more_smoothing_gives_smaller_magnitudes() -> None:
    stream = torch.Generator().manual_seed(0)
    counts = torch.tensor([200, 60, 20, 6])
    means = 2 * torch.randn(4, 8, generator=stream)

    def images(labels: torch.Tensor) -> torch.Tensor:
        return (means[labels] + torch.randn(len(labels), 8, generator=stream))[None]

    labels, test = torch.arange(4).repeat_interleave(counts), torch.arange(400) % 4
    bank = FeatureBank("los", images(labels), labels, None, EvalSet(images(test), test), None, counts, counts)
    runs = [
        Run(parse_method({"kind": "los", "smooth_factor": d, "lr": 0.1, "init": "fresh"}), TrainingSpec(epochs=20), 0)
        for d in (0.0, 0.5, 0.9, 0.98)
    ]
    magnitudes = [result.kept.loma for result in fit(bank, runs) if result.kept]
    assert len(magnitudes) == 4
    for smoother, rougher in zip(magnitudes[1:], magnitudes[:-1], strict=True):
        assert bool((smoother < rougher).all())


def test_the_papers_smooth_factor_is_the_default_and_may_differ_by_lane() -> None:
    method = parse_method({"kind": "los"})
    assert method.model_dump()["smooth_factor"] == 0.98
    assert "smooth_factor" in method.lane_fields()
    assert "smooth_factor" not in method.static_fields()


@pytest.mark.parametrize("value", [1.0, -0.1, 1.5])
def test_a_smooth_factor_out_of_range_is_refused(value: float) -> None:
    with pytest.raises(SpecError, match=rf"los\.smooth_factor: must be in \[0(\.0)?, 1(\.0)?\), got {value}"):
        parse_method({"kind": "los", "smooth_factor": value})


@pytest.mark.parametrize("value", [0.0, 0.999])
def test_the_ends_that_are_allowed(value: float) -> None:
    assert parse_method({"kind": "los", "smooth_factor": value}).model_dump()["smooth_factor"] == value
