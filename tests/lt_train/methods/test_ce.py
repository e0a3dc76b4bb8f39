"""`ce` is plain cross entropy: `los` without smoothing."""

import pytest
import torch

from lt_train.errors import SpecError
from lt_train.features.bank import EvalSet, FeatureBank
from lt_train.methods.base import TrainedMethod, TrainingSpec, parse_method
from lt_train.retrain.base import Run
from lt_train.retrain.fused import fit


def test_the_loss_is_torchs_cross_entropy() -> None:
    method = parse_method({"kind": "ce"})
    assert isinstance(method, TrainedMethod)
    logits, labels = torch.randn(9, 4, generator=torch.Generator().manual_seed(0)), torch.arange(9) % 4
    expected = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(method.loss(logits, labels, {}), expected)


def test_training_equals_los_without_smoothing() -> None:
    stream = torch.Generator().manual_seed(0)
    features, labels = torch.randn(1, 60, 4, generator=stream), torch.arange(60) % 3
    counts = torch.full((3,), 20)
    bank = FeatureBank("ce", features, labels, None, EvalSet(features, labels), None, counts, counts)
    results = []
    for document in ({"kind": "ce"}, {"kind": "los", "smooth_factor": 0.0}, {"kind": "los", "smooth_factor": 0.1}):
        method = parse_method({**document, "init": "fresh", "lr": 0.1})
        kept = fit(bank, [Run(method, TrainingSpec(epochs=3), 0)])[0].kept
        assert kept is not None
        results.append(torch.from_numpy(kept.weight))
    torch.testing.assert_close(results[0], results[1])
    assert float((results[0] - results[2]).abs().max()) > 1e-3


def test_defaults_are_the_papers_protocol() -> None:
    method = parse_method({"kind": "ce"})
    assert method.model_dump() == {"kind": "ce", "lr": 5e-4, "weight_decay": 0.0, "momentum": 0.9, "init": "warm"}
    assert set(method.lane_fields()) == {"lr", "weight_decay", "momentum"}
    assert method.static_fields() == {"kind": "ce", "init": "warm"}
    assert TrainingSpec().model_dump() == {"epochs": 20, "batch_size": 64}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("lr", 0.0, r"ce\.lr: must be above 0"),
        ("weight_decay", -1e-9, r"ce\.weight_decay: must be at least 0"),
        ("momentum", 1.0, r"ce\.momentum: must be in \[0(\.0)?, 1(\.0)?\), got 1\.0"),
        ("init", "hot", r"ce\.init: must be \"?'?warm"),
        ("smooth_factor", 0.5, r"ce\.smooth_factor: unknown key"),
    ],
)
def test_values_out_of_range_are_refused(field: str, value: object, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse_method({"kind": "ce", field: value})
