"""What a stage-1 recipe is: a frozen spec that says how the backbone and its first head are trained.

A recipe kind is one file in this folder with one `RecipeSpec` subclass. It supplies the loss and, where they differ
from a cosine and a linear head, the learning rate of every epoch and the head; the loop, resuming and checkpoints are
`stage1.train`'s. Knows torch only. Shapes: B batch, K classes.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor

from lt_train.core.registry import KindSpec, Registry

__all__ = [
    "RECIPES",
    "RecipeSpec",
]


class RecipeSpec(KindSpec):
    """Base of every recipe kind: SGD with momentum; `loss`, `learning_rate` and `cosine_scale` are its say-sos."""

    epochs: Annotated[int, Field(ge=1, description="passes over the training set")] = 60
    batch_size: Annotated[int, Field(ge=2, description="images a step; a last batch of one image is left out")] = 32
    lr: Annotated[float, Field(gt=0, description="learning rate of SGD at the first epoch, > 0")] = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1, description="momentum of SGD, in [0, 1)")] = 0.9
    weight_decay: Annotated[float, Field(ge=0, description="L2 penalty on every parameter, >= 0 (torch.optim.SGD)")] = (
        5e-4
    )
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32",
        description="what the network computes in, by torch.autocast; weights, losses and features stay float32. "
        "float16 scales its gradients and needs CUDA",
    )
    sync_batch_norm: bool = Field(
        default=False,
        description="whether several workers on CUDA share the statistics of batch norm; without, each has its own",
    )
    val_every: Annotated[
        int, Field(ge=0, description="epochs from one accuracy on val, for the curve, to the next; 0: none is measured")
    ] = 0

    @abstractmethod
    def loss(self, logits: Tensor, labels: Tensor, class_counts: Tensor, epoch: int) -> Tensor:
        """Per-sample loss, of which each step descends the plain mean.

        That of an image may depend on the labels of the whole batch, for a common divisor, but on its own logits only:
        of several workers each sees the logits of its own images.

        Args:
            logits: float `[B, K]`.
            labels: int64 `[B]`.
            class_counts: int64 `[K]`, training images a class.
            epoch: from 0, for recipes that change their weights on the way.

        Returns:
            float `[B]`.
        """

    def cosine_scale(self) -> float | None:
        """The factor s of a head whose logits are `s cos(W_k, f)`; None for a linear head."""
        return None

    def incompatibility(self, class_counts: Tensor) -> str:
        """Why the recipe is no use for int64 `[K]` training images a class; empty where it is."""
        return ""

    def identity(self, *, workers: int | None = None) -> dict[str, Any]:
        """What of the recipe decides weights, as JSON.

        What is at a default that was the only way once is left out as well: trained checkpoints stay known.

        Args:
            workers: how many train together; one has nobody to share statistics with. None: some number.
        """
        apart = self.at_default("precision", "sync_batch_norm") | {"val_every"}
        return self.model_dump(mode="json", exclude=apart | ({"sync_batch_norm"} if workers == 1 else set()))

    def learning_rate(self, epoch: int) -> float:
        """Cosine from `lr`, stepped after each epoch: `lr * (1 + cos(pi e / E)) / 2` for e = 0 .. E-1."""
        return self.lr * 0.5 * (1 + math.cos(math.pi * epoch / self.epochs))


RECIPES = Registry("lt_train.pretrain", RecipeSpec)  # type: ignore[type-abstract]
"""The stage-1 recipes."""
