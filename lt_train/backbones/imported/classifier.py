"""The layers of somebody's model that make its logits: which they are, and what flows into them.

Which layers they are is seen by what the model returns for images of noise. Touch this to change how classifiers are
found and named, or what features are; their weights are `warm_head`'s matter. Knows torch only, nothing of specs and
files. Shapes: B images, C channels, H x W pixels, D features, K classes, m classifier layers.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lt_train.backbones.base import L2Normalize
from lt_train.core.errors import UserError
from lt_train.core.validation import named

__all__ = ["CLOSE", "FeaturesOf", "check_classifier", "close", "find_classifiers", "multiple", "returned_logits"]

CLOSE = 1e-4
"""How far logits may be from what a formula says of them, as a share of the largest: float32 in another order."""


class FeaturesOf(nn.Module):
    """What flows into the classifier layers of a model, side by side: `[B, C, H, W] -> [B, D_1 + .. + D_m]`.

    Grey images are shown to every channel. For the layers in `directions` features are `f / |f|`.
    """

    def __init__(
        self, model: nn.Module, layers: Sequence[str], channels: int, directions: Collection[str] = ()
    ) -> None:
        super().__init__()
        self.model, self.layers, self.channels = model, tuple(layers), channels
        self.changes = nn.ModuleList(L2Normalize() if name in directions else nn.Identity() for name in self.layers)

    def forward(self, images: Tensor) -> Tensor:
        """Features of normalised images; the model runs as it is, and what comes after the layers is dropped.

        Raises:
            UserError: a layer is not run exactly once, or on something else than one row an image.
        """
        parts, _ = self.run(images)
        parts = [change(part) for change, part in zip(self.changes, parts, strict=True)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def run(self, images: Tensor) -> tuple[list[Tensor], Any]:
        """What flowed into each layer, as it is, and what the model returned; raises as `forward` does."""
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
        # By shape: `len` would fix the number of images for good where a network is exported.
        return [_a_row_each(name, seen, images.shape[0]) for name, seen in caught.items()], returned

    def drop_classifiers(self, dims: Sequence[int]) -> None:
        """Take the layers, of `dims` features each, out of the model with their weights; it goes on with zeros."""
        for name, dim in zip(self.layers, dims, strict=True):
            weight = _weight(self.model.get_submodule(name))
            self.model.set_submodule(name, nn.Identity() if weight is None else _Zeros(weight.numel() // dim))


class _Zeros(nn.Module):
    """In the place of a classifier: logits that are 0, so that a model can still do with them what it does."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, features: Tensor) -> Tensor:
        return features.new_zeros(*features.shape[:-1], self.classes)


def find_classifiers(model: nn.Module, images: Tensor, called: str) -> tuple[str, ...]:
    """The layer whose output the model returns, or those of whose outputs it returns the mean, times any number.

    Raises:
        UserError: there are none such, or it is not clear which.
    """
    layers = {name: layer for name, layer in model.named_modules() if _weight(layer) is not None}
    made: dict[str, Any] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda layer, inputs, output: made.__setitem__(name, output)

    hooks = [layer.register_forward_hook(keep(name)) for name, layer in layers.items()]
    try:
        with torch.inference_mode():
            returned = model(images)
    finally:
        for hook in hooks:
            hook.remove()
    found: dict[str, None] = {}
    for output in returned_logits(returned):
        logits = {name: made[name] for name in layers if name in made and _alike(made[name], output)}
        # Zeros are the mean of any zeros: a model whose classifiers start so does not show which of them it uses.
        if len(logits) > 1 and output.any() and multiple(output, torch.stack([*logits.values()]).mean(0)):
            return tuple(logits)
        found |= dict.fromkeys(name for name, made_here in logits.items() if multiple(output, made_here))
    if len(found) == 1:
        return tuple(found)
    problem = "no linear layer makes it"
    if found:
        problem = f"{len(found)} linear layers make it: {named(list(found))}. Name one, or a list of those to average"
    raise UserError(
        f"classifier: must be named for {called}: its layer is found by the model's output, and {problem}"
        f"{_nearest(None, model)}"
    )


def check_classifier(model: nn.Module, name: str, called: str, use_head: bool) -> None:
    """Refuse a name that no layer has or, with `use_head`, one of a layer without a weight of K x D.

    Raises:
        UserError: either of them; says the nearest names.
    """
    layer = dict(model.named_modules()).get(name) if name else None
    if layer is None:
        raise UserError(f"classifier: {called} has no layer {name!r}{_nearest(name, model)}")
    if use_head and _weight(layer) is None:
        raise UserError(
            f"classifier: {name} of {called} is a {type(layer).__name__} and not linear; the head starts from a layer "
            "with a weight of K x D, whose logits are W f + b or s cos(W_k, f). Name one, or set use_head: false to "
            f"take what flows into {name} and start afresh{_nearest(name, model)}"
        )


def returned_logits(value: Any) -> Iterator[Tensor]:
    """What of a model's return value may be logits `[B, K]`, however deep it lies in lists and mappings."""
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
    """The one number above 0, to seven digits, that makes `whole` of `part`; None where there is none."""
    if torch.equal(whole, part):
        return 1.0
    whole, part = whole.double(), part.double()
    number = float((whole * part).sum() / (part * part).sum())
    return float(f"{number:.7g}") if number > 0 and close(number * part, whole) else None


def close(said: Tensor, made: Tensor) -> bool:
    """Whether what a formula says is what was made, to `CLOSE` of the largest value."""
    return bool((said - made).abs().max() <= CLOSE * made.abs().max())


def _alike(value: Any, other: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == other.shape and value.is_floating_point()


def _weight(layer: nn.Module) -> Tensor | None:
    """The weight of a layer that may be a classifier by the form of it: a matrix of numbers."""
    weight = getattr(layer, "weight", None)
    fits = isinstance(weight, Tensor) and weight.ndim == 2 and weight.is_floating_point()
    return weight if fits and not isinstance(layer, nn.Embedding) else None


def _a_row_each(name: str, caught: Sequence[Any], count: int) -> Tensor:
    """The features that a layer was run on: one tensor, a row for each of the images."""
    if len(caught) != 1:
        raise UserError(f"classifier: {name} must run once a forward pass, and runs {len(caught)} times")
    features = caught[0]
    if not isinstance(features, Tensor) or features.ndim != 2 or features.shape[0] != count:
        shape = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise UserError(
            f"classifier: what flows into {name} must be [B, D], a row an image, got {shape} for {count} images"
        )
    return features


def _nearest(word: str | None, model: nn.Module) -> str:
    """The five possible classifiers with the nearest names, else the last: a model may have hundreds."""
    linear = [name for name, layer in model.named_modules() if _weight(layer) is not None]
    if not linear:
        return "; it has no linear layer"
    near = difflib.get_close_matches(word, linear, n=5, cutoff=0.4) if word else []
    what = "with the nearest names" if near else "at its end"
    return f"; linear layers {what}, of {len(linear)}: {', '.join(near or linear[-5:])}"
