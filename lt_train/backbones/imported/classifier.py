"""The classifier layers of an imported model: finding them and capturing their inputs.

The layers are found by comparing layer outputs with the model's output for noise images.

Shapes: B images, C channels, H x W pixels, D features, K classes, m classifier layers.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lt_train.backbones.layers import L2Normalize
from lt_train.core.errors import UserError
from lt_train.core.validation import named

__all__ = ["CLOSE", "FeaturesOf", "check_classifier", "close", "find_classifiers", "multiple", "returned_logits"]

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
