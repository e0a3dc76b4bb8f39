"""`ce` is plain cross entropy under the paper's protocol."""

import pytest
import torch

from lt_train.core.errors import SpecError
from lt_train.methods.base import METHODS, TrainedMethod, TrainingSpec


def test_the_loss_is_torchs_cross_entropy() -> None:
    method = METHODS.parse({"kind": "ce"})
    assert isinstance(method, TrainedMethod)
    logits, labels = torch.randn(9, 4, generator=torch.Generator().manual_seed(0)), torch.arange(9) % 4
    expected = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(method.loss({}, torch.ones(4))(logits, labels), expected)


def test_defaults_are_the_papers_protocol() -> None:
    method = METHODS.parse({"kind": "ce"})
    assert method.model_dump() == {
        "kind": "ce",
        "lr": 5e-4,
        "weight_decay": 0.0,
        "momentum": 0.9,
        "init": "checkpoint",
        "head": {"kind": "linear"},
        "sampler": {"kind": "instance"},
        "constraint": None,
        "post_hoc": None,
    }
    assert method.lane_values() == {"lr": 5e-4, "weight_decay": 0.0, "momentum": 0.9}
    assert set(method.static_fields()) == {"kind", "init", "head", "sampler", "constraint", "post_hoc"}
    assert TrainingSpec().model_dump() == {"epochs": 20, "batch_size": 64, "matmul": "float32"}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("lr", 0.0, r"ce\.lr: must be above 0"),
        ("weight_decay", -1e-9, r"ce\.weight_decay: must be at least 0"),
        ("momentum", 1.0, r"ce\.momentum: must be in \[0(\.0)?, 1(\.0)?\), got 1\.0"),
        ("init", "hot", r"ce\.init: must be .checkpoint."),
        ("smooth_factor", 0.5, r"ce\.smooth_factor: unknown key"),
    ],
)
def test_values_out_of_range_are_refused(field: str, value: object, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        METHODS.parse({"kind": "ce", field: value})
