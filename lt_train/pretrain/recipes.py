"""The stage-1 recipes: each composes a loss, a learning-rate schedule and, optionally, deferred re-weighting.

| kind               | loss                        | schedule     | re-weighting |
| ------------------ | --------------------------- | ------------ | ------------ |
| `ce`               | cross entropy               | cosine       | none         |
| `ce_steps`         | cross entropy               | LDAM's steps | none         |
| `ce_drw`           | cross entropy               | LDAM's steps | deferred     |
| `ldam_drw`         | LDAM on a normalised head   | LDAM's steps | deferred     |
| `balanced_softmax` | cross entropy of z + log n  | LDAM's steps | none         |

`ce` is the paper's stage 1, and LTWB's strong baseline when weight decay is large. The others are those of Table 4.
`pretrain.loop` trains with a recipe, `pretrain.train` saves and resumes.

Shapes: B batch, K classes.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from lt_train.core.imports import functional, torch
from lt_train.core.registry import KindSpec, Registry
from lt_train.losses import CrossEntropy, effective_number_weights, empty_classes

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "RECIPES",
    "BalancedSoftmaxRecipe",
    "CrossEntropyRecipe",
    "CrossEntropySteps",
    "DeferredCrossEntropy",
    "LdamRecipe",
    "RecipeSpec",
]


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

        Args:
            workers: number of processes that train together; with one, `sync_batch_norm` has no effect. None: unknown.
        """
        unused = {"val_every", "sync_batch_norm"} if workers == 1 else {"val_every"}
        return self.model_dump(mode="json", exclude=unused)

    def learning_rate(self, epoch: int) -> float:
        """Cosine from `lr`, stepped after each epoch: `lr * (1 + cos(pi e / E)) / 2` for e = 0 .. E-1."""
        return self.lr * 0.5 * (1 + math.cos(math.pi * epoch / self.epochs))


RECIPES = Registry("recipes", RecipeSpec, "lt_train.pretrain", modules=["recipes"])  # type: ignore[type-abstract]
"""The plugin group of stage-1 recipes."""


Epoch = Annotated[int, Field(ge=0)]


class StepSchedule(RecipeSpec):
    """LDAM's schedule (Cao et al. 2019, code): linear warm-up, then a constant rate that drops to 1/100 and to 1/10000.

    With 200 epochs, warm-up takes 5 and the rate drops after 160 and after 180. Epochs that are not given are shares of
    `epochs`, so that a shorter training has the same shape: warm-up takes one fortieth, the drops come after four
    fifths and nine tenths. Epochs count from 0.
    """

    epochs: Annotated[int, Field(ge=1, description="passes over the training set")] = 200
    batch_size: Annotated[int, Field(ge=2, description="images per step; a last batch of one image is dropped")] = 128
    weight_decay: Annotated[float, Field(ge=0, description="L2 penalty on every parameter, >= 0 (torch.optim.SGD)")] = (
        2e-4
    )
    warmup_epochs: Epoch | None = Field(
        default=None, description="epochs over which lr grows linearly to its full value; null: epochs / 40, 5 of 200"
    )
    first_drop: Epoch | None = Field(
        default=None, description="first epoch at lr / 100; null: 4/5 of epochs, 160 of 200"
    )
    second_drop: Epoch | None = Field(
        default=None, description="first epoch at lr / 10000; null: 9/10 of epochs, 180 of 200"
    )

    @model_validator(mode="after")
    def _in_order(self) -> StepSchedule:
        warmup, first, second = self.milestones()
        if not warmup <= first <= second:
            raise ValueError(
                f"warmup_epochs, first_drop and second_drop must not decrease, got {warmup}, {first}, {second} "
                "(defaults are shares of epochs)"
            )
        return self

    def milestones(self) -> tuple[int, int, int]:
        """The first epochs after warm-up, at the first drop and at the second."""
        shares = self.epochs // 40, share(self.epochs, 4, 5), share(self.epochs, 9, 10)
        given = self.warmup_epochs, self.first_drop, self.second_drop
        warmup, first, second = (
            own if own is not None else default for own, default in zip(given, shares, strict=True)
        )
        return warmup, first, second

    def learning_rate(self, epoch: int) -> float:
        """`lr (e + 1) / warmup` during warm-up, then lr, lr / 100 from the first drop, lr / 10000 from the second."""
        warmup, first, second = self.milestones()
        if epoch < warmup:
            return self.lr * (epoch + 1) / warmup
        return self.lr * (1e-4 if epoch >= second else 1e-2 if epoch >= first else 1.0)


def share(epochs: int, numerator: int, denominator: int) -> int:
    """`epochs * numerator / denominator`, rounded up."""
    return -(-epochs * numerator // denominator)


class DeferredReweighting(RecipeSpec):
    """Deferred re-weighting (DRW): from `reweight_epoch` on, losses are weighted by the class's effective number.

    Source: Cao et al. 2019. The features are first learned with the plain loss; the weights are applied afterwards.
    """

    reweight_epoch: Epoch | None = Field(
        default=None, description="first epoch with weighted losses; null: 4/5 of epochs, 160 of 200"
    )
    beta: Annotated[float, Field(ge=0, lt=1, description="weights are (1 - beta) / (1 - beta^n), in [0, 1)")] = 0.9999
    weighted_mean: Literal["weights", "batch"] = Field(
        default="weights",
        description="divisor of a batch's sum of weighted losses: the sum of its weights, as in torch and LDAM's code, "
        "or its number of images",
    )

    def incompatibility(self, class_counts: Tensor) -> str:
        """See `RecipeSpec.incompatibility`."""
        return empty_classes(class_counts)

    def reweighted(self, losses: Tensor, labels: Tensor, class_counts: Tensor, epoch: int) -> Tensor:
        """Per-sample losses `[B]`, from `reweight_epoch` on times the weight of their class (mean 1 over classes).

        With `weighted_mean: weights` they are also divided by the batch's mean weight, so that their plain mean equals
        torch's weighted mean.
        """
        start = self.reweight_epoch if self.reweight_epoch is not None else share(self.epochs, 4, 5)
        if epoch < start:
            return losses
        beta = torch.tensor(self.beta, dtype=torch.float64, device=losses.device)
        weights = effective_number_weights(beta, class_counts).to(losses.dtype)[labels]
        return losses * (weights / weights.mean() if self.weighted_mean == "weights" else weights)


@RECIPES.register
class CrossEntropyRecipe(RecipeSpec):
    """Cross entropy without label smoothing or class weights, on a cosine schedule."""

    kind: Literal["ce"] = "ce"

    def loss(self, logits: Tensor, labels: Tensor, class_counts: Tensor, epoch: int) -> Tensor:
        """`-log softmax(logits)[labels]`, float `[B]`."""
        return _cross_entropy(logits, labels)


@RECIPES.register
class CrossEntropySteps(StepSchedule):
    """Cross entropy on LDAM's schedule: `ce_drw` without re-weighting, or `ce` with another schedule."""

    kind: Literal["ce_steps"] = "ce_steps"

    def loss(self, logits: Tensor, labels: Tensor, class_counts: Tensor, epoch: int) -> Tensor:
        """`-log softmax(logits)[labels]`, float `[B]`."""
        return _cross_entropy(logits, labels)


@RECIPES.register
class DeferredCrossEntropy(StepSchedule, DeferredReweighting):
    """Cross entropy on LDAM's schedule with deferred re-weighting (Cao et al. 2019)."""

    kind: Literal["ce_drw"] = "ce_drw"

    def loss(self, logits: Tensor, labels: Tensor, class_counts: Tensor, epoch: int) -> Tensor:
        """`w_y * -log softmax(logits)[y]`, float `[B]`; w is 1 before `reweight_epoch`."""
        return self.reweighted(_cross_entropy(logits, labels), labels, class_counts, epoch)


@RECIPES.register
class LdamRecipe(StepSchedule, DeferredReweighting):
    """LDAM with deferred re-weighting: margins that grow for rare classes on a normalised head (Cao et al. 2019).

    Logits are `s cos(W_k, f)`; in training the true one is lowered by `s m_y`. The backbone's features are
    normalised, f / |f|, because the head uses only their direction. Re-training starts from the linear head with rows
    s W_k / |W_k| and bias 0, which gives exactly the logits of stage 1.
    """

    kind: Literal["ldam_drw"] = "ldam_drw"
    scale: Annotated[float, Field(gt=0, description="s, the factor of the cosines, > 0")] = 30.0
    max_margin: Annotated[
        float,
        Field(ge=0, description="margin of the smallest class in cosines, >= 0; others are proportional to n^(-1/4)"),
    ] = 0.5

    def cosine_scale(self) -> float | None:
        """See `RecipeSpec.cosine_scale`."""
        return self.scale

    def loss(self, logits: Tensor, labels: Tensor, class_counts: Tensor, epoch: int) -> Tensor:
        """`w_y * -log softmax(logits - s m_y e_y)[y]` with `m_y = max_margin (n_min / n_y)^(1/4)`, float `[B]`."""
        margin = self.scale * self.max_margin * (class_counts.min() / class_counts) ** 0.25
        losses = CrossEntropy(margin=margin.to(logits.dtype))(logits, labels)
        return self.reweighted(losses, labels, class_counts, epoch)


@RECIPES.register
class BalancedSoftmaxRecipe(StepSchedule):
    """Cross entropy of `z + log n` on LDAM's schedule (Ren et al. 2020).

    The logarithms of the class sizes are added in training only, so that the network need not learn them.
    """

    kind: Literal["balanced_softmax"] = "balanced_softmax"

    def incompatibility(self, class_counts: Tensor) -> str:
        """See `RecipeSpec.incompatibility`."""
        return empty_classes(class_counts)

    def loss(self, logits: Tensor, labels: Tensor, class_counts: Tensor, epoch: int) -> Tensor:
        """`-log softmax(logits + log n)[y]`, float `[B]`."""
        return CrossEntropy(shift=class_counts.log())(logits, labels)


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(logits, labels, reduction="none")
