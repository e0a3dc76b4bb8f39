"""The fused engine agrees with the reference for every valid method x head x sampler.

Parametrised over the registry, so that a new kind is tested in every valid composition. Values, gradients, final
weights and predictions are compared to the tolerances of `support.engines.assert_same`.
"""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from support.banks import make_bank
from support.compositions import ALLOWED, DEFAULTS, OPTIONS, REFUSED, TRAINED, searchable, variants
from support.engines import agree, distance, kept, make_runs, predict

from lt_train.core.fields import part_of
from lt_train.methods.base import METHODS, MethodSpec, TrainedMethod
from lt_train.methods.heads.base import HEADS
from lt_train.methods.samplers import SAMPLERS
from lt_train.retrain.base import EpochSelection

every_composition = pytest.mark.parametrize("method", [*ALLOWED.values(), *OPTIONS.values()], ids=[*ALLOWED, *OPTIONS])
every_trained_composition = pytest.mark.parametrize(
    "method",
    [method for method in (*ALLOWED.values(), *OPTIONS.values()) if method.trains],
    ids=[name for name, method in {**ALLOWED, **OPTIONS}.items() if method.trains],
)
BANK = make_bank((40, 20, 9, 4, 1), dim=6, views=2, val_per_class=4)
SEEDS = (0, 7, 0, 7, 5)
"""A stack of two seeds with two lanes each and, in a stack of its own, one lane of another seed."""


# Compositions


def test_every_composition_is_allowed_or_refused_with_a_reason() -> None:
    product = {
        f"{kind}-head:{head}-sampler:{sampler}"
        for kind in METHODS.kinds()
        for head in HEADS.kinds()
        for sampler in SAMPLERS.kinds()
    }
    allowed = product & ALLOWED.keys()
    assert allowed | REFUSED.keys() == product
    assert not allowed & REFUSED.keys()
    assert all(reason.strip() for reason in REFUSED.values())
    for name in DEFAULTS:
        assert DEFAULTS[name] in ALLOWED.values(), f"{name} is not compared"


def test_many_losses_go_with_every_head_and_sampler() -> None:
    """Guards the suite against comparing only a few compositions."""
    parts = len(HEADS.kinds()) * len(SAMPLERS.kinds())
    everywhere = [kind for kind in TRAINED if sum(name.startswith(f"{kind}-") for name in ALLOWED) == parts]
    assert len(everywhere) >= len(TRAINED) / 3
    assert {method.head.kind for method in ALLOWED.values()} == HEADS.kinds().keys()
    samplers = {method.sampler.kind for method in ALLOWED.values() if isinstance(method, TrainedMethod)}
    assert samplers == SAMPLERS.kinds().keys()


@every_composition
def test_the_lanes_that_are_compared_differ_in_every_value(method: MethodSpec) -> None:
    settings = variants(method, len(SEEDS))
    assert all(setting.static_fields() == method.static_fields() for setting in settings)
    for name in method.lane_values():
        differ = len({setting.lane_values()[name] for setting in settings})
        assert differ == (len(SEEDS) if name in searchable(method) else 1), name
    # Other lane values that cannot be searched must be listed here with a reason.
    reasons = {"gamma": "mode focal only"}
    assert method.lane_values().keys() - searchable(method) <= reasons.keys()


# Values, final weights, predictions


@every_composition
def test_fused_is_the_reference(method: MethodSpec) -> None:
    runs = make_runs(method, epochs=2, batch_size=32, seeds=SEEDS)
    results = agree(BANK, runs, EpochSelection("last"))
    logits = [predict(BANK, run, kept(result)) for run, result in zip(runs, results, strict=True)]
    for one, other in combinations(logits if method.lane_values() else [], 2):
        assert distance(one, other) > 1e-4, "lanes with different hyperparameters must differ"


@every_trained_composition
def test_fused_is_the_reference_in_the_papers_setting(method: TrainedMethod) -> None:
    """A shared momentum, folded into the matrix product, no decay, and the best epoch selected."""
    runs = make_runs(method, epochs=2, batch_size=32, seeds=SEEDS, alike=("momentum", "weight_decay"))
    agree(BANK, runs, EpochSelection("best", "test"))


# Gradients


@every_trained_composition
def test_gradients_agree_with_autograd(method: TrainedMethod) -> None:
    """In double precision, on one batch: a stack accumulates momentum, gradient and decay of each run."""
    seeds, lanes, keep, decay = 2, 3, 0.5, torch.tensor([[[0.0, 0.1, 0.2]], [[0.3, 0.0, 0.4]]], dtype=torch.float64)
    settings = np.array(variants(method, seeds * lanes), dtype=object).reshape(seeds, lanes)
    values = [[setting.lane_values() for setting in row] for row in settings]
    by_lane = {
        name: torch.tensor([[[each[name] for each in row]] for row in values], dtype=torch.float64)
        for name in method.lane_values()
    }
    assert BANK.head is not None
    stream = torch.Generator().manual_seed(1)
    start = BANK.head[0].double(), BANK.head[1].double()

    modules = [[setting.head.module(start).double() for setting in row] for row in settings]
    for module in (module for row in modules for module in row):
        for parameter in module.parameters():
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=stream, dtype=torch.float64)
    stacked = method.head.stack(modules, part_of(by_lane, "head"), "cpu")
    chosen_SB = torch.tensor([[0, 41, 73, 72, 65, 5, 50], [73, 3, 61, 12, 70, 69, 8]])
    features_SBD = BANK.train_features[0].double()[chosen_SB]
    labels_SB = BANK.train_labels[chosen_SB]

    inputs = method.head.inputs(features_SBD, start)
    logits_SBTK = stacked.logits(inputs)
    loss_SBT, grad_SBTK = method.loss(by_lane, BANK.class_counts).with_gradient(logits_SBTK, labels_SB.unsqueeze(-1))
    into = {
        name: torch.randn(parameter.shape, generator=stream, dtype=torch.float64)
        for name, parameter in stacked.parameters.items()
    }
    before = {name: tensor.clone() for name, tensor in into.items()}
    stacked.accumulate(into, inputs, logits_SBTK, grad_SBTK, keep, decay.unsqueeze(-1))
    gradient = {
        name: tensor - keep * before[name] - decay.unsqueeze(-1) * stacked.parameters[name]
        for name, tensor in into.items()
    }
    stacked.parameters = gradient  # split by run like the weights
    for (s, t), setting in np.ndenumerate(settings):
        module = modules[s][t]
        own = {name: value[s, 0, t] for name, value in by_lane.items()}
        logits = module(features_SBD[s])
        torch.testing.assert_close(logits_SBTK[s, :, t], logits, rtol=1e-9, atol=1e-9)
        losses = setting.loss(own, BANK.class_counts)(logits, labels_SB[s])
        torch.testing.assert_close(loss_SBT[s, :, t], losses, rtol=1e-6, atol=1e-9)
        losses.sum().backward()
        found = stacked.state(s, t)
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None
            torch.testing.assert_close(found[name], parameter.grad, rtol=1e-5, atol=1e-8, msg=f"{name} of {s}, {t}")


# Mixed packs


def test_all_methods_in_one_call() -> None:
    runs = [
        replace(run, training=run.training.model_copy(update={"epochs": 1 + number % 3, "batch_size": 40 + number % 2}))
        for method in DEFAULTS.values()
        for number, run in enumerate(make_runs(method, seeds=SEEDS[:3]))
    ]
    order = np.random.default_rng(0).permutation(len(runs))
    agree(BANK, [runs[index] for index in order], EpochSelection("best"))
