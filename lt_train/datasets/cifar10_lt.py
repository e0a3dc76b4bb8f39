"""`cifar10_lt`: CIFAR-10 (Krizhevsky 2009), cut long-tailed from the published pickles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from lt_train.datasets.cifar_pickles import CifarSpec

__all__ = ["Cifar10LT"]


class Cifar10LT(CifarSpec):
    """CIFAR10-LT as in LDAM: n_max 5000, test set untouched (1000 a class)."""

    folder: ClassVar[str] = "cifar-10-batches-py"
    label_key: ClassVar[str] = "labels"
    num_classes: ClassVar[int] = 10
    train_md5: ClassVar[Mapping[str, str]] = {
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    }
    test_md5: ClassVar[Mapping[str, str]] = {"test_batch": "40351d587109b95175f43aff81a1287e"}

    kind: Literal["cifar10_lt"] = "cifar10_lt"
    n_max: Annotated[int, Field(ge=1, le=5000, description="training images of class 0, the largest; 5000 at most")] = (
        5000
    )
    val_per_class: Annotated[
        int, Field(ge=0, description="validation images a class; 0 keeps the published training set, without val")
    ] = 100
