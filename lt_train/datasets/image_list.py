"""`image_list`: images and labels from list files of one's own."""

from __future__ import annotations

from typing import Literal

from lt_train.datasets._images.list_files import ListSpec
from lt_train.datasets._images.spec import CutImagesSpec

__all__ = ["ImageList"]


class ImageList(CutImagesSpec, ListSpec):
    """List files with a line `relative/path label` an image, labels from 0 without gaps."""

    kind: Literal["image_list"] = "image_list"
