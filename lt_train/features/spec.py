"""The spec of a feature bank."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from lt_train.core.registry import Spec

__all__ = ["FeaturesSpec"]


class FeaturesSpec(Spec):
    """Which views of the images a bank stores, and in which dtype."""

    views: Annotated[
        int,
        Field(
            ge=1,
            description="views per training image, >= 1; 1: the images without augmentation; V > 1: V augmented views, "
            "which the epochs use in turn. As many views as epochs are equivalent to live augmentation",
        ),
    ] = 1
    test_flip: Annotated[
        bool | None,
        Field(
            description="average over each test image and its mirror image; null: as augmentation.flip of the dataset"
        ),
    ] = None
    seed: Annotated[int, Field(description="seed of the augmented views")] = 0
    batch_size: Annotated[int, Field(ge=1, description="images per forward pass; affects speed and memory only")] = 256
    dtype: Annotated[
        Literal["float32", "float16"],
        Field(
            description="type of the features on disk; float16 halves their size; features are always computed, and "
            "trained on, in float32"
        ),
    ] = "float32"
    unreadable: Annotated[
        Literal["fail", "skip"],
        Field(
            description="what to do if an image cannot be decoded because it is missing, empty or damaged: fail stops "
            "at the first one, skip drops it and records a note; images already dropped by bad_images of the dataset "
            "are not decoded"
        ),
    ] = "fail"
