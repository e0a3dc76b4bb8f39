"""Loading the frozen network that a bank is extracted with, from a checkpoint or from a backbone that names one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from lt_train.backbones.base import BackboneSpec, FrozenBackbone
from lt_train.backbones.checkpoint import load_checkpoint
from lt_train.core.errors import CheckpointError
from lt_train.core.io import sha256_file

__all__ = ["ImageSource", "load_frozen"]


def load_frozen(source: Path | BackboneSpec, image_shape: tuple[int, int, int]) -> FrozenBackbone:
    """The network of a checkpoint of `lt-train backbone`, or of a backbone and the checkpoint that it names.

    Args:
        source: the checkpoint or the backbone.
        image_shape: `(C, H, W)` of the images to process.

    Raises:
        CheckpointError: the file is missing, damaged or of another backbone.
        UserError: see `BackboneSpec.read_checkpoint`.
    """
    if isinstance(source, BackboneSpec):
        if source.checkpoint is None:
            raise CheckpointError(f"backbone {source.kind} has no weights; give it a checkpoint")
        if (frozen := source.read_checkpoint(image_shape)) is not None:
            _freeze(frozen.network)
            return frozen
        path = Path(source.checkpoint).expanduser()
    else:
        path = source.expanduser()
    classifier, about = load_checkpoint(path)
    if isinstance(source, BackboneSpec):
        _refuse_other(source, about["backbone"], path)
    _freeze(classifier.backbone)
    return FrozenBackbone(
        network=classifier.backbone,
        feature_dim=classifier.feature_dim,
        head=classifier.linear_head(),
        in_channels=classifier.in_channels,
        mean=about.get("mean"),
        std=about.get("std"),
        identity={"backbone": about["backbone"], "checkpoint": sha256_file(path)},
        display_name=f"checkpoint {path}",
        remedy="train one on this dataset with `lt-train backbone`",
        record={name: about[name] for name in ("recipe", "seed", "accuracy", "curve") if name in about},
    )


def _refuse_other(wanted: BackboneSpec, found: Mapping[str, Any], path: Path) -> None:
    """Refuse a checkpoint of another kind of backbone or another imported model than `wanted`."""
    for name in ("kind", "factory"):
        expected = getattr(wanted, name, None)
        if expected is not None and expected != found.get(name):
            raise CheckpointError(
                f"checkpoint {path} was trained with another backbone: {name} must be {expected}, got "
                f"{found.get(name)}; change the backbone or the checkpoint"
            )


def _freeze(network: nn.Module) -> None:
    """Set evaluation mode and replace parametrized weights by their values, so that the network can be pickled."""
    network.eval()  # in train mode, some parametrizations change at every access
    for module in list(network.modules()):
        if parametrize.is_parametrized(module):
            for name in list(module.parametrizations):  # type: ignore[arg-type]
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)


@dataclass(frozen=True)
class ImageSource:
    """The source of a bank's features: the backbone, and the shape `(C, H, W)` of its images."""

    backbone: Path | BackboneSpec
    shape: tuple[int, int, int]
