"""Metrics of users in both engines, and metrics that are broken."""

import re
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch
from pydantic import Field
from support.banks import make_bank
from support.engines import Engine, agree, every_engine, everything, kept, make_runs, predict

from lt_train.core.errors import SpecError, UserError
from lt_train.methods import CE
from lt_train.methods.base import TrainingSpec
from lt_train.metrics import METRICS, NLL, MacroF1, MetricSpec, evaluate
from lt_train.retrain import fused, reference, stack
from lt_train.retrain.base import EpochSelection, Halving, Run, RunResult
from lt_train.testing import check_metric

pytestmark = pytest.mark.usefixtures("own_kinds")

BANK = make_bank(test_images=300)
LABELS, COUNTS = torch.arange(4).repeat(5), torch.tensor([9, 5, 3, 1])
LOGITS = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))


class Own(MetricSpec):
    """A metric that returns what a test wants."""

    kind: Literal["own_metric"] = "own_metric"
    of: str = Field(default="score", description="which of the functions")
    functions: ClassVar[dict[str, Callable[..., Any]]] = {
        "score": lambda p, predictions, labels, counts: (p[:, 0] * (labels == 0)).mean(),
        "zero": lambda *arrays: 0.0,
    }

    def __call__(self, *arrays: Any) -> Any:
        return self.functions[self.of](*arrays)


@pytest.fixture
def returning(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Any]], Own]:
    """A metric that computes a function."""

    def make(function: Callable[..., Any]) -> Own:
        monkeypatch.setitem(Own.functions, "given", function)
        return Own(of="given")

    return make


# Arguments and values


def test_the_arguments_are_those_documented(returning: Any) -> None:
    seen: list[Any] = []
    evaluate([returning(lambda *arrays: seen.extend(arrays) or 1.0)], LOGITS, LABELS, COUNTS)
    probabilities, predictions, labels, counts = seen
    np.testing.assert_allclose(probabilities, LOGITS.softmax(dim=1), rtol=1e-6)
    assert (probabilities.dtype, predictions.dtype, labels.dtype) == (np.float32, np.int64, np.int64)
    np.testing.assert_array_equal(predictions, LOGITS.argmax(dim=1))
    assert (labels.tolist(), counts.tolist()) == (LABELS.tolist(), COUNTS.tolist())
    assert not any(array.flags.writeable for array in seen)


@pytest.mark.parametrize("value", [0.5, np.float64(0.5), np.array(0.5), torch.tensor(0.5), 1, np.int64(1)])
def test_any_number_is_accepted(returning: Any, value: Any) -> None:
    assert evaluate([returning(lambda *arrays: value)], LOGITS, LABELS, COUNTS) == [float(value)]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e300])
def test_what_is_not_finite_is_undefined(returning: Any, value: float) -> None:
    assert np.isnan(evaluate([returning(lambda *arrays: value)], LOGITS, LABELS, COUNTS)).all()


def test_logits_that_are_not_finite_are_not_passed_on(returning: Any) -> None:
    broken = LOGITS.clone()
    broken[3, 1] = torch.inf
    found = evaluate([MacroF1(), returning(lambda *arrays: pytest.fail("called"))], broken, LABELS, COUNTS)
    assert np.isnan(found).all()


BROKEN = {
    "a vector": (lambda *arrays: arrays[0][:, 0], r"must return one number .* got ndarray of shape \(\d+,\)"),
    "one element": (lambda *arrays: torch.ones(1), r"must return one number .* got Tensor of shape \(1,\)"),
    "nothing": (lambda *arrays: None, "must return one number .* got NoneType: None"),
    "text": (lambda *arrays: "good", "must return one number .* got str: 'good'"),
    "a bool": (lambda *arrays: np.True_, "must return one number .* got bool: True"),
    "complex": (lambda *arrays: 1j, "must return one number .* got complex"),
    "an error": (lambda *arrays: 1 / 0, "failed with ZeroDivisionError: division by zero; correct the metric"),
    "a changed argument": (lambda p, *arrays: p.sort(), "failed with ValueError: .*read-only"),
}


@every_engine
@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_metric_stops_the_training_and_is_named(returning: Any, engine: Engine, case: str) -> None:
    function, message = BROKEN[case]
    with pytest.raises(UserError, match=f"metric own_metric {message}"):
        engine(BANK, make_runs("vanilla", seeds=(0,)), rule=EpochSelection(metrics=(returning(function),)))


def test_a_metric_that_writes_to_its_arguments_changes_nothing(returning: Any) -> None:
    """Torch ignores that the arrays are read-only."""

    def write(probabilities: Any, predictions: Any, labels: Any, class_counts: Any) -> float:
        torch.from_numpy(labels).clamp_(max=1)
        torch.from_numpy(probabilities).log_()
        return 0.5

    bank, run = make_bank(), Run(CE(), TrainingSpec(epochs=1), 0)
    before = bank.test.labels.clone()
    plain, found = (
        fused.fit(bank, [run], rule=EpochSelection(metrics=given))[0] for given in ((NLL(),), (returning(write), NLL()))
    )
    assert torch.equal(bank.test.labels, before)
    assert (found.test_accuracy[:, :4] == plain.test_accuracy[:, :4]).all()
    assert (found.test_accuracy[:, 5] == plain.test_accuracy[:, 4]).all()
    with pytest.raises(AssertionError, match="changes its arguments"):
        check_metric(returning(write))


def test_a_kind_with_another_meaning_is_refused() -> None:
    for kind in ("acc_all", "val_score", "objective", "few"):
        with pytest.raises(TypeError, match=f"the kind '{kind}' has another meaning in results"):
            type("Taken", (Own,), {"__annotations__": {"kind": Literal[kind]}, "kind": kind, "__module__": __name__})
    assert "own_metric" not in METRICS.kinds()


# Engines

METRICS_OF_RUNS = (MacroF1(), NLL(), Own())


@every_engine
@pytest.mark.parametrize("kind", ["los", "tau_norm", "vanilla", "cosine"])
def test_they_are_those_of_the_selected_head(engine: Engine, kind: str) -> None:
    """Computed again from the stored head, for linear, cosine and adjusted heads."""
    runs = make_runs(kind, epochs=2)
    results = engine(BANK, runs, rule=EpochSelection(metrics=METRICS_OF_RUNS))
    assert len({result.test_accuracy[-1, 5].item() for result in results}) > 1 or kind == "vanilla"
    for run, result in zip(runs, results, strict=True):
        assert result.test_accuracy.shape == (2 if run.method.trains else 1, 7)
        logits = torch.from_numpy(predict(BANK, run, kept(result)))
        expected = evaluate(METRICS_OF_RUNS, logits, BANK.test.labels, BANK.class_counts)
        np.testing.assert_allclose(result.test_accuracy[-1, 4:], expected, rtol=1e-4)


@pytest.mark.parametrize("kind", ["los", "tau_norm", "cosine", "lws"])
def test_both_engines_agree_and_nothing_else_changes(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    runs, rule = make_runs(kind, epochs=3), EpochSelection("best", "val", "macro_f1", METRICS_OF_RUNS)
    by_reference = agree(BANK, runs, EpochSelection("best"))
    found = agree_in_columns(runs, rule)
    for with_metrics, without in zip(found, by_reference, strict=True):
        assert with_metrics.test_accuracy[:, :4].tobytes() == without.test_accuracy.tobytes()
        assert with_metrics.train_loss.tobytes() == without.train_loss.tobytes()
    monkeypatch.setitem(stack.METRIC_BYTES, "cpu", 1)  # one lane at a time
    assert list(map(everything, fused.fit(BANK, runs, rule=rule))) == list(map(everything, found))


def agree_in_columns(runs: list[Run], rule: EpochSelection) -> list[RunResult]:
    expected, found = reference.fit(BANK, runs, rule=rule), fused.fit(BANK, runs, rule=rule)
    for one, other in zip(found, expected, strict=True):
        assert (one.failure, one.stopped, kept(one).epoch) == (other.failure, other.stopped, kept(other).epoch)
        np.testing.assert_allclose(one.test_accuracy, other.test_accuracy, atol=0.01)
        assert one.val_accuracy is not None
        np.testing.assert_allclose(one.val_accuracy, other.val_accuracy, atol=0.03)
    return found


def in_turn(values: list[float]) -> Callable[..., float]:
    """A function that returns these values, one per call."""
    left = iter(values)
    return lambda *arrays: next(left)


@every_engine
def test_the_best_epoch_is_that_of_the_metric(engine: Engine, returning: Any) -> None:
    bank, run, undefined = make_bank(val_per_class=0, test_images=300), make_runs("los", seeds=(0,)), float("nan")
    for values, epoch in (([0.5, 0.9, undefined, 0.9, 0.1], 3), ([undefined] * 5, 4)):
        rule = EpochSelection("best", "test", "own_metric", (returning(in_turn(values)), NLL()))
        result = engine(bank, run, rule=rule)[0]
        assert kept(result).epoch == epoch, "the later one if tied; an undefined one only if all are"
        np.testing.assert_array_equal(result.test_accuracy[:, 4], np.float32(values))


def test_halving_compares_by_the_metric_and_ranks_an_undefined_one_last(returning: Any) -> None:
    bank, runs = make_bank(val_per_class=0, test_images=300), make_runs("los", epochs=2, seeds=(0, 0, 0, 0))
    values = in_turn([float("nan"), 0.1, 0.3, 0.2, *[0.0] * 4])
    rule = EpochSelection("last", "test", "own_metric", (returning(values),))
    results = fused.fit(bank, runs, rule=rule, halving=Halving((1,), 2.0))
    assert [result.stopped for result in results] == [1, 1, None, None]


def test_a_rule_names_a_metric_that_is_computed() -> None:
    with pytest.raises(SpecError, match=r"metric 'macro_f2' is unknown; did you mean 'macro_f1'\?"):
        EpochSelection("best", "val", "macro_f2", (MacroF1(),))
    with pytest.raises(SpecError, match="metric 'macro_f1' is unknown"):
        EpochSelection("best", "val", "macro_f1")


# The conformance check


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda *arrays: arrays[0].mean(axis=0), "must return one number"),
        (lambda p, y, labels, counts: np.log(0.0 * (y == labels).mean()), "Own is not finite for random predictions"),
        (lambda p, y, labels, counts: 100 * (y == labels).mean(), "must return a fraction, got .*; or declare percent"),
        (lambda *arrays: float(np.random.default_rng().random()), "returns another value at a second call"),
        (lambda p, *arrays: float(p[0, 0]), "depends on the order of images"),
        (lambda p, *arrays: p.fill(0.0), "read-only"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_what_is_wrong_with_a_metric_is_named(returning: Any, function: Callable[..., Any], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_metric(returning(function))
    check_metric(Own)


def test_another_kind_is_not_a_metric() -> None:
    with pytest.raises(AssertionError, match=re.escape("CE is not a metric")):
        check_metric(CE)  # type: ignore[arg-type]
