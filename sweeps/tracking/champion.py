"""The winner's classifier as others load it: from features, and from images with the backbone that made the features.

Touch this to change what a champion takes and returns. Knows banks and backbones; nothing of who keeps models.
Shapes: N images, C channels, H x W pixels, D features, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lt_train.backbones.frozen import ImageSource, load_frozen
from lt_train.core.errors import UserError
from lt_train.features.bank import FeatureBank
from lt_train.features.files import read_manifest
from sweeps.config.tracking import ImageModel

__all__ = ["ImageClassifier", "image_classifier"]


class ImageClassifier(nn.Module):
    """Logits of images as the sweep scores its test set: normalised, through the backbone and the classifier.

    With `mirrored` the logits are the mean over an image and its mirror image.
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
        """Uint8 `[N, H, W, C]`, as Pillow and numpy hold images, to float32 `[N, K]`."""
        normalised = (images.permute(0, 3, 1, 2).float() - self.mean) / self.std
        logits: Tensor = self.classifier(self.backbone(normalised))
        if self.mirrored:
            logits = (logits + self.classifier(self.backbone(normalised.flip(-1)))) / 2
        return logits


def image_classifier(classifier: nn.Module, bank: FeatureBank, images: ImageSource | None) -> ImageModel | None:
    """The classifier behind the backbone of its bank; None where the backbone is not to be had any more."""
    if images is None or bank.path is None:
        return None
    inputs = read_manifest(bank.path).inputs
    try:
        frozen = load_frozen(images.backbone, images.shape)
    except UserError:  # the file was taken away while the sweep ran
        return None
    if frozen.identity["checkpoint"] != inputs["checkpoint"]:  # or replaced by another
        return None
    transform, mirrored = inputs["transform"], len(bank.test.features) == 2
    module = ImageClassifier(frozen.network, classifier, transform["mean"], transform["std"], mirrored).eval()
    channels, height, width = images.shape
    return ImageModel(module, (height, width, channels))
