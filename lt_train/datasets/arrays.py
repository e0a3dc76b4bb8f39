"""`arrays`: your own features or images in one `.npz` or `.safetensors` file, used without a long-tailed cut.

Features need no backbone and become a bank directly. Everything is checked here, so that a bank is always finite,
labelled and complete. Shapes: V views, A test views, N images, D features, K classes.
"""

from __future__ import annotations

import difflib
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field
from safetensors import SafetensorError

from lt_train.core.errors import DataError
from lt_train.core.fields import NOT_IDENTITY, PATH
from lt_train.core.imports import torch
from lt_train.datasets._images.checks import note_untested
from lt_train.datasets.base import DATASETS, DatasetSpec, FeatureData, ImageData, Labelled, PadCrop
from lt_train.datasets.longtail import hold_out_fraction

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Arrays", "features_of"]

_LAYOUT = (
    "features: train_features [N, D] or [V, N, D], train_labels [N], test_features [N, D] or [A, N, D], "
    "test_labels [N], optionally val_features, val_labels, weight [K, D], bias [K]; or images: train_images and "
    "test_images, uint8 [N, H, W] or [N, C, H, W], train_labels and test_labels, optionally val_images and val_labels"
)

_TYPO_CUTOFF = 0.905
"""Similarity from which an unknown name counts as a typo of a known one: `valid_features` does, `all_features` not."""

_CHANNELS = (1, 3, 4)
"""Grey, colour, and colour with alpha: a last axis of this length is taken for channels, not columns."""


def _stem(name: str) -> str:
    """A common form of singular and plural, such as `bias` and `biases`."""
    return name.lower().rstrip("es")


@DATASETS.register
class Arrays(DatasetSpec):
    """Your own features or images in one .npz or .safetensors file, used without a long-tailed cut."""

    kind: Literal["arrays"] = "arrays"
    path: Annotated[str, PATH, NOT_IDENTITY, Field(description=f"an .npz or .safetensors file with {_LAYOUT}")]
    val_fraction: Annotated[
        float,
        Field(
            ge=0,
            lt=1,
            description="share of each class's training images to hold out for validation, at least one image, if "
            "the file has no val_*",
        ),
    ] = 0.2
    augmentation: Annotated[
        PadCrop, Field(description="for images only: augmentation in stage 1 and of the bank's views, {pad, flip}")
    ] = PadCrop(pad=0, flip=False)

    def load(self) -> FeatureData | ImageData:
        """The checked content of the file.

        Raises:
            DataError: the file, a key, a shape, a dtype, a label or a value is wrong; the message names it.
        """
        path = Path(self.path).expanduser()
        arrays = _Arrays(str(path), _read(path))
        if "train_features" in arrays.tensors:
            return _features(arrays, self.val_fraction)
        if "train_images" in arrays.tensors:
            arrays.check_names("images")
            return self._images(arrays)
        held = ", ".join(sorted(arrays.tensors)) or "nothing"
        raise DataError(f"{path} must contain {_LAYOUT}; got {held}")

    def _images(self, arrays: _Arrays) -> ImageData:
        train, test = arrays.images("train"), arrays.images("test")
        val = arrays.images("val") if "val_images" in arrays.tensors else None
        for name, part in (("test", test), ("val", val)):
            if part is not None and part.inputs.shape[1:] != train.inputs.shape[1:]:
                raise DataError(
                    f"{arrays.where}: {name}_images must have the shape {list(train.inputs.shape[1:])} of "
                    f"train_images, got {list(part.inputs.shape[1:])}"
                )
        num_classes = _class_count(train, val, test)
        counts = arrays.check_classes(train, val, test, num_classes)
        notes: tuple[str, ...] = ()
        if val is None:
            kept, held, notes = hold_out_fraction(train.labels, self.val_fraction)
            if held is not None:
                val = Labelled(train.inputs[held], train.labels[held])
                train = Labelled(train.inputs[kept], train.labels[kept])
        std, mean = torch.std_mean(train.inputs.double() / 255, dim=(0, 2, 3), correction=0)
        std = torch.where(std > 0, std, torch.ones_like(std))
        return ImageData(
            train=train,
            val=val,
            test=test,
            num_classes=num_classes,
            split_counts=counts,
            mean=tuple(mean.tolist()),
            std=tuple(std.tolist()),
            augmentation=self.augmentation,
            notes=(*notes, *note_untested(test.labels, num_classes)),
        )


def features_of(tensors: Mapping[str, Tensor], *, val_fraction: float = 0.2) -> FeatureData:
    """Features in memory, checked like those of a file.

    Args:
        tensors: by the names of the dataset `arrays`.
        val_fraction: share of each class's training images to hold out for validation if there is no `val_features`.

    Raises:
        DataError: a name, shape, dtype, label or value is wrong; the message names it.
    """
    return _features(_Arrays("arrays", tensors), val_fraction)


def _features(arrays: _Arrays, val_fraction: float) -> FeatureData:
    arrays.check_names("features", ("weight", "bias"))
    train, test = arrays.features("train"), arrays.features("test")
    val = arrays.features("val") if "val_features" in arrays.tensors else None
    dim = train.inputs.shape[-1]
    head = arrays.head(dim)
    num_classes = _class_count(train, val, test) if head is None else int(head[0].shape[0])
    for name, part in (("test", test), ("val", val)):
        if part is not None and part.inputs.shape[-1] != dim:
            raise DataError(
                f"{arrays.where}: {name}_features must have the {dim} dimensions of train_features, "
                f"got {part.inputs.shape[-1]}"
            )
    counts = arrays.check_classes(train, val, test, num_classes)
    notes: tuple[str, ...] = ()
    if val is None:
        kept, held, notes = hold_out_fraction(train.labels, val_fraction)
        if held is not None:  # validation uses the first view only
            val = Labelled(train.inputs[:1, held], train.labels[held])
            train = Labelled(train.inputs[:, kept], train.labels[kept])
    notes = (*notes, *note_untested(test.labels, num_classes))
    return FeatureData(train, val, test, num_classes, counts, head, notes)


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file.

    Raises:
        DataError: it is missing or cannot be read.
    """
    from safetensors.torch import load_file  # imports torch

    if not path.is_file():
        raise DataError(f"path {path} does not exist; it must name an .npz or .safetensors file")
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                return {name: torch.from_numpy(archive[name]) for name in archive.files}
        if path.suffix == ".safetensors":
            tensors: dict[str, Tensor] = load_file(path)
            return tensors
        raise DataError(f"path must end in .npz or .safetensors, got {path}")
    except (ValueError, TypeError, OSError, EOFError, zipfile.BadZipFile, SafetensorError) as error:
        raise DataError(f"{path} cannot be read ({error}); write it again") from None


class _Arrays:
    """Named tensors, and the checks that each of them must pass. Messages start with `where`."""

    def __init__(self, where: str, tensors: Mapping[str, Tensor]) -> None:
        self.where, self.tensors = where, tensors

    def check_names(self, inputs: str, head: tuple[str, ...] = ()) -> None:
        """Refuse half of a pair and likely typos of missing names; other names are ignored."""
        known = [*(f"{part}_{what}" for part in ("train", "val", "test") for what in (inputs, "labels")), *head]
        names_read = f"recognised names: {', '.join(known)}"
        for half, other in (("val_labels", f"val_{inputs}"), ("bias", "weight")):
            if half in known and half in self.tensors and other not in self.tensors:
                raise DataError(f"{self.where}: {half} requires {other}, which is missing; {names_read}")
        absent = {_stem(name): name for name in known if name not in self.tensors}
        for name in sorted(self.tensors.keys() - {*known}):
            if near := difflib.get_close_matches(_stem(name), absent, n=1, cutoff=_TYPO_CUTOFF):
                raise DataError(
                    f"{self.where}: {name} is not a recognised name; did you mean {absent[near[0]]!r}? Rename or "
                    f"remove it; {names_read}"
                )

    def features(self, part: str) -> Labelled[Tensor]:
        """float32 `[views, N, D]` of one part, all finite, with its labels."""
        name = f"{part}_features"
        features = self._get(name)
        if not features.is_floating_point() or features.dim() not in (2, 3) or 0 in features.shape:
            raise self._wrong(name, "floats [N, D] or [views, N, D], all sizes above 0", features)
        features = self._finite(name, features.float())
        return self._labelled(part, features if features.dim() == 3 else features.unsqueeze(0), axis=1)

    def images(self, part: str) -> Labelled[Tensor]:
        """uint8 `[N, C, H, W]` of one part, with its labels."""
        name = f"{part}_images"
        images = self._get(name)
        if images.dtype != torch.uint8 or images.dim() not in (3, 4) or 0 in images.shape:
            raise self._wrong(name, "uint8 [N, H, W] or [N, C, H, W], all sizes above 0", images)
        if images.dim() == 4 and images.shape[3] in _CHANNELS and images.shape[1] not in _CHANNELS:
            raise self._wrong(
                name, "[N, C, H, W], but its channels appear to be last; transpose to [N, C, H, W]", images
            )
        return self._labelled(part, images if images.dim() == 4 else images.unsqueeze(1), axis=0)

    def head(self, dim: int) -> tuple[Tensor, Tensor] | None:
        """`(weight [K, D], bias [K])`, float32; a missing bias is zero. None without a weight."""
        if "weight" not in self.tensors:
            return None
        weight = self._get("weight")
        if not weight.is_floating_point() or weight.dim() != 2 or weight.shape[1] != dim:
            raise self._wrong("weight", f"floats [K, D] with the D = {dim} of train_features", weight)
        bias = self.tensors.get("bias", torch.zeros(weight.shape[0]))
        if not bias.is_floating_point() or bias.shape != weight.shape[:1]:
            raise self._wrong("bias", f"floats [K] with the K = {weight.shape[0]} of weight", bias)
        return self._finite("weight", weight.float()), self._finite("bias", bias.float())

    def check_classes(
        self, train: Labelled[Tensor], val: Labelled[Tensor] | None, test: Labelled[Tensor], num_classes: int
    ) -> Tensor:
        """int64 `[K]` training counts, after checking that labels are in range and no class is empty."""
        if num_classes < 2:
            raise DataError(f"{self.where}: there must be at least two classes, got {num_classes}")
        for name, part in (("train", train), ("val", val), ("test", test)):
            if part is None:
                continue
            outside = part.labels[(part.labels < 0) | (part.labels >= num_classes)]
            if len(outside):
                raise DataError(
                    f"{self.where}: {name}_labels must be in 0 .. {num_classes - 1}, got {int(outside[0])} "
                    f"({len(outside)} outside)"
                )
        present = train.labels.unique()  # sorted; a bincount would run out of memory if a label is absurdly large
        if len(present) < num_classes:
            gaps = (present != torch.arange(len(present))).nonzero()
            first = int(gaps[0]) if len(gaps) else len(present)
            raise DataError(
                f"{self.where}: every class needs a training image, and class {first} has none "
                f"({num_classes - len(present)} of {num_classes} classes are empty); number the classes without gaps"
            )
        return torch.bincount(train.labels, minlength=num_classes)

    def _labelled(self, part: str, inputs: Tensor, axis: int) -> Labelled[Tensor]:
        name = f"{part}_labels"
        labels = self._get(name)
        integers = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
        if not integers or labels.dim() != 1 or len(labels) != inputs.shape[axis]:
            raise self._wrong(name, f"integers [N] with the N = {inputs.shape[axis]} of its inputs", labels)
        return Labelled(inputs.contiguous(), labels.long())

    def _get(self, name: str) -> Tensor:
        if name not in self.tensors:
            raise DataError(f"{self.where}: {name} is missing; there must be {_LAYOUT}")
        return self.tensors[name]

    def _finite(self, name: str, tensor: Tensor) -> Tensor:
        broken = torch.nonzero(~torch.isfinite(tensor))
        if len(broken):
            raise DataError(
                f"{self.where}: {name} must be finite, got {len(broken)} NaN or infinite values, "
                f"the first at {broken[0].tolist()}"
            )
        return tensor

    def _wrong(self, name: str, rule: str, tensor: Tensor) -> DataError:
        kind = str(tensor.dtype).removeprefix("torch.")
        return DataError(f"{self.where}: {name} must be {rule}, got {kind} {list(tensor.shape)}")


def _class_count(*parts: Labelled[Tensor] | None) -> int:
    return max(int(part.labels.max()) for part in parts if part is not None) + 1
