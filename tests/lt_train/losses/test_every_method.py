"""The loss of every trained method: by hand, by finite differences, gradients, limits, lanes, propositions.

The methods are those of the registry, with one variant per value of each option.
"""

import functools
import math
import typing

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lt_train.losses import CrossEntropy, Loss
from lt_train.methods.base import METHODS, TrainedMethod

TRAINED = [kind for kind, spec in METHODS.kinds().items() if spec.trains]
COUNTS = torch.tensor([16, 4, 1])


def variants(kind: str) -> list[dict[str, object]]:
    """The method with its defaults, and with every value of each of its options."""
    found: list[dict[str, object]] = [{"kind": kind}]
    for name, field in METHODS.kinds()[kind].model_fields.items():
        options = typing.get_args(field.annotation)
        if typing.get_origin(field.annotation) is typing.Literal and name not in ("kind", "init"):
            found += [{"kind": kind, name: option} for option in options if option != field.default]
    return found


EVERY = [
    pytest.param(document, id="-".join(map(str, document.values()))) for kind in TRAINED for document in variants(kind)
]
every_loss = pytest.mark.parametrize("document", EVERY)


def lanes_of(
    method: TrainedMethod, seeds: int = 0, lanes: int = 0, dtype: torch.dtype = torch.float64
) -> dict[str, Tensor]:
    """The lane values: `[]` as they are, or `[S, 1, T]` drawn between half and all of each value."""
    stream = torch.Generator().manual_seed(5)
    values = method.lane_values()
    if not lanes:
        return {name: torch.tensor(value, dtype=dtype) for name, value in values.items()}
    return {
        name: value * (0.5 + 0.5 * torch.rand(seeds, 1, lanes, generator=stream, dtype=dtype))
        for name, value in values.items()
    }


def loss_of(document: dict[str, object], counts: Tensor = COUNTS, **kwargs: typing.Any) -> Loss:
    method = METHODS.parse(document)
    assert isinstance(method, TrainedMethod)
    return method.loss(lanes_of(method, **kwargs), counts)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# By hand: probabilities (1/8, 1/4, 5/8), class sizes (16, 4, 1), one value for each label.

LOGITS = torch.tensor([[0.0, math.log(2), math.log(5)]] * 3, dtype=torch.float64)
CE = (math.log(8), math.log(4), math.log(8 / 5))
MEAN = sum(CE) / 3
BCE = (
    (math.log(8) + math.log(4 / 3) + math.log(8 / 3)) / 3,
    (math.log(4) + math.log(8 / 7) + math.log(8 / 3)) / 3,
    (math.log(8 / 5) + math.log(8 / 7) + math.log(4 / 3)) / 3,
)
HALF_SUM = 32768 / 65535 + 8 / 15 + 1
HALF = (32768 / 65535 * 3 / HALF_SUM, 8 / 15 * 3 / HALF_SUM, 3 / HALF_SUM)
"""Weights at beta 1/2: the effective numbers are 2 - 2^-15, 15/8 and 1."""
MIDDLE = 0.1 + 0.3 * math.sin(math.pi / 2 * 3 / 15)

BY_HAND: dict[str, tuple[dict[str, object], tuple[float, ...]]] = {
    "ce": ({}, CE),
    "cosine": ({}, CE),
    "lws": ({}, CE),
    "resample": ({}, CE),
    "crt": ({}, CE),
    "maxnorm": ({}, CE),
    "los": ({}, tuple(0.02 * own + 0.98 * MEAN for own in CE)),
    "las": ({}, tuple((1 - d) * own + d * MEAN for d, own in zip((0.4, MIDDLE, 0.1), CE, strict=True))),
    # Margins are 30 / 2 (n_min / n)^(1/4), of which the roots are 1/2, 1/sqrt 2 and 1.
    "ldam": (
        {},
        (
            math.log(1 + 7 * math.exp(7.5)),
            math.log(1 + 3 * math.exp(15 / math.sqrt(2))),
            math.log(1 + 3 / 5 * math.exp(15)),
        ),
    ),
    # Probabilities times sizes are 16, 8 and 5 in parts of 29.
    "balanced_softmax": ({}, (math.log(29 / 16), math.log(29 / 8), math.log(29 / 5))),
    "logit_adjust_loss": ({"tau": 0.5}, (math.log(13 / 4), math.log(13 / 4), math.log(13 / 5))),
    "focal": ({}, (49 / 64 * CE[0], 9 / 16 * CE[1], 9 / 64 * CE[2])),
    "class_balanced": ({"beta": 0.5}, tuple(w * own for w, own in zip(HALF, BCE, strict=True))),
    "ltwb": ({"beta": 0.5}, tuple(w * own for w, own in zip(HALF, BCE, strict=True))),
    # n^(-3/2) is 1/64, 1/8 and 1.
    "disalign": ({}, tuple(3 * w / 73 * own for w, own in zip((1, 8, 64), CE, strict=True))),
}


def test_every_trained_method_has_a_hand_computed_value() -> None:
    assert sorted(BY_HAND) == sorted(TRAINED)
    assert TRAINED, "the registry is empty"


@pytest.mark.parametrize("kind", TRAINED)
def test_by_hand(kind: str) -> None:
    document, expected = BY_HAND[kind]
    loss = loss_of({"kind": kind, **document})
    labels = torch.arange(3)
    assert loss(LOGITS, labels).tolist() == pytest.approx(list(expected), rel=1e-6)
    assert loss.with_gradient(LOGITS, labels)[0].tolist() == pytest.approx(list(expected), rel=1e-6)


# Gradients


@every_loss
def test_gradient_by_finite_differences(document: dict[str, object]) -> None:
    loss, labels = loss_of(document), torch.tensor([0, 1, 2, 0, 1, 2])
    assert torch.autograd.gradcheck(lambda logits: loss(logits, labels), (2 * draw(6, 3)).requires_grad_())


@every_loss
@pytest.mark.parametrize("spread", [0.0, 1.0, 12.0, 300.0])
@pytest.mark.parametrize("classes", [2, 3, 40])
def test_the_gradient_equals_autograd(document: dict[str, object], classes: int, spread: float) -> None:
    seeds, batch, lanes = 2, 7, 3
    counts = torch.arange(classes, 0, -1) ** 2
    logits = spread * draw(seeds, batch, lanes, classes)
    labels = torch.arange(seeds * batch).view(seeds, batch, 1) % classes
    scale = draw(seeds, 1, lanes, seed=1)
    loss, before = loss_of(document, counts, seeds=seeds, lanes=lanes), logits.clone()
    found, expected = loss.with_gradient(logits, labels, scale), Loss.with_gradient(loss, logits, labels, scale)
    assert torch.equal(logits, before), "the logits must not change"
    assert [tensor.shape for tensor in found] == [(seeds, batch, lanes), (seeds, batch, lanes, classes)]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


@every_loss
@pytest.mark.parametrize("spread", [1.0, 12.0])
def test_float32_is_close_to_float64(document: dict[str, object], spread: float) -> None:
    logits, labels = spread * draw(9, 2, 3), (torch.arange(9) % 3).unsqueeze(-1)
    double, single = loss_of(document), loss_of(document, dtype=torch.float32)
    expected = [tensor.float() for tensor in double.with_gradient(logits, labels)]
    for found in (single.with_gradient(logits.float(), labels), Loss.with_gradient(single, logits.float(), labels)):
        assert [tensor.dtype for tensor in found] == [torch.float32] * 2
        for tensor, exact in zip(found, expected, strict=True):
            torch.testing.assert_close(tensor, exact, rtol=2e-4, atol=2e-5)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_logits_leave_loss_and_gradient_finite(document: dict[str, object], dtype: torch.dtype) -> None:
    """The logits differ by up to 200, so that probabilities underflow; ties included."""
    corners = torch.cartesian_prod(*[torch.tensor([-100.0, 0.0, 100.0])] * 3).to(dtype)
    logits, labels = corners.repeat(3, 1), torch.arange(3).repeat_interleave(len(corners))
    loss = loss_of(document, dtype=dtype)
    by_hand, by_autograd = loss.with_gradient(logits, labels), Loss.with_gradient(loss, logits, labels)
    for tensor in (*by_hand, *by_autograd):
        assert bool(tensor.isfinite().all())
    assert bool((by_hand[0] >= 0).all())
    torch.testing.assert_close(by_hand, by_autograd, rtol=1e-5, atol=1e-5)


# Lanes


@every_loss
def test_a_lane_does_not_depend_on_other_lanes(document: dict[str, object]) -> None:
    seeds, batch, lanes = 2, 5, 3
    method = METHODS.parse(document)
    assert isinstance(method, TrainedMethod)
    values = lanes_of(method, seeds, lanes)
    logits, labels = 3 * draw(seeds, batch, lanes, 3), torch.tensor([[0, 1, 2, 2, 0], [1, 1, 0, 2, 0]])
    together = method.loss(values, COUNTS)
    losses, gradients = together.with_gradient(logits, labels[..., None], 1 / batch)
    torch.testing.assert_close(together(logits, labels[..., None]), losses)
    for s in range(seeds):
        for t in range(lanes):
            alone = method.loss({name: value[s, 0, t] for name, value in values.items()}, COUNTS)
            torch.testing.assert_close(losses[s, :, t], alone(logits[s, :, t], labels[s]))
            found = alone.with_gradient(logits[s, :, t], labels[s], 1 / batch)[1]
            torch.testing.assert_close(gradients[s, :, t], found)


@every_loss
def test_nan_stays_in_its_lane(document: dict[str, object]) -> None:
    logits, labels = draw(1, 4, 3, 3), torch.tensor([[0, 1, 2, 0]])[..., None]
    loss = loss_of(document, seeds=1, lanes=3)
    finite = loss.with_gradient(logits, labels)
    logits[:, :, 1] = torch.nan
    broken = loss.with_gradient(logits, labels)
    for before, after in zip(finite, broken, strict=True):
        assert not bool(after[:, :, 1].isfinite().any())
        assert torch.equal(before[:, :, [0, 2]], after[:, :, [0, 2]])


# Limits

TO_CROSS_ENTROPY: list[dict[str, object]] = [
    {"kind": "los", "smooth_factor": 0.0},
    {"kind": "las", "smooth_head": 0.0, "smooth_tail": 0.0},
    {"kind": "ldam", "max_margin": 0.0},
    {"kind": "logit_adjust_loss", "tau": 0.0},
    {"kind": "focal", "gamma": 0.0},
    {"kind": "class_balanced", "mode": "ce", "beta": 0.0},
    {"kind": "class_balanced", "mode": "focal", "beta": 0.0, "gamma": 0.0},
    {"kind": "ltwb", "mode": "ce", "beta": 0.0},
    {"kind": "disalign", "rho": 0.0},
]


@pytest.mark.parametrize("document", TO_CROSS_ENTROPY, ids=lambda document: "-".join(map(str, document.values())))
def test_the_limit_is_cross_entropy(document: dict[str, object]) -> None:
    logits, labels = 3 * draw(30, 3), torch.arange(30) % 3
    loss, plain = loss_of(document), CrossEntropy()
    torch.testing.assert_close(loss(logits, labels), plain(logits, labels))
    torch.testing.assert_close(loss.with_gradient(logits, labels), plain.with_gradient(logits, labels))


@pytest.mark.parametrize("kind", ["balanced_softmax", "logit_adjust_loss", "disalign", "class_balanced", "ltwb"])
def test_classes_of_one_size_need_no_correction(kind: str) -> None:
    logits, labels, equal = 3 * draw(30, 3), torch.arange(30) % 3, torch.full((3,), 7)
    document: dict[str, object] = {"kind": kind} | ({"mode": "ce"} if kind in ("class_balanced", "ltwb") else {})
    torch.testing.assert_close(loss_of(document, equal)(logits, labels), CrossEntropy()(logits, labels))


def test_balanced_softmax_is_logit_adjustment_with_tau_1() -> None:
    logits, labels = 3 * draw(30, 3), torch.arange(30) % 3
    balanced, adjusted = loss_of({"kind": "balanced_softmax"}), loss_of({"kind": "logit_adjust_loss"})
    torch.testing.assert_close(balanced(logits, labels), adjusted(logits, labels), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("document", [{"smooth_factor": 1 - 1e-7}, {"smooth_head": 1 - 1e-7, "smooth_tail": 1 - 1e-7}])
def test_smooth_to_1_is_cross_entropy_against_the_uniform_distribution(document: dict[str, object]) -> None:
    logits = 3 * draw(1, 3).expand(3, 3)
    kind = "los" if "smooth_factor" in document else "las"
    uniform = -logits.log_softmax(dim=-1).mean(dim=-1)
    torch.testing.assert_close(
        loss_of({"kind": kind, **document})(logits, torch.arange(3)), uniform, rtol=1e-6, atol=1e-6
    )


@functools.cache
def trained_margins(classes: int, smooth_factor: float) -> Tensor:
    """A linear head on features that are linearly separable, trained with `los` to convergence."""
    features = draw(classes, classes + 8)
    weight, bias = torch.zeros(classes, classes + 8, dtype=torch.float64), torch.zeros(classes, dtype=torch.float64)
    parameters = [weight.requires_grad_(), bias.requires_grad_()]
    loss = loss_of({"kind": "los", "smooth_factor": smooth_factor}, torch.ones(classes, dtype=torch.int64))
    optimizer = torch.optim.LBFGS(parameters, max_iter=600, tolerance_grad=1e-11, line_search_fn="strong_wolfe")

    def evaluate() -> Tensor:
        optimizer.zero_grad()
        value = loss(torch.nn.functional.linear(features, weight, bias), torch.arange(classes)).sum()
        value.backward()
        return value

    optimizer.step(evaluate)
    logits = torch.nn.functional.linear(features, weight, bias).detach()
    return (logits.diagonal().unsqueeze(1) - logits)[~torch.eye(classes, dtype=torch.bool)]


@pytest.mark.parametrize(
    ("classes", "smooth_factor", "margin"), [(100, 0.98, 1.112), (10, 0.5, 2.398), (2, 0.9, 0.2007)]
)
def test_los_reaches_the_margin_of_the_formula(classes: int, smooth_factor: float, margin: float) -> None:
    assert math.log(1 + classes * (1 - smooth_factor) / smooth_factor) == pytest.approx(margin, abs=5e-4)
    margins = trained_margins(classes, smooth_factor)
    torch.testing.assert_close(margins, torch.full_like(margins, margin), atol=1e-3, rtol=0)


# The propositions of the paper, for every loss on softmax probabilities


SOFTMAX = [param for param in EVERY if param.values[0].get("mode") != "sigmoid"]  # type: ignore[attr-defined]
seeds = st.integers(0, 10_000)


@pytest.mark.parametrize("document", SOFTMAX)
@settings(max_examples=10, deadline=None)
@given(seed=seeds, size=st.floats(-50, 50))
def test_proposition_2_rows_of_arbitrary_length(document: dict[str, object], seed: int, size: float) -> None:
    """Adding one vector to every row (Eq. 4, 5) changes the norms, but neither probabilities nor loss."""
    features, labels = draw(9, 5, seed=seed), torch.arange(9) % 3
    weight, bias, delta = draw(3, 5, seed=seed + 1), draw(3, seed=seed + 2), size * draw(5, seed=seed + 3)
    loss = loss_of(document)
    before, after = (torch.nn.functional.linear(features, w, bias) for w in (weight, weight + delta))
    torch.testing.assert_close(loss(after, labels), loss(before, labels), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(after.softmax(dim=-1), before.softmax(dim=-1), rtol=1e-9, atol=1e-11)


def test_a_vector_added_to_one_row_does_change_the_loss() -> None:
    features, labels, weight = draw(9, 5), torch.arange(9) % 3, draw(3, 5, seed=1)
    moved = weight.clone()
    moved[0] += draw(5, seed=2)
    assert not torch.allclose(CrossEntropy()(features @ weight.T, labels), CrossEntropy()(features @ moved.T, labels))


CONVEX = [param for param in SOFTMAX if isinstance(loss_of(param.values[0]), CrossEntropy)]  # type: ignore[arg-type]


@pytest.mark.parametrize("document", CONVEX)
@settings(max_examples=10, deadline=None)
@given(seed=seeds)
def test_proposition_1_the_loss_is_convex_in_the_bias(document: dict[str, object], seed: int) -> None:
    """Its Hessian is a weighted sum of `diag(s) - s s^T` (Eq. 3), which has no eigenvalue below 0."""
    fixed, labels, bias = 3 * draw(9, 3, seed=seed), torch.arange(9) % 3, 3 * draw(3, seed=seed + 1)
    loss = loss_of(document)
    hessian = torch.autograd.functional.hessian(lambda bias: loss(fixed + bias, labels).mean(), bias)
    assert float(torch.linalg.eigvalsh(hessian).min()) > -1e-9
    other = 3 * draw(3, seed=seed + 2)
    ends = [loss(fixed + end, labels).mean() for end in (bias, other)]
    assert float(loss(fixed + (bias + other) / 2, labels).mean()) <= float(sum(ends)) / 2 + 1e-9


@settings(max_examples=10, deadline=None)
@given(seed=seeds, smooth_factor=st.floats(0.0, 0.99))
def test_the_hessian_is_that_of_equation_3(seed: int, smooth_factor: float) -> None:
    fixed, labels, bias = 3 * draw(9, 3, seed=seed), torch.arange(9) % 3, draw(3, seed=seed + 1)
    loss = CrossEntropy(smooth_factor)
    hessian = torch.autograd.functional.hessian(lambda bias: loss(fixed + bias, labels).mean(), bias)
    s = (fixed + bias).softmax(dim=-1)
    torch.testing.assert_close(hessian, (torch.diag_embed(s) - s.unsqueeze(-1) * s.unsqueeze(-2)).mean(dim=0))


@settings(max_examples=10, deadline=None)
@given(seed=seeds, smooth_factor=st.floats(0.1, 0.99))
def test_no_bias_is_better_than_the_converged_one(seed: int, smooth_factor: float) -> None:
    fixed, labels = draw(9, 3, seed=seed), torch.arange(9) % 3
    loss, bias = CrossEntropy(smooth_factor), torch.zeros(3, dtype=torch.float64)

    def mean(bias: Tensor) -> Tensor:
        return loss(fixed + bias, labels).mean()

    for _ in range(20):  # Newton's steps; the Hessian is singular along a shift of all classes
        slopes = torch.autograd.functional.jacobian(mean, bias)
        bias = bias - torch.linalg.pinv(torch.autograd.functional.hessian(mean, bias)) @ slopes
    assert float(torch.autograd.functional.jacobian(mean, bias).abs().max()) < 1e-10
    for other in 3 * draw(50, 3, seed=seed + 1):
        assert float(mean(other)) >= float(mean(bias)) - 1e-12
