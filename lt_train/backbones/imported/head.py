"""Turning the classifier layers of an imported model into one linear head, from which re-training starts.

A layer is recognised by its output, not by its class: `W f + b`, or `s cos(W_k, f)`, which is linear in f / |f|. For m
layers whose logits the model averages, the head is `[W_1 .. W_m] / m` on their concatenated features.

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
    """One classifier layer: `weight [K, D]` and `bias [K]` on features or, with a scale s, on features of length 1.

    `logits` are its outputs for a few images.
    """

    name: str
    weight: Tensor
    bias: Tensor | None
    scale: float | None
    logits: Tensor


@dataclass(frozen=True)
class WarmHead:
    """One linear head that replaces m layers.

    Attributes:
        weight, bias: `[K, D_1 + .. + D_m]` and `[K]`, on the layers' concatenated features.
        normalised: the layers whose features must be scaled to length 1.
        note: a description of the head for the user.
    """

    weight: Tensor
    bias: Tensor
    normalised: tuple[str, ...]
    note: str


def warm_head(network: FeaturesOf, images: Tensor, model_name: str) -> WarmHead:
    """The head that reproduces the model's output or, where that is something else, the mean of its layers' logits.

    Args:
        network: the model with its weights; the transforms of its features are ignored.
        images: a few noise images, on which the head is compared with the model's output.
        model_name: the name of the model in errors.

    Raises:
        UserError: a layer's logits have neither form; layers differ in the number of classes; or there are several
            layers, and the model returns logits that are not a multiple of their mean.
    """
    with torch.inference_mode():
        features, returned = network.run(images)
        layers = [
            _measured(name, network.model.get_submodule(name), into, model_name)
            for name, into in zip(network.layers, features, strict=True)
        ]
    if len({len(layer.weight) for layer in layers}) > 1:
        got = ", ".join(f"{len(layer.weight)} for {layer.name}" for layer in layers)
        raise UserError(f"classifier: layers of {model_name} must have the same number of classes, got {got}")
    outputs = [output for output in returned_logits(returned) if output.shape == layers[0].logits.shape]
    found = _times([layer.logits for layer in layers], outputs)
    if found is None and len(layers) > 1 and len(outputs) == 1:
        names = named(network.layers, _MOST_NAMES)
        raise UserError(
            f"classifier: the output of {model_name} is not a multiple of the mean of the logits of {names} (tolerance "
            f"{CLOSE:g} of the largest). Name all layers that it averages, or one; or set use_head: false to use only "
            "their inputs as features"
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
        normalised=tuple(layer.name for layer in layers if layer.scale is not None),
        note=_note(layers, list(weight.shape), times, as_returned=found is not None),
    )


def _measured(name: str, layer: Any, features: Tensor, model_name: str) -> _Layer:
    """The layer's form, determined from its outputs for features and for doubled features, whose cosines are equal."""
    kind, remedy = type(layer).__name__, "Set use_head: false to use only its inputs as features"
    twice = torch.cat([features, 2 * features])
    try:
        output: Tensor = layer(twice)
        logits = output.float()
    except Exception as error:  # the layer's own code may raise anything
        raise UserError(
            f"classifier: {name} of {model_name} ({kind}) must compute logits from features alone, got "
            f"{type(error).__name__}. {remedy}"
        ) from None
    twice = twice.float()  # the rest of the model may run in half precision
    # After the layer has run: torch's old weight_norm computes the weight in the forward pass.
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
        f"classifier: {name} of {model_name} ({kind}) must be linear: W f + b or s cos(W_k, f), to {CLOSE:g} of the "
        f"largest logit. {remedy}"
    )


def _times(logits: Sequence[Tensor], outputs: Sequence[Tensor]) -> list[float] | None:
    """The factor of each layer's logits in the model's output, a multiple of their mean or a list; else None."""
    mean = torch.stack([*logits]).mean(0)
    for output in outputs:
        if (number := multiple(output, mean)) is not None:
            return [number] * len(logits)
    each = [next(filter(None, (multiple(output, own) for output in outputs)), None) for own in logits]
    return None if None in each else [number for number in each if number is not None]


def _note(layers: Sequence[_Layer], shape: list[int], times: Sequence[float], as_returned: bool) -> str:
    """A description of the head: its shape, the layers it comes from, and how features are transformed for it."""
    names = named([layer.name for layer in layers], _MOST_NAMES)
    text = f"the head starts from {'the mean of the logits of ' * (len(layers) > 1)}{names} {shape}"
    cosines = [layer.scale * number for layer, number in zip(layers, times, strict=True) if layer.scale is not None]
    cosine = [layer.name for layer in layers if layer.scale is not None]
    which = f" of {named(cosine, _MOST_NAMES)}" if len(cosine) < len(layers) else ""
    if cosine:
        text += f", with rows s W_k / |W_k|, s = {_numbers(cosines)}, and bias 0{which}"
    elif all(layer.bias is None for layer in layers):
        text += " without a bias, which starts at 0"
    if not cosine and set(times) != {1.0}:
        text += f", times {_numbers(times)} as in the model"
    if len(layers) > 1:
        text += "; features are concatenated"
    if cosine:
        text += f"; features{which} are scaled to length 1"
    return text if as_returned else f"{text}; the model's output differs from these logits"


def _numbers(numbers: Sequence[float]) -> str:
    """`30`, or `30, 16` where they differ."""
    return named(list(dict.fromkeys(f"{number:.4g}" for number in numbers)), _MOST_NAMES)
