"""Contents of a result and ownership of its memory, for both engines."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.banks import make_bank
from support.compositions import DEFAULTS, TRAINED
from support.engines import (
    Engine,
    agree,
    distance,
    every_engine,
    kept,
    lone_run,
    make_runs,
    predict,
    trained,
    with_method,
)

from lt_train.features.bank import EvalSet, FeatureBank
from lt_train.methods.base import TrainedMethod, TrainingSpec
from lt_train.metrics import split_masks
from lt_train.retrain.base import EpochSelection, learning_rate_factor

every_kind = pytest.mark.parametrize("kind", DEFAULTS)
RULES = [
    EpochSelection("last"),
    EpochSelection("best", "val"),
    EpochSelection("best", "test"),
    EpochSelection("best", "val", "acc_few"),
    EpochSelection("best", "test", "acc_many"),
]


# The selected epoch


@every_kind
def test_both_engines_select_the_same_epoch(kind: str) -> None:
    agree(make_bank(), make_runs(kind), EpochSelection("best", "val"))


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("kind", ["los", "disalign"])
def test_the_selected_epoch_is_the_later_of_the_best(kind: str, rule: EpochSelection) -> None:
    column = ("acc_all", "acc_many", "acc_medium", "acc_few").index(rule.metric)
    for result in agree(make_bank(test_images=60), make_runs(kind, epochs=8, seeds=(0, 7, 0)), rule=rule):
        assert result.val_accuracy is not None
        curve = (result.val_accuracy if rule.on == "val" else result.test_accuracy)[:, column]
        best = 7 if rule.epoch == "last" else max(range(8), key=lambda epoch: (curve[epoch], epoch))
        assert kept(result).epoch == best


@every_engine
def test_the_rules_select_different_epochs(engine: Engine) -> None:
    """Guards the tests above."""
    chosen = {
        tuple(kept(result).epoch for result in engine(make_bank(), make_runs("los"), rule=rule)) for rule in RULES
    }
    assert len(chosen) >= 4


# Contents


@every_engine
@every_kind
def test_reported_metrics_are_those_of_the_returned_classifier(kind: str, engine: Engine) -> None:
    """Accuracy and LoMa by hand, from the predictions of the returned classifier."""
    bank, runs = make_bank(val_per_class=5, test_images=200), make_runs(kind, epochs=2, seeds=(0, 7, 0))
    labels, masks = bank.test.labels.numpy(), split_masks(bank.split_counts).numpy()
    for run, result in zip(runs, engine(bank, runs, rule=EpochSelection("best", "test")), strict=True):
        head, logits = kept(result), predict(bank, run, kept(result))
        right = logits.argmax(axis=1) == labels
        by_class = [right[labels == k].mean() for k in range(6)]
        np.testing.assert_allclose(head.class_accuracy, by_class, atol=0.031)
        top1 = [right[mask[labels]].mean() for mask in masks]
        np.testing.assert_allclose(result.test_accuracy[head.epoch], top1, atol=0.031)
        own = [logits[labels == k, k].mean() - logits[labels != k, k].mean() for k in range(6)]
        np.testing.assert_allclose(head.loma, own, rtol=1e-3, atol=1e-4)
        spread = [logits[:, k].std() / own[k] if own[k] > 0 else np.nan for k in range(6)]
        np.testing.assert_allclose(head.regularised_std, spread, rtol=1e-3, atol=1e-4)


@every_engine
def test_val_weighs_classes_and_test_weighs_images(engine: Engine) -> None:
    """The same unbalanced images as val and test: macro average on val, micro average on test."""
    bank = make_bank(test_images=60, seed=2)
    chosen = torch.cat([(bank.test.labels == 0).nonzero()[:, 0], (bank.test.labels == 5).nonzero()[:2, 0]])
    images = EvalSet(bank.test.features[:, chosen], bank.test.labels[chosen])
    result = engine(replace(bank, val=images, test=images), [lone_run({"kind": "vanilla"})])[0]
    assert result.val_accuracy is not None
    large, small = kept(result).class_accuracy[[0, 5]]
    assert large != small
    np.testing.assert_allclose(result.val_accuracy[0, 0], (large + small) / 2, rtol=1e-6)
    np.testing.assert_allclose(result.test_accuracy[0, 0], (10 * large + 2 * small) / 12, rtol=1e-6)


@every_engine
def test_an_empty_split_is_nan(engine: Engine) -> None:
    result = engine(make_bank((120, 110, 50)), make_runs("ce"))[0]
    assert np.isnan(result.test_accuracy).tolist() == [[False, False, False, True]] * 5
    assert result.val_accuracy is not None
    assert np.isnan(result.val_accuracy).tolist() == [[False, False, False, True]] * 5


@every_engine
def test_a_class_without_test_images_is_nan(engine: Engine) -> None:
    bank = make_bank(test_images=5)  # none of class 5
    head = kept(engine(bank, make_runs("ce"))[0])
    for values in (head.class_accuracy, head.loma, head.regularised_std):
        assert bool(np.isnan(values[5]))
    assert not np.isnan(head.class_accuracy[:5]).any()


@every_engine
def test_splits_follow_the_counts_before_the_hold_out(engine: Engine) -> None:
    bank = make_bank((120, 60, 8))
    held_out = replace(bank, split_counts=torch.tensor([120, 200, 30]))
    accuracy = engine(held_out, make_runs("ce"))[0].test_accuracy
    assert np.isnan(accuracy[0]).tolist() == [False, False, False, True]


@every_engine
@pytest.mark.parametrize("kind", TRAINED)
def test_training_lowers_the_loss_of_every_lane(kind: str, engine: Engine) -> None:
    for result in engine(make_bank(), make_runs(kind, epochs=4, seeds=(0, 7, 0), alike=("momentum", "weight_decay"))):
        assert np.isfinite(result.train_loss).all()
        assert result.train_loss[-1] < result.train_loss[0]


@every_engine
def test_a_method_that_trains_nothing_has_one_epoch_and_no_loss(engine: Engine) -> None:
    result = engine(make_bank(), make_runs("vanilla"))[0]
    assert result.test_accuracy.shape == (1, 4)
    assert np.isnan(result.train_loss).tolist() == [True]
    assert kept(result).epoch == 0


@every_engine
def test_the_first_loss_is_the_mean_over_images(engine: Engine) -> None:
    """With a negligible rate the reported loss is that of the start, whatever the batch size."""
    bank = make_bank(views=1)
    assert bank.head is not None
    logits = bank.train_features[0] @ bank.head[0].T + bank.head[1]
    expected = torch.nn.functional.cross_entropy(logits, bank.train_labels).item()
    for batch_size in (50, 500):
        result = engine(bank, [lone_run({"kind": "ce", "lr": 1e-30}, batch_size=batch_size)])[0]
        assert float(result.train_loss[0]) == pytest.approx(expected, rel=1e-5)


@every_engine
def test_the_last_epoch_is_stepped_with_the_schedules_rate(engine: Engine) -> None:
    """One batch per epoch and no momentum: the sum of all steps is known."""
    bank = make_bank(views=1)
    assert bank.head is not None
    run = lone_run({"kind": "ce", "lr": 1e-4, "momentum": 0.0}, epochs=4, batch_size=500)
    bias = bank.head[1].clone().requires_grad_()
    logits = bank.train_features[0] @ bank.head[0].T + bias
    (gradient,) = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, bank.train_labels), bias)
    rates = sum(1e-4 * learning_rate_factor(epoch, 4) for epoch in range(4))
    moved = torch.from_numpy(kept(engine(bank, [run])[0]).state["bias"]) - bank.head[1]
    torch.testing.assert_close(moved, -rates * gradient, rtol=0.02, atol=1e-6)


@every_engine
def test_the_optimum_of_los_has_the_margin_of_the_formula(engine: Engine) -> None:
    """METHODS: on separable features every row's margin is log(1 + K(1-d)/d)."""
    classes, smooth_factor = 10, 0.9
    features, labels = torch.eye(classes)[None], torch.arange(classes)
    counts = torch.full((classes,), 50)
    bank = FeatureBank("eye", features, labels, None, EvalSet(features, labels), None, counts, counts)
    document: dict[str, object] = {"kind": "los", "smooth_factor": smooth_factor, "lr": 20.0, "init": "random"}
    state = kept(engine(bank, [lone_run(document, epochs=300, batch_size=classes)])[0]).state
    logits = state["weight"].T + state["bias"]
    gaps = (np.diag(logits)[:, None] - logits)[~np.eye(classes, dtype=bool)]
    np.testing.assert_allclose(gaps, np.log(1 + classes * (1 - smooth_factor) / smooth_factor), atol=1e-3)


# Precision


@every_engine
def test_tf32_is_accepted_on_a_cpu_and_has_no_effect(engine: Engine) -> None:
    bank, run = make_bank(), make_runs("los")[0]
    before = torch.backends.cuda.matmul.fp32_precision
    exact, fast = (
        engine(bank, [replace(run, training=TrainingSpec(epochs=3, matmul=precision))])[0]
        for precision in ("float32", "tf32")
    )
    assert kept(exact).state["weight"].tobytes() == kept(fast).state["weight"].tobytes()
    assert torch.backends.cuda.matmul.fp32_precision == before


def test_float32_is_the_default_precision() -> None:
    assert TrainingSpec().matmul == "float32"


# Memory


@every_engine
@every_kind
def test_the_bank_is_never_written_to(kind: str, engine: Engine) -> None:
    arrays = make_bank(test_images=100).to_arrays()
    for array in arrays.values():
        if isinstance(array, np.ndarray):
            array.setflags(write=False)
    before = {name: array.tobytes() for name, array in arrays.items() if isinstance(array, np.ndarray)}
    results = engine(FeatureBank.from_arrays(arrays), make_runs(kind, epochs=2), rule=EpochSelection("best"))
    assert {name: arrays[name].tobytes() for name in before} == before
    for result in results:
        for array in kept(result).state.values():
            assert not any(np.shares_memory(array, arrays[name]) for name in before)


@every_engine
@pytest.mark.parametrize("kind", TRAINED)
def test_results_do_not_share_memory(kind: str, engine: Engine) -> None:
    """Lanes may share a frozen classifier, which is never changed."""
    first, second = (kept(result) for result in engine(make_bank(), make_runs(kind, epochs=1, seeds=(0, 0))))
    frozen = {"weight", "bias"} if DEFAULTS[kind].head.needs_classifier else set()
    for name in first.state.keys() - frozen:
        assert not np.shares_memory(first.state[name], second.state[name]), name


@every_engine
def test_no_runs_no_results(engine: Engine) -> None:
    assert engine(make_bank(), []) == []


def test_trained_parameters_differ_between_learning_rates() -> None:
    run = make_runs("lws")[0]
    assert isinstance(run.method, TrainedMethod)
    one, other = agree(make_bank(), [run, with_method(run, lr=0.5)])
    assert trained(run, kept(one)).shape == (6,)
    assert distance(trained(run, kept(one)), trained(run, kept(other))) > 1e-2
