"""`check_backbone`: the network that a backbone builds.

Shapes: B images, C channels, H x W pixels, D features.
"""

from __future__ import annotations

import torch

from lt_train.backbones.base import BackboneSpec
from lt_train.core.seeding import generator
from lt_train.testing.kinds import check_kind

__all__ = ["check_backbone"]


def check_backbone(
    backbone: BackboneSpec | type[BackboneSpec], *, channels: tuple[int, ...] = (1, 3), size: int = 32
) -> None:
    """Check a backbone, newly initialised.

    - `check_kind`.
    - `build` takes the number of channels and states the number of features.
    - Gradients reach every parameter. In evaluation mode, the features of an image are finite, the same again, and do
      not depend on the other images.
    - The state of a network can be loaded into another one, which then computes the same features.

    Args:
        backbone: an instance, or a class whose fields have defaults.
        channels: numbers of channels of images that it must accept.
        size: height and width of the images, in pixels.

    Raises:
        AssertionError: a requirement is not met.
    """
    checked = check_kind(backbone, BackboneSpec)
    for count in channels:
        _check_network(checked, count, size)


def _check_network(backbone: BackboneSpec, channels: int, size: int) -> None:
    name = type(backbone).__name__
    network, dim = backbone.build(channels)
    images = torch.randn(4, channels, size, size, generator=generator("images"))
    features = network(images)
    assert tuple(features.shape) == (4, dim), (
        f"{name}.build states {dim} features, so its network must return {(4, dim)} for 4 images of shape "
        f"{tuple(images.shape[1:])}, got {tuple(features.shape)}"
    )
    features.square().sum().backward()
    for key, parameter in network.named_parameters():
        reached = parameter.grad is not None and bool(parameter.grad.isfinite().all())
        assert reached or not parameter.requires_grad, f"{name}: the parameter {key} has no finite gradient"
    network.eval()
    with torch.no_grad():
        features = network(images)
        assert bool(features.isfinite().all()), f"{name}: the features are not finite"
        assert torch.equal(network(images), features), f"{name}: evaluating an image again gives other features"
        largest = 1e-4 * float(features.abs().max())
        alone = network(images[1:2])
        assert torch.allclose(alone, features[1:2], rtol=1e-4, atol=largest), (
            f"{name}: in evaluation mode the features of an image must not depend on the other images"
        )
        other, _ = backbone.build(channels)
        other.load_state_dict(network.state_dict())
        assert torch.equal(other.eval()(images), features), (
            f"{name}: a network with the same state computes other features; keep all that they depend on in the state"
        )
