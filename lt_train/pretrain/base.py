"""The interface of a stage-1 recipe: how a backbone and its first head are trained.

A recipe is a frozen `RecipeSpec`. It supplies the loss and, where they differ from a cosine schedule and a linear head,
the learning rate of every epoch and the head. `pretrain.loop` trains, `pretrain.train` saves and resumes. The kinds are
in `pretrain.recipes`.

Shapes: B batch, K classes.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from lt_train.core.registry import KindSpec, Registry

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["RECIPES", "RecipeSpec"]


class RecipeSpec(KindSpec):
    """Base of every recipe kind: SGD with momentum, a cosine schedule and, unless overridden, a linear head."""

    epochs: Annotated[int, Field(ge=1, description="passes over the training set")] = 60
    batch_size: Annotated[int, Field(ge=2, description="images per step; a last batch of one image is dropped")] = 32
    lr: Annotated[float, Field(gt=0, description="learning rate of SGD at the first epoch, > 0")] = 0.1
    momentum: Annotated[float, Field(ge=0, lt=1, description="momentum of SGD, in [0, 1)")] = 0.9
    weight_decay: Annotated[float, Field(ge=0, description="L2 penalty on every parameter, >= 0 (torch.optim.SGD)")] = (
        5e-4
    )
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32",
        description="precision of the network's forward and backward pass (torch.autocast); weights, losses and "
        "features stay float32. float16 uses gradient scaling and needs CUDA",
    )
    sync_batch_norm: bool = Field(
        default=False,
        description="share batch norm statistics between workers on CUDA devices; false: each worker uses its own",
    )
    val_every: Annotated[
        int,
        Field(ge=0, description="epochs between measurements of the accuracy on val, for the training curve; 0: never"),
    ] = 0

    @abstractmethod
    def loss(self, logits: Tensor, labels: Tensor, class_counts: Tensor, epoch: int) -> Tensor:
        """Per-sample loss; a step minimises its plain mean over the batch.

        The loss of an image may depend on the labels of the whole batch, for example through a common divisor, but
        only on its own logits: with several workers, each sees the logits of its own images only.

        Args:
            logits: float `[B, K]`.
            labels: int64 `[B]`.
            class_counts: int64 `[K]`, training images per class.
            epoch: from 0; for recipes that change their weights during training.

        Returns:
            float `[B]`.
        """

    def cosine_scale(self) -> float | None:
        """The factor s of a head whose logits are `s cos(W_k, f)`; None for a linear head."""
        return None

    def incompatibility(self, class_counts: Tensor) -> str:
        """Why the recipe cannot train with these class counts (int64 `[K]`); empty if it can."""
        return ""

    def identity(self, *, workers: int | None = None) -> dict[str, Any]:
        """The fields that determine the trained weights, as JSON.

        Fields that were added later are left out at their defaults, so that existing checkpoints are still recognised.

        Args:
            workers: number of processes that train together; with one, `sync_batch_norm` has no effect. None: unknown.
        """
        excluded = self.at_default("precision", "sync_batch_norm") | {"val_every"}
        return self.model_dump(mode="json", exclude=excluded | ({"sync_batch_norm"} if workers == 1 else set()))

    def learning_rate(self, epoch: int) -> float:
        """Cosine from `lr`, stepped after each epoch: `lr * (1 + cos(pi e / E)) / 2` for e = 0 .. E-1."""
        return self.lr * 0.5 * (1 + math.cos(math.pi * epoch / self.epochs))


RECIPES = Registry("lt_train.pretrain", RecipeSpec, modules=["recipes"])  # type: ignore[type-abstract]
"""The stage-1 recipes."""
