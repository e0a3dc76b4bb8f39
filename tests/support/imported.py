"""What tests of models of others share: images, a checkpoint, the bank of both, and what the model itself says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lt_train.backbones.base import BACKBONES
from lt_train.datasets._images.transform import normalise
from lt_train.datasets.base import DATASETS, DatasetSpec, ImageData
from lt_train.features.bank import FeatureBank
from lt_train.features.extract import FeaturesSpec, build_bank
from lt_train.features.files import open_bank

__all__ = [
    "CLASSES",
    "MEAN",
    "RESNET",
    "load",
    "make_bank",
    "own_output",
    "save_theirs",
    "scrambled",
    "theirs",
    "warm_logits",
    "write_arrays",
]

CLASSES = 5
RESNET = {"kind": "imported", "factory": "torchvision:resnet18", "arguments": {"num_classes": CLASSES}}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def write_arrays(path: Path, channels: int = 3, size: int = 32) -> DatasetSpec:
    """Noise of five classes; the test images are the training images backwards."""
    rng = np.random.default_rng(0)
    labels = np.arange(2 * CLASSES) % CLASSES
    images = rng.integers(0, 256, (len(labels), channels, size, size), dtype=np.uint8)
    np.savez(path, train_images=images, train_labels=labels, test_images=images[::-1], test_labels=labels[::-1])
    return DATASETS.parse({"kind": "arrays", "path": str(path), "val_fraction": 0})


def load(dataset: DatasetSpec) -> ImageData:
    """The images."""
    data = dataset.load()
    assert isinstance(data, ImageData)
    return data


def scrambled(model: nn.Module) -> nn.Module:
    """The model with no weight left at zero and batch norm statistics of their own, as after training."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator)
            tensor.add_(noise.abs() if name.endswith("running_var") else 0.02 * noise)
    return model


def save_theirs(model: nn.Module, place: Path) -> nn.Module:
    """The model scrambled, and its weights as `theirs.safetensors` in `place`."""
    save_file(scrambled(model).state_dict(), place / "theirs.safetensors")
    return model


def own_output(model: nn.Module, dataset: DatasetSpec) -> Any:
    """What the model itself says of the test images, in the layout and the batch that features are taken in."""
    channels = load(dataset).test.inputs.expand(-1, 3, -1, -1)
    inputs = normalise(channels, MEAN, STD).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        output = model.eval().to(memory_format=torch.channels_last)(inputs)  # type: ignore[call-overload]
    return output["logits"] if isinstance(output, dict) else output


def warm_logits(bank: FeatureBank) -> Tensor:
    """What the bank's own head says of its test images."""
    assert bank.head is not None
    return nn.functional.linear(bank.test.features[0], *bank.head)


def make_bank(dataset: DatasetSpec, store: Path, **fields: Any) -> FeatureBank:
    """The bank of a torchvision resnet18 or of what `fields` say, without mirrors."""
    backbone = BACKBONES.parse(RESNET | fields)
    return open_bank(build_bank(dataset, backbone, FeaturesSpec(test_flip=False), store))


def theirs(place: Path, name: str, arguments: dict[str, Any] | None = None, **fields: Any) -> FeatureBank:
    """The bank of small images through a model of `their_models`, with the weights that `save_theirs` left there."""
    model = {"factory": f"support.their_models:{name}", "arguments": arguments or {}}
    model["checkpoint"] = str(place / "theirs.safetensors")
    return make_bank(write_arrays(place / "small.npz", size=8), place / "banks", **model | fields)
