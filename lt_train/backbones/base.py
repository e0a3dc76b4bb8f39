"""The interface of a backbone: a frozen spec that builds a network from images to features.

Shapes: B images, C channels, H x W pixels, D features, K classes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from lt_train.core.fields import NOT_IDENTITY, PATH
from lt_train.core.imports import nn
from lt_train.core.registry import KindSpec, Registry

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["BACKBONES", "BackboneSpec", "FrozenBackbone", "WholeModel"]


@dataclass(frozen=True)
class FrozenBackbone:
    """A trained network that computes features, on the CPU in evaluation mode, and the classifier it was trained with.

    Attributes:
        network: `[B, C, H, W] -> [B, D]`.
        feature_dim: D.
        head: the classifier `(weight [K, D], bias [K])` to start re-training from; None if there is none.
        in_channels: number of channels that images must have.
        mean, std: normalisation of its images per channel, on the 0..1 scale; None: unknown.
        identity: what determines its features, as JSON: `backbone`, and `checkpoint` (sha256 of the file or of its
            content).
        display_name: its name in error messages.
        remedy: what to do if it does not fit a dataset, for error messages.
        notes: messages for the user about how it was read.
        record: how it was trained, as JSON: those of `recipe`, `seed`, `accuracy` and `curve` that the checkpoint has.
    """

    network: nn.Module
    feature_dim: int
    head: tuple[Tensor, Tensor] | None
    in_channels: int
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    identity: dict[str, Any]
    display_name: str
    remedy: str
    notes: tuple[str, ...] = ()
    record: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class WholeModel:
    """The weights of a model from images to logits, under the names of the model's own module.

    Attributes:
        tensors: complete, for `load_state_dict` with `strict=True`.
        code: Python statements that create the module as `model`.
        channels: of the images `[N, channels, H, W]` that it takes, normalised.
    """

    tensors: Mapping[str, Tensor]
    code: str
    channels: int


class BackboneSpec(KindSpec):
    """Base of every backbone kind.

    `checkpoint` names the weights that a sweep starts from; `build` ignores it.
    """

    checkpoint: Annotated[
        str | None,
        PATH,
        NOT_IDENTITY,
        Field(description="safetensors file written by `lt-train backbone`; null: train one with the stage-1 recipe"),
    ] = None

    @abstractmethod
    def build(self, in_channels: int) -> tuple[nn.Module, int]:
        """A newly initialised network `[B, C, H, W] -> [B, D]` and its D."""

    def read_checkpoint(self, image_shape: tuple[int, int, int]) -> FrozenBackbone | None:
        """The network with the weights of `checkpoint`, for kinds that read checkpoints of other tools.

        Args:
            image_shape: `(C, H, W)` of the images to process.

        Returns:
            None if `checkpoint` was written by `lt-train backbone`, which is the default.

        Raises:
            UserError: as documented by the kind.
        """
        return None

    def with_head(
        self, image_shape: tuple[int, int, int], head: tuple[Tensor, Tensor], trained: Mapping[str, Tensor] | None
    ) -> WholeModel | None:
        """The whole model with another head, for kinds whose networks are part of a model with names of its own.

        Args:
            image_shape: `(C, H, W)` of the images to process.
            head: `(weight [K, D], bias [K])` on the features.
            trained: the state of the network of `build`, if stage 1 trained it; None: `checkpoint` is of another tool.

        Returns:
            None for other kinds, whose whole model is `lt_train.backbones.layers.Classifier`.

        Raises:
            UserError: as documented by the kind.
        """
        return None


BACKBONES = Registry("backbones", BackboneSpec, "lt_train.backbones", modules=["convnets", "imported"])  # type: ignore[type-abstract]
"""The plugin group of backbones."""
