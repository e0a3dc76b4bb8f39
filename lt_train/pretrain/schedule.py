"""The schedule of LDAM's recipe, for recipes that share it: warm-up, then a plateau with two drops.

Touch this to change when rates change; what is trained is said by the recipes. Knows torch only.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from lt_train.pretrain.base import RecipeSpec

__all__ = ["Epoch", "StepRecipe"]

Epoch = Annotated[int, Field(ge=0)]


class StepRecipe(RecipeSpec):
    """Base of recipes on LDAM's schedule (Cao et al. 2019, code): warm-up of 5, x 0.01 from 160, 1e-4 from 180 of 200.

    Epochs that are not given are shares of `epochs`, so that a shorter training has the same shape: warm-up a fortieth
    of it, the drops after four fifths and nine tenths. Epochs are counted from 0.
    """

    epochs: Annotated[int, Field(ge=1, description="passes over the training set")] = 200
    batch_size: Annotated[int, Field(ge=2, description="images a step; a last batch of one image is left out")] = 128
    weight_decay: Annotated[float, Field(ge=0, description="L2 penalty on every parameter, >= 0 (torch.optim.SGD)")] = (
        2e-4
    )
    warmup_epochs: Epoch | None = Field(
        default=None, description="epochs over which lr grows linearly to its full; null: epochs / 40, 5 of 200"
    )
    first_drop: Epoch | None = Field(
        default=None, description="epoch from which lr is a hundredth; null: 4/5 of epochs, 160 of 200"
    )
    second_drop: Epoch | None = Field(
        default=None, description="epoch from which lr is a ten-thousandth; null: 9/10 of epochs, 180 of 200"
    )

    @model_validator(mode="after")
    def _in_order(self) -> StepRecipe:
        warmup, first, second = self.turns()
        if not warmup <= first <= second:
            raise ValueError(
                f"warmup_epochs, first_drop and second_drop must not decrease, got {warmup}, {first}, {second} (those "
                "not given are shares of epochs)"
            )
        return self

    def turns(self) -> tuple[int, int, int]:
        """The epochs at which warm-up ends, lr drops, and drops again."""
        shares = self.epochs // 40, share(self.epochs, 4, 5), share(self.epochs, 9, 10)
        given = self.warmup_epochs, self.first_drop, self.second_drop
        warmup, first, second = (mine if mine is not None else other for mine, other in zip(given, shares, strict=True))
        return warmup, first, second

    def learning_rate(self, epoch: int) -> float:
        """`lr (e + 1) / warmup` while warming up, then lr; a hundredth from the first drop, 1e-4 from the second."""
        warmup, first, second = self.turns()
        if epoch < warmup:
            return self.lr * (epoch + 1) / warmup
        return self.lr * (1e-4 if epoch >= second else 1e-2 if epoch >= first else 1.0)


def share(epochs: int, above: int, below: int) -> int:
    """The first epoch at which `above / below` of all epochs are over."""
    return -(-epochs * above // below)
