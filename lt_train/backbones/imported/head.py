"""The classifier layers of somebody's model as one linear head: where re-training starts.

A layer is what its output says, not its class: `W f + b`, or `s cos(W_k, f)`, which is linear in the direction of f.
Of m layers whose logits the model averages the head is `[W_1 .. W_m] / m` on their features side by side. Touch this to
change which layers a head can start from. Knows torch only, nothing of specs and files.
Shapes: B images, D features, K classes, m classifier layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, normalize

from lt_train.backbones.imported.classifier import CLOSE, FeaturesOf, close, multiple, returned_logits
from lt_train.core.errors import UserError
from lt_train.core.validation import named

__all__ = ["WarmHead", "warm_head"]

_MOST_NAMES = 8


@dataclass(frozen=True)
class _Layer:
    """One classifier layer: `weight [K, D]` and `bias [K]` on features or, where it has a scale s, on directions.

    `logits` are what it made of the features of a few images.
    """

    name: str
    weight: Tensor
    bias: Tensor | None
    scale: float | None
    logits: Tensor


@dataclass(frozen=True)
class WarmHead:
    """One linear head in the place of m layers.

    Attributes:
        weight, bias: `[K, D_1 + .. + D_m]` and `[K]`, on the layers' features side by side.
        directions: the layers whose features are the directions `f / |f|`.
        note: what a user must know of it.
    """

    weight: Tensor
    bias: Tensor
    directions: tuple[str, ...]
    note: str


def warm_head(network: FeaturesOf, images: Tensor, called: str) -> WarmHead:
    """The head that gives what the model returns or, where that is something else, the mean of its layers' logits.

    Args:
        network: with the weights in its model; what it does to features is not looked at.
        images: a few, of noise, on which the model's own output is compared.
        called: the model, in errors.

    Raises:
        UserError: a layer's logits are of neither form, or for other classes than another's; or the model returns one
            tensor of logits and they are not the mean of the several layers', times any number.
    """
    with torch.inference_mode():
        features, returned = network.run(images)
        layers = [
            _measured(name, network.model.get_submodule(name), into, called)
            for name, into in zip(network.layers, features, strict=True)
        ]
    if len({len(layer.weight) for layer in layers}) > 1:
        got = ", ".join(f"{len(layer.weight)} for {layer.name}" for layer in layers)
        raise UserError(f"classifier: layers of {called} must be for as many classes as one another, got {got}")
    outputs = [output for output in returned_logits(returned) if output.shape == layers[0].logits.shape]
    found = _times([layer.logits for layer in layers], outputs)
    if found is None and len(layers) > 1 and len(outputs) == 1:
        names = named(network.layers, _MOST_NAMES)
        raise UserError(
            f"classifier: what {called} returns is not the mean of the logits of {names}, nor that times a number (to "
            f"{CLOSE:g} of the largest). Name all layers that it averages, or one; or set use_head: false to take what "
            "flows into them and start afresh"
        )
    times = found or [1.0] * len(layers)
    shares = [number / len(layers) for number in times]
    biases = [
        torch.zeros(len(layer.weight)) if layer.bias is None else share * layer.bias
        for layer, share in zip(layers, shares, strict=True)
    ]
    weight = torch.cat([share * layer.weight for layer, share in zip(layers, shares, strict=True)], dim=1)
    return WarmHead(
        weight=weight.contiguous(),
        bias=torch.stack(biases).sum(0),
        directions=tuple(layer.name for layer in layers if layer.scale is not None),
        note=_note(layers, list(weight.shape), times, as_returned=found is not None),
    )


def _measured(name: str, layer: Any, features: Tensor, called: str) -> _Layer:
    """What a layer is by its output: on features, and on twice them, whose cosines are the same."""
    kind, way_out = type(layer).__name__, "Set use_head: false to take what flows into it and start afresh"
    twice = torch.cat([features, 2 * features])
    try:
        made: Tensor = layer(twice)
        logits = made.float()
    except Exception as error:  # whatever the layer's own code raises
        raise UserError(
            f"classifier: {name} of {called} is a {kind} that does not make logits of features alone "
            f"({type(error).__name__}). {way_out}"
        ) from None
    twice = twice.float()  # a trunk may run in half precision, and a layer take that
    # Looked at after the layer ran: torch's old weight_norm puts the weight together then.
    weight, bias = layer.weight.detach().float(), getattr(layer, "bias", None)
    classes, dim = logits.shape[-1], features.shape[-1]
    bias = bias.detach().float() if isinstance(bias, Tensor) and bias.shape == (classes,) else None
    for rows in (weight, weight.T):  # LDAM's code keeps it as [D, K]
        if rows.shape != (classes, dim):
            continue
        if close(linear(twice, rows, bias), logits):
            return _Layer(name, rows, bias, None, logits[: len(features)])
        unit = normalize(rows)
        scale = multiple(logits, linear(normalize(twice), unit))
        if scale is not None:
            return _Layer(name, scale * unit, None, scale, logits[: len(features)])
    raise UserError(
        f"classifier: {name} of {called} is a {kind} whose output is neither W f + b nor s cos(W_k, f) (to {CLOSE:g} "
        f"of the largest): it is not linear. {way_out}"
    )


def _times(logits: Sequence[Tensor], outputs: Sequence[Tensor]) -> list[float] | None:
    """What the model multiplies each layer's logits by, where it returns their mean, or a list of them."""
    mean = torch.stack([*logits]).mean(0)
    for output in outputs:
        if (number := multiple(output, mean)) is not None:
            return [number] * len(logits)
    each = [next(filter(None, (multiple(output, made) for output in outputs)), None) for made in logits]
    return None if None in each else [number for number in each if number is not None]


def _note(layers: Sequence[_Layer], shape: list[int], times: Sequence[float], as_returned: bool) -> str:
    """What a user must know of the head: `W [K, D]`, what its logits are of, and what was done to features for it."""
    names = named([layer.name for layer in layers], _MOST_NAMES)
    text = f"the head starts from {'the mean of the logits of ' * (len(layers) > 1)}{names} {shape}"
    cosines = [layer.scale * number for layer, number in zip(layers, times, strict=True) if layer.scale is not None]
    seen = [layer.name for layer in layers if layer.scale is not None]
    those = f" of {named(seen, _MOST_NAMES)}" if len(seen) < len(layers) else ""
    if seen:
        text += f", with rows s W_k / |W_k|, s = {_numbers(cosines)}, and bias 0{those}"
    elif all(layer.bias is None for layer in layers):
        text += " without a bias, which starts at 0"
    if not seen and set(times) != {1.0}:
        text += f", times {_numbers(times)} as in the model"
    if len(layers) > 1 or seen:
        text += "; features are" + " theirs side by side" * (len(layers) > 1)
    if seen:
        link = f", those{those} as" if those else ", as" if len(layers) > 1 else ""
        text += f"{link} directions f / |f|, for nothing else is seen"
    return text if as_returned else f"{text}; what the model returns is not these logits"


def _numbers(numbers: Sequence[float]) -> str:
    """`30`, or `30, 16` where they differ."""
    return named(list(dict.fromkeys(f"{number:.4g}" for number in numbers)), _MOST_NAMES)
