"""The champion as a torch model: from images, with its backbone, and as an exported graph.

A model is stored as a graph only, because loading a graph runs no code of the model and does not need this package.

The first `torch.export` imports torch's compiler, which briefly removes modules of the standard library (`_operator`)
from `sys.modules`, so that unpickling in another thread fails. Nothing is exported before training has finished.

Shapes: N images, C channels, H x W pixels, D features, K classes.
"""

from __future__ import annotations

import hashlib
import logging

import torch
from torch import Tensor, nn

from lt_train.backbones.checkpoint import ImageSource, load_frozen
from lt_train.core.errors import UserError, first_line
from lt_train.features.bank import FeatureBank
from lt_train.features.files import read_manifest
from sweeps.config.tracking import Champion, ImageModel

__all__ = ["ImageClassifier", "champion_digest", "image_classifier", "is_exportable"]

logger = logging.getLogger(__name__)

EXPORT_TOLERANCE = 1e-3
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
    transform, mirrored = inputs["transform"], len(bank.test.features) == 2
    module = ImageClassifier(frozen.network, classifier, transform["mean"], transform["std"], mirrored).eval()
    channels, height, width = images.shape
    return ImageModel(module, (height, width, channels))


def champion_digest(champion: Champion, variant: str) -> str:
    """Digest of everything that determines the models: the head's weights, its bank, and what is logged of it."""
    hasher = hashlib.sha256(f"{champion.bank} {variant}".encode())
    for name, tensor in champion.classifier.state_dict().items():
        hasher.update(name.encode() + tensor.numpy().tobytes())
    return hasher.hexdigest()[:16]


def is_exportable(images: ImageModel) -> bool:
    """Whether `torch.export` gives a graph with the same logits, for any number of images; if not, logs a warning."""
    shape = images.shape
    example = torch.zeros(2, *shape, dtype=torch.uint8)
    pixels = torch.arange(3 * shape[0] * shape[1] * shape[2], dtype=torch.int64) * 37 % 256
    others = pixels.to(torch.uint8).view(3, *shape)
    try:
        graph = torch.export.export(images.module, (example,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
        with torch.no_grad():
            expected, found = images.module(others), graph.module()(others)
        same = (found - expected).abs().max() <= EXPORT_TOLERANCE * expected.abs().max()
        problem = "" if same else "the logits of the graph differ"
    except Exception as error:  # of torch, or of the model's own code
        problem = first_line(error)
    if problem:
        logger.warning("the champion is logged without its backbone, which torch cannot export: %s", problem)
    return not problem
