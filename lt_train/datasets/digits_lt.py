"""`digits_lt`: scikit-learn's handwritten digits, cut long-tailed. It comes with the wheel: nothing is downloaded.

Real data at a size for demonstrations and tests: 1797 grey images of 8 x 8 pixels in ten classes.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field

from lt_train.core import seeding
from lt_train.datasets.base import ImageData, Labelled, PadCrop
from lt_train.datasets.longtail import AUGMENTATION, LongTailSpec, cut_longtail

__all__ = ["DigitsLT"]

_TEST_PER_CLASS = 50


class DigitsLT(LongTailSpec):
    """Digits with a balanced test set of 50 a class held out first (UCI optical recognition of handwritten digits)."""

    kind: Literal["digits_lt"] = "digits_lt"
    n_max: Annotated[int, Field(ge=1, le=124, description="training images of class 0, the largest; 124 at most")] = 110
    imbalance_ratio: Annotated[
        float, Field(ge=1, description="largest class size over smallest, n_1 / n_K, >= 1; 1 is balanced")
    ] = 20.0
    val_per_class: Annotated[
        int, Field(ge=0, description="validation images a class; 0 keeps the whole cut for training, without val")
    ] = 14
    augmentation: Annotated[PadCrop, Field(description=AUGMENTATION)] = PadCrop(pad=1, flip=False)

    def load(self) -> ImageData:
        """8 x 8 grey images; the values 0 .. 16 are scaled to 0 .. 255."""
        # Here, not above: importing scikit-learn takes longer than everything `lt-sweep validate` does.
        from sklearn.datasets import load_digits

        digits = load_digits()
        # The file goes from writer to writer. Shuffled once, and always the same way, so that train, val and test are
        # drawn alike: otherwise a validation set says little about the test set.
        order = torch.randperm(len(digits.target), generator=seeding.generator("digits_lt order"))
        images = torch.from_numpy(digits.images).mul(255 / 16).round().to(torch.uint8).unsqueeze(1)[order]
        labels = torch.from_numpy(digits.target).long()[order]
        test, rest = cut_longtail(labels, [_TEST_PER_CLASS] * 10)
        return self.cut(
            Labelled(images[rest], labels[rest]),
            Labelled(images[test], labels[test]),
            num_classes=10,
            mean=(0.3053,),
            std=(0.3760,),
        )
