"""From what a user names, a checkpoint or a backbone with one, to the frozen network that a bank is extracted with.

Knows backbones and their files; knows nothing of data beyond the shape of an image.
"""

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
        source: the file, or the backbone.
        image_shape: `(C, H, W)` of the images that it is for.

    Raises:
        CheckpointError: the file is missing or damaged, or not the backbone's.
        UserError: what the backbone's kind refuses.
    """
    if isinstance(source, BackboneSpec):
        if source.checkpoint is None:
            raise CheckpointError(f"backbone {source.kind} has no weights; give it a checkpoint")
        if (frozen := source.read_checkpoint(image_shape)) is not None:
            _settle(frozen.network)
            return frozen
        path = Path(source.checkpoint).expanduser()
    else:
        path = source.expanduser()
    classifier, about = load_checkpoint(path)
    if isinstance(source, BackboneSpec):
        _refuse_other(source, about["backbone"], path)
    _settle(classifier.backbone)
    return FrozenBackbone(
        network=classifier.backbone,
        feature_dim=classifier.feature_dim,
        head=classifier.linear_head(),
        in_channels=classifier.in_channels,
        mean=about.get("mean"),
        std=about.get("std"),
        identity={"backbone": about["backbone"], "checkpoint": sha256_file(path)},
        called=f"checkpoint {path}",
        remedy="train one on this dataset with `lt-train backbone`",
        record={name: about[name] for name in ("recipe", "seed", "accuracy", "curve") if name in about},
    )


def _refuse_other(wanted: BackboneSpec, found: Mapping[str, Any], path: Path) -> None:
    """Refuse a checkpoint of another backbone than the one that was asked for: another kind, or model."""
    for name in ("kind", "factory"):
        asked = getattr(wanted, name, None)
        if asked is not None and asked != found.get(name):
            raise CheckpointError(
                f"checkpoint {path} is of another backbone: {name} must be {asked}, got {found.get(name)}; "
                "name that one, or another checkpoint"
            )


def _settle(network: nn.Module) -> None:
    """Put what parametrizations make of weights in their place: they are frozen, and so the network can travel."""
    network.eval()  # in training, some change with every look at them
    for module in list(network.modules()):
        if parametrize.is_parametrized(module):
            for name in list(module.parametrizations):  # type: ignore[arg-type]
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)


@dataclass(frozen=True)
class ImageSource:
    """Where a bank's features come from: the backbone, and `(C, H, W)` of the images it takes."""

    backbone: Path | BackboneSpec
    shape: tuple[int, int, int]
