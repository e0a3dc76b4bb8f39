"""`check_head`: a head as a plain module and stacked.

Shapes: S seeds, B batch, T lanes, K classes, D features, I inputs of a stacked head.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from lt_train.core.fields import lane_values, substitute
from lt_train.core.seeding import generator
from lt_train.methods.base import MethodSpec
from lt_train.methods.cross_entropy import CE
from lt_train.methods.heads.base import Classifier, HeadSpec, StackedHead
from lt_train.testing.kinds import assert_close, check_kind
from lt_train.testing.methods import check_training

__all__ = ["check_head"]

SEEDS, LANES = 2, 3
SHAPES = ((4, 6, 5), (2, 3, 1), (3, 1, 2))
"""Numbers of classes, features and images."""


def check_head(head: HeadSpec | type[HeadSpec]) -> None:
    """Check a head: its module, its stack of many runs, and that both engines train it alike.

    - `check_kind`.
    - The module starts from a copy of the classifier and trains `num_parameters` values; `state_shape` knows its state.
    - Stacked logits are those of the modules, `accumulate` adds the gradients of autograd, and `state` restores a
      module, for several numbers of classes, features and images.
    - `affine` and `has_rows` are true to what the head computes.
    - `retrain.fused` and `retrain.reference` agree with cross entropy on this head.

    Args:
        head: an instance, or a class whose fields have defaults.

    Raises:
        AssertionError: a requirement is not met.
    """
    checked = check_kind(head, HeadSpec)
    for shape in SHAPES:
        case = _Case(checked, *shape)
        _check_start(case)
        _check_logits(case)
        _check_state(case)
        for keep, decays in ((0.0, False), (0.9, True), (1.0, True)):
            _check_gradients(case, keep, decays=decays)
    _check_class_attributes(_Case(checked, *SHAPES[0]))
    method: MethodSpec = CE(head=checked)
    check_training(method)


class _Case:
    """S x T modules with different parameters, their stack, and a batch, in float64."""

    def __init__(self, spec: HeadSpec, classes: int, dim: int, batch: int) -> None:
        self.spec, self.name, self.classes, self.dim = spec, type(spec).__name__, classes, dim
        self.start = _classifier(0, classes, dim)
        factors = 0.5 + _draw(1, SEEDS, 1, LANES).sigmoid()
        self.lanes = {path: value * factors for path, value in lane_values(spec).items()}
        self.modules_ST = [[self._module(s, t) for t in range(LANES)] for s in range(SEEDS)]
        self.stacked = spec.stack(self.modules_ST, self.lanes, "cpu")
        self.features_SBD = _draw(2, SEEDS, batch, dim)
        self.inputs_SBI = spec.inputs(self.features_SBD, self.start)

    def setting(self, s: int, t: int) -> HeadSpec:
        """The head of one run."""
        return substitute(self.spec, {path: float(value[s, 0, t]) for path, value in self.lanes.items()})

    def _module(self, s: int, t: int) -> nn.Module:
        number = 100 + 10 * (s * LANES + t)
        # Heads that re-scale a classifier share it between lanes.
        start = self.start if self.spec.needs_classifier else _classifier(number, self.classes, self.dim)
        module: nn.Module = self.setting(s, t).module(start).double()
        with torch.no_grad():
            for index, parameter in enumerate(module.parameters()):
                parameter.add_(_draw(number + 2 + index, *parameter.shape))
        return module


def _draw(number: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator("conformance", number), dtype=torch.float64)


def _classifier(number: int, classes: int, dim: int) -> Classifier:
    return _draw(number, classes, dim), _draw(number + 1, classes)


def _check_start(case: _Case) -> None:
    spec, name = case.spec, case.name
    start = _classifier(3, case.classes, case.dim)
    before = [tensor.clone() for tensor in start]
    global_state = torch.random.get_rng_state()
    module = spec.module(start)
    again = spec.module(start)
    assert torch.equal(torch.random.get_rng_state(), global_state), (
        f"{name}.module must not use the global random generator; a head starts from the classifier"
    )
    for key, tensor in module.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[key]), f"{name}.module must give the same module again: {key}"
    with torch.no_grad():
        for tensor in module.state_dict().values():
            tensor.fill_(9.0)
    assert all(map(torch.equal, start, before)), f"{name}.module must copy the classifier that it starts from"


def _check_logits(case: _Case) -> None:
    logits = case.stacked.logits(case.inputs_SBI)
    expected = (SEEDS, case.features_SBD.shape[1], LANES, case.classes)
    assert tuple(logits.shape) == expected, (
        f"{case.name}: stacked logits must have the shape [S, B, T, K] = {expected}, got {tuple(logits.shape)}"
    )
    for s, row in enumerate(case.modules_ST):
        for t, module in enumerate(row):
            own = module(case.features_SBD[s])
            assert_close((logits[s, :, t],), (own,), f"{case.name}: stacked logits are not those of the module")


def _check_gradients(case: _Case, keep: float, *, decays: bool) -> None:
    head, name = case.stacked, case.name
    into = {key: _draw(5, *tensor.shape) for key, tensor in head.parameters.items()}
    before, unchanged = ({key: tensor.clone() for key, tensor in one.items()} for one in (into, head.parameters))
    logits = head.logits(case.inputs_SBI)
    grad, decay = _draw(4, *logits.shape), _draw(6, SEEDS, 1, LANES, 1).abs()
    head.accumulate(into, case.inputs_SBI, logits, grad, keep, decay if decays else None)
    for key, tensor in head.parameters.items():
        assert torch.equal(tensor, unchanged[key]), f"{name}.accumulate must change `into` only, not {key}"
    for s, row in enumerate(case.modules_ST):
        for t, module in enumerate(row):
            parameters = dict(module.named_parameters())
            assert set(parameters) == set(into), (
                f"{name}: the stack must have the parameters of the module, {sorted(parameters)}, got {sorted(into)}"
            )
            logits_BK = module(case.features_SBD[s])
            gradients = torch.autograd.grad((logits_BK * grad[s, :, t]).sum(), list(parameters.values()))
            found, old = (_with_parameters(head, tensors).state(s, t) for tensors in (into, before))
            for (key, parameter), gradient in zip(parameters.items(), gradients, strict=True):
                decayed = decay[s, 0, t, 0] * parameter.detach() if decays else 0.0
                expected = keep * old[key] + gradient + decayed
                problem = f"{name}.accumulate differs from keep * into + gradient + decay * parameter for {key}"
                assert_close((found[key],), (expected,), problem)


def _with_parameters(head: StackedHead, parameters: dict[str, Tensor]) -> StackedHead:
    other = copy.copy(head)
    other.parameters = parameters
    return other


def _check_state(case: _Case) -> None:
    name = case.name
    zeros = torch.zeros_like(case.start[0]), torch.zeros_like(case.start[1])
    for s, row in enumerate(case.modules_ST):
        for t, module in enumerate(row):
            state = case.stacked.state(s, t)
            shape = (case.classes, case.dim)
            assert case.spec.state_shape(state) == shape, f"{name}.state_shape must return (K, D) = {shape} for a state"
            again = case.setting(s, t).module(zeros).double()
            again.load_state_dict(state)
            for key, tensor in module.state_dict().items():
                assert torch.equal(again.state_dict()[key], tensor), f"{name}.state does not restore {key}"
    for key in case.stacked.parameters:
        case.stacked.state(0, 1)[key].zero_()
        message = f"{name}.state must return copies, not views of {key}"
        assert_close((case.stacked.state(0, 1)[key],), (case.modules_ST[0][1].state_dict()[key],), message)


def _check_class_attributes(case: _Case) -> None:
    spec, name = case.spec, case.name
    views_VSBI = torch.stack([case.inputs_SBI, spec.inputs(_draw(7, *case.features_SBD.shape), case.start)])
    mean = torch.stack([case.stacked.logits(view).clone() for view in views_VSBI]).mean(dim=0)
    is_affine = torch.allclose(case.stacked.logits(views_VSBI.mean(dim=0)), mean)
    assert is_affine or not spec.affine, (
        f"{name}.affine must be False: the logits of a mean of inputs are not the mean of the logits"
    )
    if not spec.has_rows:
        return
    norms, bias = case.stacked.row_norms()
    expected = (SEEDS, 1, LANES, case.classes)
    for what, tensor in (("norms", norms), ("bias", bias)):
        assert tuple(tensor.shape) == expected, f"{name}.row_norms: {what} must have shape {expected}"
    for s, row in enumerate(case.modules_ST):
        for t, module in enumerate(row):
            own = module.get_parameter("weight").norm(dim=1), module.get_parameter("bias")
            assert_close((norms[s, 0, t], bias[s, 0, t]), own, f"{name}.row_norms differ from those of the module")
