"""Shared by the tests of imported models: images, a checkpoint, the feature bank of both, the model's own output."""

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
from lt_train.features.extract import build_bank
from lt_train.features.files import open_bank
from lt_train.features.spec import FeaturesSpec

__all__ = [
    "CLASSES",
    "MEAN",
    "RESNET",
    "external_bank",
    "load",
    "make_bank",
    "own_output",
    "save_external",
    "scrambled",
    "warm_logits",
    "write_arrays",
]

CLASSES = 5
RESNET = {"kind": "imported", "factory": "torchvision:resnet18", "arguments": {"num_classes": CLASSES}}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def write_arrays(path: Path, channels: int = 3, size: int = 32) -> DatasetSpec:
    """Noise images of five classes; the test images are the training images in reverse order."""
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
    """The model with nonzero weights and batch norm statistics, as after training."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator)
            tensor.add_(noise.abs() if name.endswith("running_var") else 0.02 * noise)
    return model


def save_external(model: nn.Module, folder: Path) -> nn.Module:
    """The model scrambled, and its weights as `external.safetensors` in `folder`."""
    save_file(scrambled(model).state_dict(), folder / "external.safetensors")
    return model


def own_output(model: nn.Module, dataset: DatasetSpec) -> Any:
    """The model's own output for the test images, in the memory layout and batch of feature extraction."""
    channels = load(dataset).test.inputs.expand(-1, 3, -1, -1)
    inputs = normalise(channels, MEAN, STD).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        output = model.eval().to(memory_format=torch.channels_last)(inputs)  # type: ignore[call-overload]
    return output["logits"] if isinstance(output, dict) else output


def warm_logits(bank: FeatureBank) -> Tensor:
    """The logits of the bank's head on its test images."""
    assert bank.head is not None
    return nn.functional.linear(bank.test.features[0], *bank.head)


def make_bank(dataset: DatasetSpec, store: Path, **fields: Any) -> FeatureBank:
    """The bank of a torchvision resnet18, or of the model given by `fields`, without flipped views."""
    backbone = BACKBONES.parse(RESNET | fields)
    return open_bank(build_bank(dataset, backbone, FeaturesSpec(test_flip=False), store))


def external_bank(folder: Path, name: str, arguments: dict[str, Any] | None = None, **fields: Any) -> FeatureBank:
    """The bank of small images through a model of `external_models`, with the weights that `save_external` wrote."""
    model = {"factory": f"support.external_models:{name}", "arguments": arguments or {}}
    model["checkpoint"] = str(folder / "external.safetensors")
    return make_bank(write_arrays(folder / "small.npz", size=8), folder / "banks", **model | fields)
