"""`imagenet_lt`: ImageNet-LT (Liu et al. 2019) from its published list files and ImageNet's images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from lt_train.datasets._images.list_files import PublishedSpec

__all__ = ["ImageNetLT"]


class ImageNetLT(PublishedSpec):
    """ImageNet-LT: 1000 classes, 115846 training images (1280 to 5 a class), val 20 a class, test 50 a class."""

    published: ClassVar[Mapping[str, int]] = {"train": 115_846, "val": 20_000, "test": 50_000}
    classes: ClassVar[int] = 1000
    class_folder: ClassVar[str | None] = r"(?:^|/)(n\d{8})/"

    kind: Literal["imagenet_lt"] = "imagenet_lt"
    train: Annotated[str, Field(description="list file of the training images, relative to root")] = (
        "ImageNet_LT_train.txt"
    )
    val: Annotated[
        str | None,
        Field(description="list file of the validation images; null holds val_fraction of the training images out"),
    ] = "ImageNet_LT_val.txt"
    test: Annotated[str, Field(description="list file of the test images")] = "ImageNet_LT_test.txt"
