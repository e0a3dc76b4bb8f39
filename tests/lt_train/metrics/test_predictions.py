"""Built-in metrics of predictions: by hand, and scikit-learn as oracle."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, log_loss, recall_score

from lt_train.metrics import METRICS, NLL, MacroF1, MeanClassAccuracy, evaluate
from lt_train.testing import check_metric

pytestmark = pytest.mark.usefixtures("own_kinds")

COUNTS = torch.tensor([90, 30, 10, 2])


def logits_of(predictions: list[int], classes: int = 4) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(predictions), classes).float()


@pytest.mark.parametrize("kind", METRICS.kinds())
def test_built_in_metrics_conform(kind: str) -> None:
    check_metric(METRICS.kinds()[kind])


def test_values_by_hand() -> None:
    labels, logits = torch.tensor([0, 0, 0, 1, 1, 2]), logits_of([0, 0, 1, 1, 2, 2])
    # F1: 4/5, 2/4, 2/3; recall: 2/3, 1/2, 1; class 3 has no images.
    macro_f1, recall = evaluate([MacroF1(), MeanClassAccuracy()], logits, labels, COUNTS)
    assert macro_f1 == pytest.approx((4 / 5 + 2 / 4 + 2 / 3) / 3)
    assert recall == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    probabilities = torch.tensor([[0.5, 0.5, 1e-9, 1e-9], [0.25, 0.25, 0.25, 0.25]])
    (nll,) = evaluate([NLL()], probabilities.log(), torch.tensor([0, 3]), COUNTS)
    assert nll == pytest.approx((math.log(2) + math.log(4)) / 2, abs=1e-6)
    (bound,) = evaluate([NLL()], 1000 * logits_of([0]), torch.tensor([1]), COUNTS)
    assert bound == pytest.approx(87.34, abs=0.01)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("present", [4, 3])
def test_they_are_those_of_scikit_learn(seed: int, present: int) -> None:
    rng = np.random.default_rng(seed)
    labels, logits = rng.integers(0, present, size=80), rng.normal(size=(80, 4)).astype(np.float32)
    found = evaluate(
        [MacroF1(), MeanClassAccuracy(), NLL()], torch.tensor(logits), torch.tensor(labels), torch.tensor([9, 9, 9, 9])
    )
    predictions, probabilities = logits.argmax(axis=1), torch.tensor(logits).double().softmax(dim=1).numpy()
    assert found == pytest.approx(
        [
            f1_score(labels, predictions, average="macro", labels=range(present)),
            recall_score(labels, predictions, average="macro", labels=range(present)),
            log_loss(labels, probabilities, labels=range(4)),
        ],
        rel=1e-5,
    )
