"""LDAM's learning-rate schedule: linear warm-up, then a constant rate with two drops (Cao et al. 2019, code)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from lt_train.pretrain.base import RecipeSpec

__all__ = ["Epoch", "StepSchedule", "share"]

Epoch = Annotated[int, Field(ge=0)]


class StepSchedule(RecipeSpec):
    """The part that sets the learning rate: of 200 epochs, warm-up over 5, x 0.01 from 160 on, x 1e-4 from 180 on.

    Epochs that are not given are shares of `epochs`, so that a shorter training has the same shape: warm-up takes one
    fortieth, the drops come after four fifths and nine tenths. Epochs count from 0.
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
