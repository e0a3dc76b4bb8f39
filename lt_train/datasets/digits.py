"""`digits_lt`: scikit-learn's handwritten digits, cut long-tailed.

A small real dataset for demonstrations and tests: 1797 grey images of 8 x 8 pixels in ten classes. It is part of the
scikit-learn package, so nothing is downloaded.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from lt_train.core import seeding
from lt_train.core.imports import torch
from lt_train.datasets.base import DATASETS, ImageData, Labelled, PadCrop
from lt_train.datasets.longtail import (
    ImbalanceRatio,
    LargestClass,
    LongTailSpec,
    PadCropField,
    ValPerClass,
    cut_longtail,
)

__all__ = ["DigitsLT"]


_TEST_PER_CLASS = 50


@DATASETS.register
class DigitsLT(LongTailSpec):
    """UCI optical recognition of handwritten digits; a balanced test set of 50 images per class is held out first."""

    kind: Literal["digits_lt"] = "digits_lt"
    n_max: Annotated[LargestClass, Field(le=124)] = 110
    imbalance_ratio: ImbalanceRatio = 20.0
    val_per_class: ValPerClass = 14
    augmentation: PadCropField = PadCrop(pad=1, flip=False)

    def load(self) -> ImageData:
        """8 x 8 grey images; the values 0 .. 16 are scaled to 0 .. 255."""
        # Imported here because scikit-learn takes longer to import than `lt-sweep validate` takes to run.
        from sklearn.datasets import load_digits

        digits = load_digits()
        # The file is ordered by writer. One fixed shuffle gives train, val and test the same distribution; without it
        # a validation set would not be representative of the test set.
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
