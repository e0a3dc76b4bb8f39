"""Cutting a long-tailed training set out of a balanced one, and validation sets out of the rest.

Class sizes, the cut and the hold-out are functions of labels alone. `Cut` holds their settings; `LongTailSpec` is the
base of the datasets that are always cut. Shapes: N images, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from lt_train.core import seeding
from lt_train.core.errors import DataError
from lt_train.core.imports import torch
from lt_train.core.registry import Spec
from lt_train.datasets._images.files import Images
from lt_train.datasets.base import DatasetSpec, ImageData, Labelled, PadCrop

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Cut",
    "ImbalanceRatio",
    "LargestClass",
    "LongTailSpec",
    "PadCropField",
    "ValPerClass",
    "class_sizes",
    "cut_longtail",
    "hold_out",
    "hold_out_fraction",
    "split_fraction",
    "take",
]

_NAMED_IN_NOTES = 20

# Annotations of fields, for kinds that have other defaults.
LargestClass = Annotated[int, Field(ge=1, description="training images of class 0, the largest class")]
ImbalanceRatio = Annotated[
    float, Field(ge=1, description="size of the largest class / size of the smallest; 1: balanced")
]
ValPerClass = Annotated[
    int,
    Field(
        ge=0,
        description="validation images per class; 0: no validation set, all images of the cut are used for training",
    ),
]
PadCropField = Annotated[PadCrop, Field(description="augmentation in stage 1 and of the bank's views, {pad, flip}")]


class Cut(Spec):
    """An exponential long tail cut out of a balanced training set, and a validation set out of the rest."""

    n_max: LargestClass
    imbalance_ratio: ImbalanceRatio = 100.0
    val_per_class: ValPerClass = 20
    shuffle_seed: Annotated[
        int | None,
        Field(description="null: use the first n_k images of class k; a seed: shuffle each class before the cut"),
    ] = None

    def split(
        self, pool: Labelled[Images], num_classes: int
    ) -> tuple[Labelled[Images], Labelled[Images] | None, Tensor, tuple[str, ...]]:
        """`(train, val, sizes, notes)`; `sizes` is int64 `[K]`, the training images before any hold-out.

        Raises:
            DataError: a class has too few images for the cut.
        """
        sizes = class_sizes(self.n_max, self.imbalance_ratio, num_classes)
        chosen, left_over = cut_longtail(pool.labels, sizes, self.shuffle_seed)
        train, val, notes = hold_out(pool.labels, chosen, left_over, self.val_per_class)
        return take(pool, train), None if val is None else take(pool, val), torch.tensor(sizes), notes


class LongTailSpec(Cut, DatasetSpec):
    """Base of the datasets that are always cut: the fields of `Cut` are fields of the dataset."""

    n_max: LargestClass = 500
    augmentation: PadCropField = PadCrop(pad=4, flip=True)

    def cut(
        self,
        pool: Labelled[Images],
        test: Labelled[Images],
        num_classes: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        notes: Sequence[str] = (),
    ) -> ImageData:
        """The long-tailed dataset cut from `pool`; `test` is used unchanged.

        Raises:
            DataError: a class has too few images for the cut.
        """
        train, val, sizes, val_notes = self.split(pool, num_classes)
        return ImageData(
            train=train,
            val=val,
            test=test,
            num_classes=num_classes,
            split_counts=sizes,
            mean=mean,
            std=std,
            augmentation=self.augmentation,
            notes=(*notes, *val_notes),
        )


def class_sizes(n_max: int, imbalance_ratio: float, num_classes: int) -> list[int]:
    """Images per class: `int(n_max * (1/IR)^(k/(K-1)))` for k = 0 .. K-1, in the common code's order of operations.

    Source: Cui et al. 2019 and every CIFAR-LT reader since. IR 100, K 100, n_max 500 gives 10847 images.

    Raises:
        DataError: the smallest class would be empty.
    """
    factor = 1 / imbalance_ratio
    sizes = [int(n_max * factor ** (k / max(num_classes - 1.0, 1.0))) for k in range(num_classes)]
    if min(sizes) < 1:
        raise DataError(
            f"every class needs a training image, and class {sizes.index(0)} gets none from n_max {n_max} with "
            f"imbalance_ratio {imbalance_ratio:g}; raise n_max to at least the imbalance_ratio or lower the ratio"
        )
    return sizes


def cut_longtail(labels: Tensor, sizes: Sequence[int], shuffle_seed: int | None = None) -> tuple[Tensor, Tensor]:
    """Indices of the first `sizes[k]` images of every class k, and of the remaining images.

    Args:
        labels: int64 `[N]` in 0 .. K-1.
        sizes: K numbers, each >= 1.
        shuffle_seed: None keeps the order of the files (the paper's code); a seed shuffles each class first.

    Returns:
        `(chosen, left_over)`, int64 indices into `labels`, class by class.

    Raises:
        DataError: a class has fewer images than its size; the first such class is named.
    """
    chosen, left_over = [], []
    for k, size in enumerate(sizes):
        members = torch.nonzero(labels == k).flatten()
        if len(members) < size:
            have = "no image" if len(members) == 0 else f"only {len(members)} images"
            raise DataError(f"class {k} needs {size} training images and has {have}; lower n_max")
        if shuffle_seed is not None:
            stream = seeding.generator("longtail cut", shuffle_seed, k)
            members = members[torch.randperm(len(members), generator=stream)]
        chosen.append(members[:size])
        left_over.append(members[size:])
    return torch.cat(chosen), torch.cat(left_over)


def hold_out(
    labels: Tensor, chosen: Tensor, left_over: Tensor, val_per_class: int
) -> tuple[Tensor, Tensor | None, tuple[str, ...]]:
    """A validation set of `val_per_class` images per class, from the images left over where there are enough.

    If too few images of a class are left over, the rest is held out from its training images, evenly spaced among them:
    at most a fifth, so never the last one. The training set then differs from the published one, which a note reports.

    Args:
        labels: int64 `[N]` of the pool.
        chosen: int64 indices into it, the training images, from `cut_longtail`.
        left_over: int64 indices into it, the rest.
        val_per_class: 0 gives no validation set and leaves the training set unchanged.

    Returns:
        `(train, val, notes)`: indices into the pool, None for an empty validation set.
    """
    if val_per_class == 0:
        return chosen, None, ()
    train, val, taken, short = [], [], [], []
    for k in torch.unique(labels[chosen]).tolist():
        members = chosen[labels[chosen] == k]
        spare = left_over[labels[left_over] == k][:val_per_class]
        held = _spread(len(members), min(val_per_class - len(spare), len(members) // 5))
        train.append(members[~held])
        val += [spare, members[held]]
        if held.any():
            taken.append(f"class {k}: {int(held.sum())} of {len(members)}")
        if len(spare) + int(held.sum()) < val_per_class:
            short.append(f"class {k}: {len(spare) + int(held.sum())}")
    notes = []
    if taken:
        notes.append(
            f"validation images were held out from training where fewer than val_per_class {val_per_class} were "
            f"left over ({_listed(taken)}); training counts differ from the published ones: "
            f"{sum(map(len, train))} images instead of {len(chosen)}. val_per_class: 0 keeps the published counts"
        )
    if short:
        notes.append(f"some classes have fewer than val_per_class {val_per_class} validation images: {_listed(short)}")
    val_indices = torch.cat(val)
    return torch.cat(train), (val_indices if len(val_indices) else None), tuple(notes)


def hold_out_fraction(labels: Tensor, fraction: float) -> tuple[Tensor, Tensor | None, tuple[str, ...]]:
    """A stratified hold-out of `int(fraction * n_k)` images of every class k, evenly spaced among them.

    Every class gives at least one image but keeps at least one; a note names the classes that have only one.

    Args:
        labels: int64 `[N]`, all of them training images.
        fraction: in [0, 1); 0 gives no validation set.

    Returns:
        `(train, val, notes)`: indices in ascending order, None for an empty validation set.
    """
    if fraction == 0:
        return torch.arange(len(labels)), None, ()
    held = torch.zeros(len(labels), dtype=torch.bool)
    without = []
    counts = torch.bincount(labels)
    # Sorted once: iNaturalist has too many classes to scan all labels for each.
    for k, members in enumerate(torch.argsort(labels, stable=True).split(counts.tolist())):
        if not len(members):
            continue
        take = min(max(int(fraction * len(members)), 1), len(members) - 1)
        held[members[_spread(len(members), take)]] = True
        if take == 0:
            without.append(f"class {k}")
    if not held.any():
        note = "no validation set was given, and none could be held out: every class has one training image"
        return torch.arange(len(labels)), None, (note,)
    note = (
        f"no validation set was given, so {int(held.sum())} of {len(labels)} training images were held out as one "
        f"(val_fraction {fraction:g} of every class, rounded down, but at least one image); val_fraction: 0 keeps "
        "them all for training"
    )
    if without:
        note += f". Classes without a validation image, because they have only one image: {_listed(without)}"
    return torch.nonzero(~held).flatten(), torch.nonzero(held).flatten(), (note,)


def _spread(count: int, take: int) -> Tensor:
    """A bool mask `[count]` with `take` evenly spaced True values; `take` must be below `count`, or both 0."""
    mask = torch.zeros(count, dtype=torch.bool)
    mask[[(2 * i + 1) * count // (2 * take) for i in range(take)]] = True
    return mask


def _listed(parts: list[str]) -> str:
    more = len(parts) - _NAMED_IN_NOTES
    return "; ".join(parts[:_NAMED_IN_NOTES]) + (f"; and {more} more classes" if more > 0 else "")


def split_fraction(
    pool: Labelled[Images], fraction: float
) -> tuple[Labelled[Images], Labelled[Images] | None, tuple[str, ...]]:
    """`(train, val, notes)` of `hold_out_fraction` as images."""
    kept, held, notes = hold_out_fraction(pool.labels, fraction)
    return (pool, None, notes) if held is None else (take(pool, kept), take(pool, held), notes)


def take(pool: Labelled[Images], indices: Tensor) -> Labelled[Images]:
    """The images at `indices`, int64 or bool; images in files stay there."""
    inputs = pool.inputs[indices] if isinstance(pool.inputs, torch.Tensor) else pool.inputs.take(indices)
    return Labelled(inputs, pool.labels[indices])
