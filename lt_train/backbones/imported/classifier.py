"""The classifier layers of an imported model: finding them, capturing their inputs, and one linear head for all.

The layers are found by comparing layer outputs with the model's output for noise images. A layer is recognised by its
output, not by its class: `W f + b`, or `s cos(W_k, f)`, which is linear in f / |f|. For m layers whose logits the model
averages, the head is `[W_1 .. W_m] / m` on their concatenated features.

Shapes: B images, C channels, H x W pixels, D features, K classes, m classifier layers.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

from lt_train.backbones.layers import L2Normalize
from lt_train.core.errors import UserError
from lt_train.core.validation import named

__all__ = ["FeaturesOf", "check_classifier", "close", "find_classifiers", "multiple", "warm_head"]


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
        shares: the factor of each layer's logits in those of the head; 1 for a layer whose output the model returns.
        note: a description of the head for the user.
    """

    weight: Tensor
    bias: Tensor
    normalised: tuple[str, ...]
    shares: tuple[float, ...]
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
        shares=tuple(shares),
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


CLOSE = 1e-4
"""Tolerance of logit comparisons relative to the largest logit: float32 sums in another order differ by less."""


class FeaturesOf(nn.Module):
    """The concatenated inputs of a model's classifier layers: `[B, C, H, W] -> [B, D_1 + .. + D_m]`.

    Grey images are repeated in every channel. Features of the layers in `normalised` are scaled to length 1.
    """

    def __init__(
        self, model: nn.Module, layers: Sequence[str], channels: int, normalised: Collection[str] = ()
    ) -> None:
        super().__init__()
        self.model, self.layers, self.channels = model, tuple(layers), channels
        self.transforms = nn.ModuleList(L2Normalize() if name in normalised else nn.Identity() for name in self.layers)

    def forward(self, images: Tensor) -> Tensor:
        """Features of normalised images; the model runs unchanged, and its output is ignored.

        Raises:
            UserError: a layer does not run exactly once, or its input is not one row per image.
        """
        parts, _ = self.run(images)
        parts = [transform(part) for transform, part in zip(self.transforms, parts, strict=True)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def run(self, images: Tensor) -> tuple[list[Tensor], Any]:
        """The raw input of each layer, and the model's output; raises as `forward` does."""
        if images.shape[1] != self.channels:
            images = images.expand(-1, self.channels, -1, -1)
        caught: dict[str, list[Any]] = {name: [] for name in self.layers}

        def catch(name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
            return lambda _, positional, keyed: caught[name].append(next(iter((*positional, *keyed.values())), None))

        hooks = [
            self.model.get_submodule(name).register_forward_pre_hook(catch(name), with_kwargs=True)
            for name in self.layers
        ]
        try:
            returned = self.model(images)
        finally:
            for hook in hooks:
                hook.remove()
        # Not `len`, which would make the number of images a constant in an exported network.
        return [_one_row_per_image(name, seen, images.shape[0]) for name, seen in caught.items()], returned

    def drop_classifiers(self, dims: Sequence[int]) -> None:
        """Remove the layers, of `dims` features each, from the model; they then return zeros."""
        for name, dim in zip(self.layers, dims, strict=True):
            weight = _weight(self.model.get_submodule(name))
            self.model.set_submodule(name, nn.Identity() if weight is None else _Zeros(weight.numel() // dim))


class _Zeros(nn.Module):
    """Replaces a classifier: returns zero logits, so that the rest of the model still runs."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, features: Tensor) -> Tensor:
        return features.new_zeros(*features.shape[:-1], self.classes)


def find_classifiers(model: nn.Module, images: Tensor, model_name: str) -> tuple[str, ...]:
    """The layer whose output the model returns, or the layers whose mean output it returns, up to a positive factor.

    Raises:
        UserError: there are none, or more than one possibility.
    """
    layers = {name: layer for name, layer in model.named_modules() if _weight(layer) is not None}
    outputs: dict[str, Any] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda layer, inputs, output: outputs.__setitem__(name, output)

    hooks = [layer.register_forward_hook(keep(name)) for name, layer in layers.items()]
    try:
        with torch.inference_mode():
            returned = model(images)
    finally:
        for hook in hooks:
            hook.remove()
    found: dict[str, None] = {}
    for output in returned_logits(returned):
        logits = {name: outputs[name] for name in layers if name in outputs and _same_shape(outputs[name], output)}
        # Zeros are the mean of any zeros: classifiers initialised to zero cannot be distinguished.
        if len(logits) > 1 and output.any() and multiple(output, torch.stack([*logits.values()]).mean(0)):
            return tuple(logits)
        found |= dict.fromkeys(name for name, own in logits.items() if multiple(output, own))
    if len(found) == 1:
        return tuple(found)
    problem = "no linear layer produces its output"
    if found:
        problem = (
            f"{len(found)} linear layers produce its output: {named(list(found))}. Name one, or a list of those to "
            "average"
        )
    raise UserError(f"classifier: must be given for {model_name}, because {problem}{_nearest(None, model)}")


def check_classifier(model: nn.Module, name: str, model_name: str, use_head: bool) -> None:
    """Check that a layer of this name exists and, with `use_head`, that it has a K x D weight.

    Raises:
        UserError: it does not; the message lists the most similar names.
    """
    layer = dict(model.named_modules()).get(name) if name else None
    if layer is None:
        raise UserError(f"classifier: {model_name} has no layer {name!r}{_nearest(name, model)}")
    if use_head and _weight(layer) is None:
        raise UserError(
            f"classifier: {name} of {model_name} must be a linear layer (a K x D weight, with logits W f + b or "
            f"s cos(W_k, f)), got {type(layer).__name__}. Name another layer, or set use_head: false to use only the "
            f"inputs of {name} as features{_nearest(name, model)}"
        )


def returned_logits(value: Any) -> Iterator[Tensor]:
    """The tensors `[B, K]` in a model's return value that may be logits, also nested in lists and mappings."""
    if isinstance(value, Tensor):
        if value.ndim == 2 and value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from returned_logits(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from returned_logits(item)


def multiple(whole: Tensor, part: Tensor) -> float | None:
    """The factor > 0, rounded to seven digits, with `whole = factor * part`; None if there is none."""
    if torch.equal(whole, part):
        return 1.0
    whole, part = whole.double(), part.double()
    number = float((whole * part).sum() / (part * part).sum())
    return float(f"{number:.7g}") if number > 0 and close(number * part, whole) else None


def close(expected: Tensor, actual: Tensor) -> bool:
    """Whether two tensors agree to `CLOSE` times the largest actual value."""
    return bool((expected - actual).abs().max() <= CLOSE * actual.abs().max())


def _same_shape(value: Any, other: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == other.shape and value.is_floating_point()


def _weight(layer: nn.Module) -> Tensor | None:
    """The weight of a layer that may be a classifier, that is a floating-point matrix; else None."""
    weight = getattr(layer, "weight", None)
    fits = isinstance(weight, Tensor) and weight.ndim == 2 and weight.is_floating_point()
    return weight if fits and not isinstance(layer, nn.Embedding) else None


def _one_row_per_image(name: str, caught: Sequence[Any], count: int) -> Tensor:
    """The captured input of a layer, checked to be a single tensor with one row per image."""
    if len(caught) != 1:
        raise UserError(f"classifier: {name} must run once per forward pass, got {len(caught)} times")
    features = caught[0]
    if not isinstance(features, Tensor) or features.ndim != 2 or features.shape[0] != count:
        shape = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise UserError(
            f"classifier: the input of {name} must be [B, D], one row per image, got {shape} for {count} images"
        )
    return features


def _nearest(word: str | None, model: nn.Module) -> str:
    """The five possible classifiers with the most similar names, or the last five."""
    linear = [name for name, layer in model.named_modules() if _weight(layer) is not None]
    if not linear:
        return "; it has no linear layer"
    near = difflib.get_close_matches(word, linear, n=5, cutoff=0.4) if word else []
    what = "similar" if near else "last"
    return f"; {what} of its {len(linear)} linear layers: {', '.join(near or linear[-5:])}"
