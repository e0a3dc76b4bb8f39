"""`cifar100_lt`: CIFAR-100 (Krizhevsky 2009), cut long-tailed from the published pickles; the paper's main dataset."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from lt_train.datasets.cifar_pickles import CifarSpec

__all__ = ["Cifar100LT"]


class Cifar100LT(CifarSpec):
    """CIFAR100-LT: n_max 500; 10847, 12608 and 19573 training images at IR 100, 50 and 10."""

    folder: ClassVar[str] = "cifar-100-python"
    label_key: ClassVar[str] = "fine_labels"
    num_classes: ClassVar[int] = 100
    train_md5: ClassVar[Mapping[str, str]] = {"train": "16019d7e3df5f24257cddd939b257f8d"}
    test_md5: ClassVar[Mapping[str, str]] = {"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"}

    kind: Literal["cifar100_lt"] = "cifar100_lt"
    n_max: Annotated[int, Field(ge=1, le=500, description="training images of class 0, the largest; 500 at most")] = 500
