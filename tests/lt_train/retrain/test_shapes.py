"""Both engines on every shape of bank and batch, for every kind of method."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.banks import make_bank
from support.compositions import DEFAULTS, TRAINED
from support.engines import Engine, agree, distance, every_engine, everything, kept, make_runs, predict, with_method

from lt_train.features.bank import EvalSet, FeatureBank
from lt_train.methods.base import METHODS
from lt_train.methods.heads.base import HEADS
from lt_train.retrain import fused, stack
from lt_train.retrain.base import EpochSelection

every_kind = pytest.mark.parametrize("kind", DEFAULTS)
SEEDS = (0, 7, 0, 7, 5)


def empty(features: int) -> EvalSet:
    return EvalSet(torch.empty(1, 0, features), torch.empty(0, dtype=torch.int64))


SHAPES: dict[str, Callable[[], FeatureBank]] = {
    "one view": lambda: make_bank(views=1),
    "more views than epochs": lambda: make_bank(views=5),
    "one test view": lambda: make_bank(test_views=1),
    "no val": lambda: make_bank(val_per_class=0),
    "two views of val": lambda: replace(make_bank(), val=make_bank(seed=3, test_images=60).test),
    "an empty val": lambda: replace(make_bank(), val=empty(8)),
    "two classes": lambda: make_bank((110, 3), dim=5),
    "a class with one image, of two": lambda: make_bank((25, 1), dim=5),
    "one image per class": lambda: make_bank((1, 1, 1, 1)),
    "two features": lambda: make_bank(dim=2),
    "no few class": lambda: make_bank((120, 30)),
    "a class without test images": lambda: make_bank(test_images=5),
    "one test image": lambda: make_bank(test_images=1),
}


@every_kind
@pytest.mark.parametrize("shape", SHAPES)
def test_fused_is_the_reference_on_every_shape_of_bank(kind: str, shape: str) -> None:
    agree(SHAPES[shape](), make_runs(kind, epochs=2, seeds=SEEDS[:4]), EpochSelection("best", "test"))


@every_kind
@pytest.mark.parametrize("batch_size", [13, 117, 234, 1000])
def test_fused_is_the_reference_for_every_batch_size(kind: str, batch_size: int) -> None:
    """N = 234: a short last batch, two equal batches, one batch, a batch size above N."""
    agree(make_bank(), make_runs(kind, epochs=2, batch_size=batch_size, seeds=SEEDS[:4]))


def test_fused_is_the_reference_for_batches_of_one() -> None:
    agree(make_bank((12, 6, 1)), make_runs("los", epochs=2, batch_size=1, seeds=SEEDS))


@pytest.mark.parametrize("kind", ["los", "lws", "disalign", "maxnorm"])
def test_fused_is_the_reference_on_a_single_feature(kind: str) -> None:
    """Without methods that use directions only: a single feature has two directions, so classes tie."""
    agree(make_bank(dim=1), make_runs(kind, seeds=SEEDS), EpochSelection("best", "test"))


@pytest.mark.parametrize("head", HEADS.kinds())
def test_logits_are_averaged_over_test_views_not_features(head: str) -> None:
    bank, method = make_bank(test_views=3), METHODS.parse({"kind": "ce", "head": head})
    runs = [with_method(run, lr=0.5) for run in make_runs(method, epochs=2, seeds=SEEDS)]
    labels = bank.test.labels.numpy()
    for run, result in zip(runs, agree(bank, runs), strict=True):
        logits = predict(bank, run, kept(result))
        own = [logits[labels == k, k].mean() - logits[labels != k, k].mean() for k in range(6)]
        np.testing.assert_allclose(kept(result).loma, own, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("head", ["cosine", "disalign", "mlp"])
def test_averaging_features_over_views_changes_the_logits_of_some_heads(head: str) -> None:
    """Guards the test above."""
    bank, method = make_bank(test_views=3), METHODS.parse({"kind": "ce", "head": head})
    run = with_method(make_runs(method, epochs=5)[0], lr=2.0)
    averaged = replace(bank, test=EvalSet(bank.test.features.mean(dim=0, keepdim=True), bank.test.labels))
    found, other = kept(fused.fit(bank, [run])[0]), kept(fused.fit(averaged, [run])[0])
    assert distance(found.loma, other.loma) > 1e-3
    assert method.head.affine == (head == "cosine"), "cosine logits are affine in directions, which are its inputs"


@every_engine
def test_epochs_cycle_through_the_views(engine: Engine) -> None:
    bank, run = make_bank(views=3), make_runs("ce", epochs=4)[0]
    turned = replace(bank, train_features=bank.train_features[torch.tensor([0, 1, 2, 0])])
    assert everything(engine(bank, [run])[0]) == everything(engine(turned, [run])[0])
    wrong = replace(bank, train_features=bank.train_features[torch.tensor([0, 1, 2, 1])])
    assert everything(engine(bank, [run])[0]) != everything(engine(wrong, [run])[0])


FRESH = [kind for kind, method in TRAINED.items() if not method.head.needs_classifier and method.constraint is None]


@pytest.mark.parametrize("kind", FRESH)
def test_a_random_start_needs_no_stage_1_head(kind: str) -> None:
    """It is the same with a stage-1 head: it is drawn from the seed alone."""
    method = DEFAULTS[kind]
    runs = make_runs(method.model_copy(update={"init": "random"}), epochs=2, seeds=SEEDS)
    without = agree(make_bank(head=False), runs)
    for run, one, other in zip(runs, without, agree(make_bank(), runs), strict=True):
        assert everything(one) == everything(other), run.seed


@pytest.mark.parametrize("logit_bytes", [1, 5000])
@pytest.mark.parametrize("kind", ["los", "disalign", "tau_norm"])
def test_evaluating_in_parts_gives_the_same(kind: str, logit_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One image at a time, or a few, with several views."""
    bank, runs = make_bank(test_images=100), make_runs(kind)
    expected = fused.fit(bank, runs)
    monkeypatch.setattr(stack, "LOGIT_BYTES", {"cpu": logit_bytes})
    for found, wanted in zip(fused.fit(bank, runs), expected, strict=True):
        np.testing.assert_array_equal(found.test_accuracy, wanted.test_accuracy)
        np.testing.assert_allclose(kept(found).loma, kept(wanted).loma, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(kept(found).class_accuracy, kept(wanted).class_accuracy)
