"""Cutting a long-tailed training set out of a balanced one, and a validation set out of what is left.

Class sizes, the cut and the hold-out are functions of labels alone. `Cut` are their settings as a part of a dataset's;
`LongTailSpec` has them as fields of its own, and the assembly that every such dataset shares. It knows nothing of
files: a dataset kind reads its own and calls `cut`.
Shapes: N images, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from lt_train.core import seeding
from lt_train.core.errors import DataError
from lt_train.core.registry import Spec
from lt_train.datasets._images.files import Images
from lt_train.datasets.base import DatasetSpec, ImageData, Labelled, PadCrop

__all__ = [
    "AUGMENTATION",
    "Cut",
    "LongTailSpec",
    "class_sizes",
    "cut_longtail",
    "hold_out",
    "hold_out_fraction",
    "take",
]

AUGMENTATION = "what stage 1 and the views of a bank apply, {pad, flip}"
"""What the field of this name says of itself, wherever its default differs."""

_NAMED_IN_NOTES = 20


class Cut(Spec):
    """An exponential long tail cut out of a balanced training set, and a validation set out of what is left."""

    n_max: Annotated[int, Field(ge=1, description="training images of class 0, the largest")]
    imbalance_ratio: Annotated[
        float, Field(ge=1, description="largest class size over smallest, n_1 / n_K, >= 1; 1 is balanced")
    ] = 100.0
    val_per_class: Annotated[
        int, Field(ge=0, description="validation images a class; 0 keeps the whole cut for training, without val")
    ] = 20
    shuffle_seed: Annotated[
        int | None,
        Field(description="null takes the first n_k images of class k; a seed shuffles each class before the cut"),
    ] = None

    def __call__(
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


class LongTailSpec(DatasetSpec):
    """Base of the datasets that are cut exponentially; a kind narrows the defaults."""

    n_max: Annotated[int, Field(ge=1, description="training images of class 0, the largest")] = 500
    imbalance_ratio: Annotated[
        float, Field(ge=1, description="largest class size over smallest, n_1 / n_K, >= 1; 1 is balanced")
    ] = 100.0
    val_per_class: Annotated[
        int, Field(ge=0, description="validation images a class; 0 keeps the published training set, without val")
    ] = 20
    shuffle_seed: Annotated[
        int | None,
        Field(description="null takes the first n_k images of class k; a seed shuffles each class before the cut"),
    ] = None
    augmentation: Annotated[PadCrop, Field(description=AUGMENTATION)] = PadCrop(pad=4, flip=True)

    def cut(
        self,
        pool: Labelled[Images],
        test: Labelled[Images],
        num_classes: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        notes: Sequence[str] = (),
    ) -> ImageData:
        """The long-tailed dataset cut from `pool`, with `test` as it is.

        Raises:
            DataError: a class has too few images for the cut.
        """
        fields = Cut.model_fields.keys()
        train, val, sizes, val_notes = Cut(**{name: getattr(self, name) for name in fields})(pool, num_classes)
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
    """Images a class: `int(n_max * (1/IR)^(k/(K-1)))` for k = 0 .. K-1, in the common code's order of operations.

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
    """Indices of the `sizes[k]` first images of every class k, and of what is left over.

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
    """A validation set of `val_per_class` images a class, from the left-over where that suffices.

    What a class is short of is held out from its own training images, evenly spaced among them: at most a fifth, so
    never the last one. The training set then differs from the published one, and a note says so.

    Args:
        labels: int64 `[N]` of the pool.
        chosen: int64 indices into it, the training images, from `cut_longtail`.
        left_over: int64 indices into it, the rest.
        val_per_class: 0 gives no validation set and leaves the training set alone.

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
        notes.append(f"fewer than val_per_class {val_per_class} validation images could be found: {_listed(short)}")
    val_indices = torch.cat(val)
    return torch.cat(train), (val_indices if len(val_indices) else None), tuple(notes)


def hold_out_fraction(labels: Tensor, fraction: float) -> tuple[Tensor, Tensor | None, tuple[str, ...]]:
    """A stratified hold-out of `int(fraction * n_k)` images of every class k, evenly spaced among them.

    Every class gives at least one, and none gives its last one; the note names the classes that have one only.

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
    # Sorted once: iNaturalist has too many classes to look through all labels for each.
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
        f"(val_fraction {fraction:g} of every class, rounded down, and at least one); val_fraction: 0 keeps them "
        "all for training"
    )
    if without:
        note += f". Without a validation image, because they have one image only: {_listed(without)}"
    return torch.nonzero(~held).flatten(), torch.nonzero(held).flatten(), (note,)


def _spread(count: int, take: int) -> Tensor:
    """A bool mask `[count]` with `take` evenly spaced True values; `take` must be below `count`, or both 0."""
    mask = torch.zeros(count, dtype=torch.bool)
    mask[[(2 * i + 1) * count // (2 * take) for i in range(take)]] = True
    return mask


def _listed(parts: list[str]) -> str:
    more = len(parts) - _NAMED_IN_NOTES
    return "; ".join(parts[:_NAMED_IN_NOTES]) + (f"; and {more} more classes" if more > 0 else "")


def take(pool: Labelled[Images], indices: Tensor) -> Labelled[Images]:
    """The images at `indices`, int64 or bool; those in files stay there."""
    inputs = pool.inputs[indices] if isinstance(pool.inputs, Tensor) else pool.inputs.take(indices)
    return Labelled(inputs, pool.labels[indices])
