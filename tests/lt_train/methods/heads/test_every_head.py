"""Every head, as a plain module and stacked: equal logits, gradients of autograd, states that round-trip.

The heads are those of the registry, with one variant per value of each option, and one from outside with the default
stack.
"""

import copy
import typing
from collections.abc import Mapping

import pytest
import torch
from pydantic import Field
from torch import Tensor, nn

from lt_train.core.fields import BATCHED
from lt_train.methods.heads.base import HEADS, Classifier, HeadSpec, StackedHead

SEEDS, BATCH, LANES, CLASSES, DIM = 2, 5, 3, 4, 6


class Prototypes(HeadSpec):
    """`z_k = s g W_k f - s |f - c_k|^2` with buffers that differ by lane (s) and that do not (W), and a scalar g."""

    kind: typing.Literal["prototypes"] = "prototypes"
    scale: typing.Annotated[float, BATCHED, Field(gt=0, description="s")] = 2.0

    def module(self, start: Classifier, seed: int = 0) -> nn.Module:
        return PrototypesModule(start[0], self.scale)

    def num_parameters(self, num_classes: int, feature_dim: int) -> int:
        return num_classes * feature_dim + 1

    def state_shape(self, state: Mapping[str, Tensor]) -> tuple[int, int]:
        classes, dim = state["centers"].shape
        return classes, dim


class PrototypesModule(nn.Module):
    """See `Prototypes`."""

    scale: Tensor
    frozen: Tensor

    def __init__(self, weight: Tensor, scale: float) -> None:
        super().__init__()
        self.centers, self.gate = nn.Parameter(weight.clone()), nn.Parameter(torch.ones(()))
        self.register_buffer("scale", torch.tensor(scale))
        self.register_buffer("frozen", torch.ones_like(weight), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        far = (features.unsqueeze(-2) - self.centers).square().sum(dim=-1)
        return self.scale * (self.gate * features @ self.frozen.T - far)


def variants() -> list[typing.Any]:
    """Every head with its defaults, and with every value of each of its options."""
    found = []
    for kind, spec in HEADS.kinds().items():
        found.append(pytest.param(spec(), id=kind))
        for name, field in spec.model_fields.items():
            if field.annotation is bool:
                found.append(pytest.param(spec(**{name: not field.default}), id=f"{kind}-{name}"))
    return [*found, pytest.param(Prototypes(), id="from outside")]


every_head = pytest.mark.parametrize("spec", variants())


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def draw_start(seed: int, classes: int = CLASSES, dim: int = DIM) -> Classifier:
    return draw(classes, dim, seed=seed), draw(classes, seed=seed + 1)


class Case:
    """S x T modules with different parameters, their stack, and a batch."""

    def __init__(self, spec: HeadSpec, classes: int = CLASSES, dim: int = DIM, batch: int = BATCH) -> None:
        self.start = draw_start(100, classes, dim)
        values = {
            name: getattr(spec, name) for name, field in type(spec).model_fields.items() if field.annotation is float
        }
        factors = 0.5 + torch.rand(SEEDS, 1, LANES, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        self.lanes = {name: value * factors for name, value in values.items()}
        self.modules_ST = [[self._module(spec, s, t, classes, dim) for t in range(LANES)] for s in range(SEEDS)]
        self.stacked = spec.stack(self.modules_ST, self.lanes, "cpu")
        self.features_SBD = draw(SEEDS, batch, dim, seed=3)
        self.inputs_SBI = spec.inputs(self.features_SBD, self.start)

    def _module(self, spec: HeadSpec, s: int, t: int, classes: int, dim: int) -> nn.Module:
        own = spec.model_copy(update={name: float(value[s, 0, t]) for name, value in self.lanes.items()})
        seed = 10 * s + t
        # Heads that re-scale a classifier share it between lanes.
        module = own.module(self.start if spec.needs_classifier else draw_start(seed, classes, dim)).double()
        with torch.no_grad():
            for number, parameter in enumerate(module.parameters()):
                parameter += draw(*parameter.shape, seed=1000 + 10 * seed + number)
        return module


def with_parameters(head: StackedHead, parameters: dict[str, Tensor]) -> StackedHead:
    other = copy.copy(head)
    other.parameters = parameters
    return other


@every_head
def test_stacked_logits_are_those_of_every_module(spec: HeadSpec) -> None:
    case = Case(spec)
    logits = case.stacked.logits(case.inputs_SBI)
    assert logits.shape == (SEEDS, BATCH, LANES, CLASSES)
    for s, row in enumerate(case.modules_ST):
        for t, module in enumerate(row):
            torch.testing.assert_close(logits[s, :, t], module(case.features_SBD[s]))


@every_head
@pytest.mark.parametrize("keep", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("decays", [False, True])
@pytest.mark.parametrize(("classes", "dim", "batch"), [(CLASSES, DIM, BATCH), (2, 3, 1), (3, 1, 2)])
def test_accumulated_gradients_equal_autograd(
    spec: HeadSpec, keep: float, decays: bool, classes: int, dim: int, batch: int
) -> None:
    case = Case(spec, classes, dim, batch)
    head = case.stacked
    into = {name: draw(*tensor.shape, seed=5) for name, tensor in head.parameters.items()}
    before = {name: tensor.clone() for name, tensor in into.items()}
    unchanged = {name: tensor.clone() for name, tensor in head.parameters.items()}
    grad, decay = draw(SEEDS, batch, LANES, classes, seed=4), draw(SEEDS, 1, LANES, 1, seed=6).abs()
    logits = head.logits(case.inputs_SBI)
    head.accumulate(into, case.inputs_SBI, logits, grad, keep, decay if decays else None)
    for name, tensor in head.parameters.items():
        assert torch.equal(tensor, unchanged[name]), "only `into` may change"
    for s, row in enumerate(case.modules_ST):
        for t, module in enumerate(row):
            parameters = dict(module.named_parameters())
            assert set(parameters) == set(into)
            gradients = torch.autograd.grad(
                (module(case.features_SBD[s]) * grad[s, :, t]).sum(), list(parameters.values())
            )
            found, old = (with_parameters(head, tensors).state(s, t) for tensors in (into, before))
            for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
                expected = keep * old[name] + gradient
                if decays:
                    expected = expected + decay[s, 0, t, 0] * parameter.detach()
                torch.testing.assert_close(found[name], expected, msg=lambda text, name=name: f"{name}: {text}")


@every_head
def test_a_state_restores_the_module(spec: HeadSpec) -> None:
    case = Case(spec)
    for s, row in enumerate(case.modules_ST):
        for t, module in enumerate(row):
            state = case.stacked.state(s, t)
            own = spec.model_copy(update={name: float(value[s, 0, t]) for name, value in case.lanes.items()})
            again = own.module((torch.zeros_like(case.start[0]), torch.zeros_like(case.start[1]))).double()
            again.load_state_dict(state)
            assert state.keys() == module.state_dict().keys()
            assert spec.state_shape(state) == (CLASSES, DIM)
            for name, tensor in module.state_dict().items():
                assert torch.equal(again.state_dict()[name], tensor), name
            torch.testing.assert_close(again(case.features_SBD), module(case.features_SBD))


@every_head
def test_states_are_copies(spec: HeadSpec) -> None:
    stacked = Case(spec).stacked
    before = {name: tensor.clone() for name, tensor in stacked.state(1, 2).items()}
    for name in stacked.parameters:
        stacked.state(1, 2)[name].zero_()
    for name, tensor in stacked.state(1, 2).items():
        assert torch.equal(tensor, before[name]), name


@every_head
def test_a_module_copies_its_start(spec: HeadSpec) -> None:
    start = draw_start(7)
    module, kept = spec.module(start), (start[0].clone(), start[1].clone())
    with torch.no_grad():
        for tensor in module.state_dict().values():
            tensor.fill_(9.0)
    assert torch.equal(start[0], kept[0])
    assert torch.equal(start[1], kept[1])


@every_head
def test_the_mean_over_views_may_be_taken_of_the_inputs_of_affine_heads(spec: HeadSpec) -> None:
    case = Case(spec)
    views_VSBI = torch.stack([case.inputs_SBI, spec.inputs(draw(SEEDS, BATCH, DIM, seed=8), case.start)])
    mean = torch.stack([case.stacked.logits(view).clone() for view in views_VSBI]).mean(dim=0)
    at_once = case.stacked.logits(views_VSBI.mean(dim=0))
    assert torch.allclose(at_once, mean) == type(spec).affine


@pytest.mark.parametrize("spec", [param for param in variants() if type(param.values[0]).has_rows])
def test_row_norms(spec: HeadSpec) -> None:
    case = Case(spec)
    norms, bias = case.stacked.row_norms()
    assert norms.shape == bias.shape == (SEEDS, 1, LANES, CLASSES)
    for s, row in enumerate(case.modules_ST):
        for t, module in enumerate(row):
            torch.testing.assert_close(norms[s, 0, t], module.get_parameter("weight").norm(dim=1))
            torch.testing.assert_close(bias[s, 0, t], module.get_parameter("bias"))


@every_head
def test_a_head_starts_with_the_logits_of_stage_1_unless_it_normalises(spec: HeadSpec) -> None:
    start, features = draw_start(7), draw(20, DIM)
    expected = nn.functional.linear(features, *start)
    found = spec.module(start).double()(features)
    directions = {name for name, field in type(spec).model_fields.items() if name == "scale"}
    assert torch.allclose(found, expected, atol=1e-5) == (not directions)


@every_head
def test_num_parameters(spec: HeadSpec) -> None:
    module: nn.Module = spec.module(draw_start(0))
    assert spec.num_parameters(CLASSES, DIM) == sum(parameter.numel() for parameter in module.parameters())
