"""A trained head with its backbone as one network from images to logits, and its graph as `torch.export` makes it.

The first `torch.export` imports torch's compiler, which briefly removes modules of the standard library (`_operator`)
from `sys.modules`, so that unpickling in another thread fails. Nothing is exported before training has finished.

Shapes: N images, C channels, H x W pixels, D features, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lt_train.backbones.base import FrozenBackbone
from lt_train.backbones.checkpoint import ImageSource, load_frozen
from lt_train.core.errors import CheckpointError, LongtailError, UserError
from lt_train.features.bank import FeatureBank
from lt_train.features.files import read_manifest
from sweeps.config.interfaces import ImageModel
from sweeps.store.layout import CACHE

if TYPE_CHECKING:
    from sweeps.analysis.load import Sweep

__all__ = [
    "ImageClassifier",
    "backbone_of",
    "example_images",
    "exported_graph",
    "image_classifier",
    "with_backbone",
]

TOLERANCE = 1e-3
"""Largest difference between logits of the graph and of the module, as a share of the largest logit."""


class ImageClassifier(nn.Module):
    """Logits of images as in the sweep's evaluation on test: normalisation, backbone, classifier.

    With `mirrored`, the logits are the mean over an image and its mirror image.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        classifier: nn.Module,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        mirrored: bool,
    ) -> None:
        super().__init__()
        self.backbone, self.classifier, self.mirrored = backbone, classifier, mirrored
        self.register_buffer("mean", 255 * torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(std).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Map uint8 `[N, H, W, C]`, the layout of Pillow and numpy, to float32 `[N, K]`."""
        normalised = (images.permute(0, 3, 1, 2).float() - self.mean) / self.std
        logits: Tensor = self.classifier(self.backbone(normalised))
        if self.mirrored:
            logits = (logits + self.classifier(self.backbone(normalised.flip(-1)))) / 2
        return logits


def image_classifier(classifier: nn.Module, bank: FeatureBank, images: ImageSource | None) -> ImageModel | None:
    """The classifier with the backbone of its bank; None if the backbone's checkpoint is missing or has changed."""
    if images is None or bank.path is None:
        return None
    inputs = read_manifest(bank.path).inputs
    try:
        frozen = load_frozen(images.backbone, images.shape)
    except UserError:  # the file was removed while the sweep ran
        return None
    if frozen.identity["checkpoint"] != inputs["checkpoint"]:
        return None
    return with_backbone(classifier, frozen, inputs, images.shape)


def with_backbone(
    classifier: nn.Module, frozen: FrozenBackbone, inputs: Mapping[str, Any], shape: tuple[int, int, int]
) -> ImageModel:
    """The classifier with a backbone.

    Args:
        classifier: `[N, D] -> [N, K]`.
        frozen: the backbone.
        inputs: `Manifest.inputs` of the bank that the classifier was trained on.
        shape: `(C, H, W)` of the images.
    """
    transform, (channels, height, width) = inputs["transform"], shape
    module = ImageClassifier(frozen.network, classifier, transform["mean"], transform["std"], inputs["test_flip"])
    return ImageModel(module.eval(), (height, width, channels))


def backbone_of(sweep: Sweep) -> tuple[FrozenBackbone, ImageSource]:
    """The backbone that computed the features of a sweep, and where it comes from; the data are not read.

    Raises:
        UserError: the features were given; the storage no longer has the feature bank; or the checkpoint is missing or
            is not the one that computed the features.
    """
    if sweep.spec.backbone is None:
        raise UserError(f"sweep {sweep.spec.name} was run on given features, so it has no backbone and takes no images")
    if sweep.manifest is None:
        raise UserError(
            f"the storage has no readable feature bank {sweep.bank[:12]} of this sweep, which describes its backbone; "
            f"`lt-sweep resume {sweep.path}` creates it again"
        )
    wanted = sweep.manifest.inputs["checkpoint"]
    shape = sweep.spec.dataset.image_shape()
    assert shape is not None, "a sweep with a backbone has images"
    given = sweep.spec.backbone
    cache = Path(sweep.spec.storage) / CACHE / "checkpoints"
    sources = [given] if given.checkpoint is not None else sorted(cache.glob(f"{given.kind}-*.safetensors"))
    for source in sources:
        try:
            frozen = load_frozen(source, shape)
        except CheckpointError:
            if source is given:
                raise
            continue  # one of another sweep is damaged
        if frozen.identity["checkpoint"] == wanted:
            if frozen.identity.get("code") != sweep.manifest.inputs.get("code"):
                raise CheckpointError(
                    f"the code of {', '.join(frozen.identity.get('code', ()))} has changed since the sweep extracted "
                    "features with it; restore it, or run the sweep again under another name"
                )
            return frozen, ImageSource(source, shape)
    if given.checkpoint is not None:
        raise CheckpointError(
            f"checkpoint {given.checkpoint} has changed since the sweep extracted features with it; put the file back"
        )
    raise CheckpointError(
        f"{cache} no longer has the backbone of sweep {sweep.spec.name}; run the sweep again under another name to "
        "train it again"
    )


def exported_graph(module: nn.Module, example: Tensor, other: Tensor) -> torch.export.ExportedProgram:
    """The graph of a module for any number of rows, without traces of its source.

    Args:
        module: `[N, ...] -> [N, K]`, in evaluation mode.
        example: an input with two rows.
        other: an input with another number of rows, for which graph and module are compared.

    Raises:
        LongtailError: the logits of the graph differ.
        Exception: anything that torch, or the module's own code, raises.
    """
    graph = torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    with torch.no_grad():
        expected, found = module(other), graph.module()(other)
    if not (found - expected).abs().max() <= TOLERANCE * expected.abs().max():
        raise LongtailError("the logits of the graph differ")
    for node in graph.graph.nodes:
        node.meta.pop("stack_trace", None)  # it has paths of this machine
    return graph


def example_images(shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Two and three images `(H, W, C)` for `exported_graph`."""
    count = 3 * shape[0] * shape[1] * shape[2]
    pixels = torch.arange(count, dtype=torch.int64) * 37 % 256
    return torch.zeros(2, *shape, dtype=torch.uint8), pixels.to(torch.uint8).view(3, *shape)
