"""Methods from outside that use noise, a schedule, the other images of a batch, or changed features.

The fused engine must agree with the reference on them, whatever shares a stack. No built-in method uses these hooks.
"""

from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
import pytest
import torch
from pydantic import Field
from support.banks import make_bank
from support.engines import agree, assert_same, distance, kept, predict, stack_bytes
from torch import Tensor

from lt_train.core.errors import BankError
from lt_train.core.fields import BATCHED
from lt_train.core.seeding import Step
from lt_train.features.bank import EvalSet
from lt_train.losses import CrossEntropy, Loss, column, log_prior
from lt_train.methods.base import Augmentation, MethodSpec, TrainedMethod, TrainingSpec
from lt_train.methods.heads.base import HEADS
from lt_train.methods.post_hoc import FittedPostHoc
from lt_train.methods.samplers import SAMPLERS
from lt_train.retrain import fused, reference
from lt_train.retrain.base import EpochSelection, Halving, Run
from lt_train.testing import check_method

BANK = make_bank((40, 20, 9, 4, 1), dim=6, views=2, val_per_class=4)
SEEDS = (0, 7, 0, 7, 5, 0)
RULE = EpochSelection("best", "test")


class Outside(TrainedMethod):
    """Base of the methods."""

    strength: Annotated[float, BATCHED, Field(ge=0, description="strength of the added part")] = 0.5


class Noisy(Outside):
    """Normal noise on the logits, from the second epoch on."""

    kind: Literal["noisy"] = "noisy"

    def loss(self, lanes: Mapping[str, Tensor], class_counts: Tensor) -> Loss:
        return NoisyLoss(lanes["strength"], len(class_counts))


class NoisyLoss(CrossEntropy):
    """See `Noisy`."""

    def __init__(self, strength: Tensor, classes: int) -> None:
        super().__init__()
        self.strength, self.classes = strength, classes

    def at(self, step: Step) -> Loss:
        if step.epoch == 0:
            return self
        noise = step.draw("logits", lambda stream, images: torch.randn(images, self.classes, generator=stream))
        return CrossEntropy(shift=column(self.strength) * noise)


class Spread(Outside):
    """Cross entropy, and the variance of each logit over the batch."""

    kind: Literal["spread"] = "spread"

    def loss(self, lanes: Mapping[str, Tensor], class_counts: Tensor) -> Loss:
        return SpreadLoss(lanes["strength"])


class SpreadLoss(Loss):
    """See `Spread`."""

    over_batch: ClassVar[bool] = True

    def __init__(self, strength: Tensor) -> None:
        self.strength = strength

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        variance = logits.var(dim=1, correction=0, keepdim=True).mean(dim=-1)
        return CrossEntropy()(logits, labels) + self.strength * variance


class Mixup(Outside):
    """Mixes features and labels of a batch: all three hooks in one method."""

    kind: Literal["mixup"] = "mixup"

    def augmentation(self, class_counts: Tensor) -> Augmentation:
        def mixed(features: Tensor, labels: Tensor, step: Step) -> Tensor:
            share = step.draw("share", torch_rand).unsqueeze(-1)
            return share * features + (1 - share) * features[step.draw("partner", torch_permutation)]

        return mixed

    def loss(self, lanes: Mapping[str, Tensor], class_counts: Tensor) -> Loss:
        return MixupLoss(lanes["strength"])


class MixupLoss(Loss):
    """See `Mixup`."""

    over_batch: ClassVar[bool] = True

    def __init__(self, smooth: Tensor, step: Step | None = None) -> None:
        self.smooth, self.step = smooth, step

    def at(self, step: Step) -> Loss:
        return MixupLoss(self.smooth, step)

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        assert self.step is not None
        share, partner = self.step.draw("share", torch_rand), self.step.draw("partner", torch_permutation)
        loss = CrossEntropy(column(self.smooth) / 2)
        return share * loss(logits, labels) + (1 - share) * loss(logits, labels.gather(1, partner))


class Hard(Outside):
    """Class weights that grow with the error of the stage-1 head on the validation set."""

    prepares_on_val: ClassVar[bool] = True

    kind: Literal["hard"] = "hard"
    weights: tuple[float, ...] = Field(default=(), description="set from the validation set")

    def prepared(self, val: EvalSet, start: tuple[Tensor, Tensor] | None) -> Self:
        assert start is not None
        logits = val.features.mean(dim=0) @ start[0].T + start[1]
        wrong = (logits.argmax(dim=-1) != val.labels).float()
        errors = torch.bincount(val.labels, wrong) / torch.bincount(val.labels)
        return self.model_copy(update={"weights": tuple(errors.tolist())})

    def loss(self, lanes: Mapping[str, Tensor], class_counts: Tensor) -> Loss:
        return CrossEntropy(weight=1 + lanes["strength"].unsqueeze(-1) * torch.tensor(self.weights))


class Start(MethodSpec):
    """The stage-1 head."""

    trains: ClassVar[bool] = False

    kind: Literal["start"] = "start"


class Fitted(FittedPostHoc):
    """`z / std - s log p` with the standard deviation of the true logits of the validation set."""

    kind: Literal["fitted"] = "fitted"
    share: Annotated[float, BATCHED, Field(description="s")] = 0.5

    def fit(
        self, lanes: Mapping[str, Tensor], class_counts: Tensor, logits: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        offset = -lanes["share"] * log_prior(None, class_counts)
        return logits.gather(1, labels[:, None]).std().reciprocal().expand(len(offset)), offset


def torch_rand(stream: torch.Generator, images: int) -> Tensor:
    return torch.rand(images, generator=stream)


def torch_permutation(stream: torch.Generator, images: int) -> Tensor:
    return torch.randperm(images, generator=stream)


METHODS = (Noisy, Spread, Mixup, Hard)
every_method = pytest.mark.parametrize("method", METHODS, ids=[method.kind_name() for method in METHODS])


def runs_of(method: type[Outside], head: str = "linear", sampler: str = "instance", epochs: int = 3) -> list[Run]:
    """Six runs of three seeds that differ in every lane value."""
    settings = [
        method.model_validate_json(
            f'{{"head": {{"kind": "{head}"}}, "sampler": {{"kind": "{sampler}"}}, "lr": {0.02 / (1 + lane)}, '
            f'"momentum": {0.9 - 0.1 * lane}, "weight_decay": {0.02 * lane}, "strength": {0.9 - 0.1 * lane}}}'
        )
        for lane in range(len(SEEDS))
    ]
    training = TrainingSpec(epochs=epochs, batch_size=32)
    return [Run(setting, training, seed) for setting, seed in zip(settings, SEEDS, strict=True)]


@every_method
def test_it_conforms(method: type[Outside]) -> None:
    check_method(method)


@every_method
@pytest.mark.parametrize(("head", "sampler"), [*product(HEADS.kinds(), SAMPLERS.kinds())])
def test_fused_is_the_reference_on_every_head_and_sampler(method: type[Outside], head: str, sampler: str) -> None:
    agree(BANK, runs_of(method, head, sampler), RULE)


@every_method
@pytest.mark.parametrize("batch_size", [13, 74, 1000])
def test_fused_is_the_reference_for_every_batch_size(method: type[Outside], batch_size: int) -> None:
    """N = 74: a last batch of 9, one batch, a batch size above N."""
    training = TrainingSpec(epochs=2, batch_size=batch_size)
    agree(BANK, [replace(run, training=training) for run in runs_of(method)], RULE)


@every_method
@pytest.mark.parametrize("lanes", [1, 2])
def test_a_run_does_not_depend_on_what_shares_its_stack(
    method: type[Outside], lanes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = runs_of(method)
    together = fused.fit(BANK, runs, rule=RULE)
    monkeypatch.setattr(fused, "STACK_BYTES", stack_bytes(BANK, runs[0], lanes))
    for run, one, other in zip(runs, fused.fit(BANK, runs, rule=RULE), together, strict=True):
        assert_same(BANK, run, one, other, 1e-5, RULE)


@every_method
def test_survivors_of_halving_continue_their_streams(method: type[Outside]) -> None:
    runs = [replace(run, seed=seed) for run in runs_of(method)[:4] for seed in (0, 3)]
    agree(BANK, runs, RULE, Halving((1, 2)))


@every_method
def test_the_hooks_have_an_effect(method: type[Outside]) -> None:
    """Guards the tests above: both engines might omit a hook."""
    (run,) = runs_of(method)[:1]
    without = replace(run, method=run.method.model_copy(update={"strength": 0.0}))
    logits = [predict(BANK, each, kept(fused.fit(BANK, [each])[0])) for each in (run, without)]
    assert distance(*logits) > 1e-3


def test_features_are_changed() -> None:
    """Of `Mixup`, `strength` is not the whole effect."""
    (run,) = runs_of(Mixup)[:1]
    plain = replace(run, method=Noisy(**{**dict(run.method), "kind": "noisy", "strength": 0.0}))
    logits = [predict(BANK, each, kept(fused.fit(BANK, [each])[0])) for each in (run, plain)]
    assert distance(*logits) > 1e-3


def test_noise_differs_between_seeds_epochs_and_steps() -> None:
    seen: list[np.ndarray] = []

    class Watched(Noisy):
        kind: Literal["noisy"] = "noisy"

        def augmentation(self, class_counts: Tensor) -> Augmentation:
            def watched(features: Tensor, labels: Tensor, step: Step) -> Tensor:
                seen.append(step.draw("watched", torch_rand)[:9].numpy())
                return features

            return watched

    fused.fit(BANK, [replace(run, method=Watched()) for run in runs_of(Noisy, epochs=2)[:4]])
    assert len(seen) == 2 * 2 * 3, "two seeds, two epochs, three steps"
    assert len({noise.tobytes() for noise in seen}) == len(seen)


# The validation set


def with_fitted(run: Run, share: float) -> Run:
    return replace(run, method=run.method.model_copy(update={"post_hoc": Fitted(share=share)}))


@pytest.mark.parametrize("head", HEADS.kinds())
@pytest.mark.parametrize("halving", [None, Halving((1, 2))], ids=["whole", "halved"])
@pytest.mark.parametrize("rule", [RULE, EpochSelection("best", "val"), EpochSelection()], ids=str)
def test_a_fitted_adjustment_is_the_same_in_both_engines(
    head: str, halving: Halving | None, rule: EpochSelection
) -> None:
    runs = [with_fitted(run, 0.1 + 0.2 * lane) for lane, run in enumerate(runs_of(Noisy, head)) if lane < 5]
    runs = [replace(run, seed=seed) for run in runs for seed in (0, 3)]
    agree(BANK, runs, rule, halving)


def test_a_fitted_adjustment_of_the_stage_1_head() -> None:
    """One head for all lanes, whose adjustments differ."""
    runs = [with_fitted(Run(Start(), TrainingSpec(), 0), share) for share in (0.0, 0.3, 0.9)]
    results = agree(BANK, runs)
    assert len({kept(result).state["offset"].tobytes() for result in results}) == 3


def test_the_adjustment_is_fitted_to_the_validation_set() -> None:
    assert BANK.head is not None
    assert BANK.val is not None
    true = (BANK.val.features[0] @ BANK.head[0].T + BANK.head[1])[range(20), BANK.val.labels]
    (result,) = agree(BANK, [with_fitted(Run(Start(), TrainingSpec(), 0), 0.0)])
    np.testing.assert_allclose(kept(result).state["scale"], 1 / float(true.std()), rtol=1e-4)


def test_methods_that_use_val_need_it() -> None:
    without = make_bank((40, 20, 9, 4, 1), dim=6, val_per_class=0)
    (hard, *_), (plain, *_) = runs_of(Hard), runs_of(Noisy)
    assert hard.method.uses_val
    assert with_fitted(plain, 0.1).method.uses_val
    assert not plain.method.uses_val
    for fit, run in product((fused.fit, reference.fit), (hard, with_fitted(plain, 0.1))):
        with pytest.raises(BankError, match=r"(hard|post_hoc fitted) sets values from the validation set"):
            fit(without, [run])
