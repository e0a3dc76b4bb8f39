"""`places_lt`: Places-LT (Liu et al. 2019) from its published list files and the images of Places-365."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from lt_train.datasets._images.list_files import PublishedSpec

__all__ = ["PlacesLT"]


class PlacesLT(PublishedSpec):
    """Places-LT: 365 classes, 62500 training images (4980 to 5 a class), val 20 a class, test 100 a class."""

    published: ClassVar[Mapping[str, int]] = {"train": 62_500, "val": 7_300, "test": 36_500}
    classes: ClassVar[int] = 365

    kind: Literal["places_lt"] = "places_lt"
    train: Annotated[str, Field(description="list file of the training images, relative to root")] = (
        "Places_LT_train.txt"
    )
    val: Annotated[
        str | None,
        Field(description="list file of the validation images; null holds val_fraction of the training images out"),
    ] = "Places_LT_val.txt"
    test: Annotated[str, Field(description="list file of the test images")] = "Places_LT_test.txt"
