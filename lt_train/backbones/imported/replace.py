"""Puts a re-trained linear head back into the classifier layers of an imported model: the inverse of `warm_head`.

Shapes: K classes, D features, m classifier layers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.nn.utils import parametrize

from lt_train.backbones.imported.classifier import FeaturesOf, close, warm_head
from lt_train.core.errors import UserError
from lt_train.core.validation import named

__all__ = ["replace_head"]


def replace_head(network: FeaturesOf, head: tuple[Tensor, Tensor], images: Tensor, model_name: str) -> None:
    """Change the model's classifier layers, in place, so that the model computes the logits of `head`.

    One linear layer gets the tensors of the head themselves. For m layers whose logits the model averages, each gets
    its columns of the weight, multiplied by m. A factor that the model applies to its logits is divided out. A linear
    layer for another number of classes is replaced.

    Args:
        network: the model with its weights.
        head: `(weight [K, D_1 + .. + D_m], bias [K])`, on the concatenated inputs of the layers.
        images: a few noise images, on which the result is compared with the head.
        model_name: the name of the model in errors.

    Raises:
        UserError: the layers cannot compute these logits: they compute cosines, have no bias where the head has one,
            or compute their weights from other parameters.
    """
    weight, bias = head
    layers = named(network.layers, 8)
    try:
        before = warm_head(network, images, model_name)
    except UserError:
        raise UserError(f"{layers} of {model_name} must compute W f + b to hold a linear head, but does not") from None
    if before.normalised:
        raise UserError(
            f"{named(before.normalised, 8)} of {model_name} computes cosines, and cannot hold the weights W f + b of "
            "a linear head"
        )
    with torch.inference_mode():
        features, _ = network.run(images)
    rows = weight.split([part.shape[1] for part in features], dim=1)
    has_bias = [isinstance(getattr(network.model.get_submodule(name), "bias", None), Tensor) for name in network.layers]
    if not any(has_bias) and bias.any():
        raise UserError(f"{layers} of {model_name} has no bias, but the head has one")
    total = sum(share for share, has in zip(before.shares, has_bias, strict=True) if has)
    for place, name in enumerate(network.layers):
        own = bias / total if has_bias[place] else None
        if not _assign(network.model, name, rows[place] / before.shares[place], own, features[place].clone()):
            raise UserError(
                f"{name} of {model_name} computes its weights from other parameters, which cannot be set to those of "
                "the head"
            )
    after = warm_head(network, images, model_name)
    if not (close(after.weight, weight) and close(after.bias, bias)):
        raise UserError(f"{model_name} does not return the logits of the head after {layers} got its weights")


@torch.no_grad()
def _assign(model: nn.Module, name: str, rows: Tensor, bias: Tensor | None, features: Tensor) -> bool:
    """Set the weights of a layer; whether it then computes `rows f + bias`."""
    layer: Any = model.get_submodule(name)
    is_computed = parametrize.is_parametrized(layer, "weight")
    if isinstance(layer, nn.Linear) and not is_computed and layer.weight.shape != rows.shape:
        fresh = nn.Linear(rows.shape[1], rows.shape[0], bias=bias is not None, device="meta")
        layer = fresh.to_empty(device=layer.weight.device)
        model.set_submodule(name, layer)
    weight = layer.weight
    if not (is_computed or isinstance(weight, nn.Parameter)):  # torch's old weight_norm
        return False
    for values in (rows, rows.T):
        if values.shape != weight.shape:
            continue
        if is_computed:
            layer.weight = values
        else:
            weight.copy_(values)
        if bias is not None:
            layer.bias.copy_(bias)
        if close(linear(features.float(), rows, bias), layer(features).float()):
            return True
    return False
