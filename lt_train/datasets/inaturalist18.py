"""`inaturalist18`: iNaturalist 2018 (Van Horn et al. 2018) from its published list files and images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from lt_train.datasets._images.list_files import PublishedSpec

__all__ = ["INaturalist18"]


class INaturalist18(PublishedSpec):
    """iNaturalist 2018: 8142 classes, 437513 training images; tested on its validation images, 3 a class."""

    published: ClassVar[Mapping[str, int]] = {"train": 437_513, "test": 24_426}
    classes: ClassVar[int] = 8142
    class_folder: ClassVar[str | None] = r"(?:^|/)(\d+)/[^/]+$"

    kind: Literal["inaturalist18"] = "inaturalist18"
    train: Annotated[str, Field(description="list file of the training images, relative to root")] = (
        "iNaturalist18_train.txt"
    )
    test: Annotated[str, Field(description="list file of the test images; published as validation set")] = (
        "iNaturalist18_val.txt"
    )
    val_fraction: Annotated[
        float,
        Field(
            ge=0,
            lt=1,
            description="share of every class's training images held out, at least one; 0 keeps the published "
            "training set, without val: select on test then, as the paper does",
        ),
    ] = 0.0
