"""What a head is: the classifier on top of frozen features, once as a plain module and once stacked over lanes.

A head kind is one file with one `HeadSpec` subclass, a `torch.nn.Module` that says what it computes, and a
`StackedHead` that computes the same for S x T runs at once with gradients by hand. The modules are the definition:
the reference engine trains them, results are kept as their state, and a stack is made of them and taken apart into
them. Knows torch only.

Shapes: S seeds, B batch, T lanes (trials), K classes, D features, I inputs of a stacked head's product.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from lt_train.core.registry import KindSpec, Registry

__all__ = [
    "HEADS",
    "Classifier",
    "HeadSpec",
    "StackedHead",
]

Classifier = tuple[Tensor, Tensor]
"""A linear classifier `(weight [K, D], bias [K])`: what stage 1 leaves behind and every head starts from."""


class StackedHead(ABC):
    """S x T heads of one kind.

    Attributes:
        parameters: what is trained, by name, `[S, R, T, C]` with lanes on the axis before the last; the engine
            changes them in place.
    """

    parameters: dict[str, Tensor]

    @abstractmethod
    def logits(self, inputs_SBI: Tensor) -> Tensor:
        """Logits `[S, B, T, K]` of what `HeadSpec.inputs` made of a batch."""

    @abstractmethod
    def accumulate(
        self,
        into: dict[str, Tensor],
        inputs_SBI: Tensor,
        logits_SBTK: Tensor,
        grad_SBTK: Tensor,
        keep: float,
        decay: Tensor | None,
    ) -> None:
        """`into = keep * into + gradient + decay * parameter` for every parameter, in place.

        Args:
            into: a tensor for each of `parameters`, of its shape.
            inputs_SBI: what `logits` was called with.
            logits_SBTK: what it returned.
            grad_SBTK: gradient of the summed loss by these logits, scaled as the step wants it.
            keep: the momentum, folded into the matrix product, which saves a pass over memory.
            decay: `[S, 1, T, 1]`, or None where it is 0 in every lane.
        """

    @abstractmethod
    def state(self, seed: int, lane: int) -> dict[str, Tensor]:
        """One lane's state as the module's `load_state_dict` takes it, on the CPU; always with `weight [K, D]`."""

    def row_norms(self) -> tuple[Tensor, Tensor]:
        """Lengths of the weight rows and the bias, both `[S, 1, T, K]`; for heads with `has_rows` only."""
        raise NotImplementedError


class HeadSpec(KindSpec):
    """Base of every head kind.

    Class attributes:
        has_rows: it trains a weight row a class whose length counts, so that MaxNorm and tau-normalisation have a
            meaning. Its parameters are then `weight` and `bias`, `[K, D]` and `[K]` in the module.
        needs_classifier: it only re-scales a trained classifier, so there is no fresh start.
        affine: its logits are linear in `inputs`, so that the mean over test views may be taken once, on the inputs.
    """

    has_rows: ClassVar[bool] = False
    needs_classifier: ClassVar[bool] = False
    affine: ClassVar[bool] = True

    @abstractmethod
    def module(self, start: Classifier) -> nn.Module:
        """The head of one run as a plain module, `[..., D] -> [..., K]`; its parameters are what is trained.

        Args:
            start: the classifier it starts from; the module keeps copies.
        """

    @abstractmethod
    def stack(self, modules_ST: Sequence[Sequence[Any]], lanes: Mapping[str, Tensor], device: str) -> StackedHead:
        """Modules of this kind, by seed and lane, as one; `lanes` are this spec's float fields, each `[S, 1, T]`."""

    @abstractmethod
    def trained_numbers(self, num_classes: int, feature_dim: int) -> int:
        """How many numbers are trained in one lane: what its memory follows from."""

    def inputs(self, features: Tensor, start: Classifier | None) -> Tensor:
        """`[..., D] -> [..., I]`: what `StackedHead.logits` reads; the same for all lanes, done once a batch.

        Args:
            features: float32, on the device.
            start: the stage-1 classifier on the device, None where the bank has none.
        """
        return features

    def logit_scale(self, lanes: Mapping[str, Tensor]) -> Tensor | float:
        """The factor between a cosine and a logit, which margins in units of cosines are multiplied by; 1 elsewhere."""
        return 1.0


HEADS = Registry("lt_train.methods.heads", HeadSpec)  # type: ignore[type-abstract]
"""The heads."""
