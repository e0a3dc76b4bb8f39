"""Base classes of classifier heads: `HeadSpec`, and `StackedHead` for many runs at once; files of trained heads.

A head kind consists of a `HeadSpec` subclass and a `torch.nn.Module` that defines what the head computes (in
`_modules`). A `StackedHead` computes the same for S x T runs at once. The default, `StackedModules`, batches any module
and takes gradients from autograd; linear and cosine heads and heads on a frozen classifier have faster stacks with
hand-written gradients. The reference engine trains the modules. Results are stored as module states, and stacks are
built from modules and split into module states.

Shapes: S seeds, B batch, T lanes (trials), K classes, D features, I inputs of the product of a stacked head.
"""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from safetensors import SafetensorError, safe_open

from lt_train.core.errors import CheckpointError
from lt_train.core.imports import nn
from lt_train.core.io import atomic_file, parse_json, write_tensors
from lt_train.core.registry import KindSpec, Registry

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["HEADS", "Classifier", "HeadSpec", "StackedHead", "load_head", "save_head"]


Classifier: TypeAlias = "tuple[Tensor, Tensor]"
"""A linear classifier `(weight [K, D], bias [K])`, such as the stage-1 head that every head starts from."""


class StackedHead(ABC):
    """S x T heads of one kind.

    Attributes:
        parameters: the trained tensors by name, `[S, R, T, C]` with lanes on the axis before the last. The engine
            updates them in place.
    """

    parameters: dict[str, Tensor]

    @abstractmethod
    def logits(self, inputs_SBI: Tensor) -> Tensor:
        """Logits `[S, B, T, K]` of the inputs `[S, B, I]` that `HeadSpec.inputs` computed from a batch."""

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
            into: one tensor per parameter, of the same shape.
            inputs_SBI: the argument of the last call of `logits`.
            logits_SBTK: its result.
            grad_SBTK: gradient of the summed loss with respect to these logits, scaled for the step.
            keep: the momentum; part of the matrix product, which saves a pass over memory.
            decay: `[S, 1, T, 1]`, or None if it is 0 in every lane.
        """

    @abstractmethod
    def state(self, seed: int, lane: int) -> dict[str, Tensor]:
        """The state of one lane for `load_state_dict` of its module, on the CPU."""

    def row_norms(self) -> tuple[Tensor, Tensor]:
        """Norms of the weight rows and the bias, both `[S, 1, T, K]`. Only heads with `has_rows` implement it."""
        raise NotImplementedError


class HeadSpec(KindSpec):
    """Base class of heads.

    Class attributes:
        has_rows: it trains one weight row per class whose norm matters, so that MaxNorm and tau-normalisation apply.
            The parameters of its module are then `weight [K, D]` and `bias [K]`.
        needs_classifier: it re-scales a trained classifier, so it cannot start from random weights.
        affine: its logits are affine in `inputs`, so that the mean over test views can be taken of the inputs. False is
            always right; True makes evaluation faster.
    """

    has_rows: ClassVar[bool] = False
    needs_classifier: ClassVar[bool] = False
    affine: ClassVar[bool] = False

    @abstractmethod
    def module(self, start: Classifier, seed: int = 0) -> nn.Module:
        """The head of one run as a plain module, `[..., D] -> [..., K]`. All parameters of the module are trained.

        Args:
            start: the classifier to start from; the module copies it.
            seed: seed of the run. Parameters that start from random values draw them from `seeding.generator` with a
                name of their own and this seed.
        """

    def stack(self, modules_ST: Sequence[Sequence[Any]], lanes: Mapping[str, Tensor], device: str) -> StackedHead:
        """Stack modules, given by seed and lane; `lanes` are the batched fields of this spec, each `[S, 1, T]`.

        The default suits every module that `StackedModules` can batch, of a head that does not override `inputs`.
        """
        from lt_train.methods.heads._stacked import StackedModules

        return StackedModules(modules_ST, device)

    @abstractmethod
    def num_parameters(self, num_classes: int, feature_dim: int) -> int:
        """Number of trained values per lane, which determines its memory."""

    def num_activations(self, num_classes: int, feature_dim: int) -> int:
        """Number of values per image and lane that `StackedHead.logits` computes, the K logits included.

        It determines the memory of a batch. A head with hidden layers adds their values.
        """
        return num_classes

    def state_shape(self, state: Mapping[str, Tensor]) -> tuple[int, int]:
        """`(K, D)` of the classifier in the state of a module; by default the shape of its tensor `weight`.

        Raises:
            KeyError: the state is not that of this head.
        """
        classes, dim = state["weight"].shape
        return classes, dim

    def inputs(self, features: Tensor, start: Classifier | None) -> Tensor:
        """The inputs of `StackedHead.logits`, `[..., D] -> [..., I]`; computed once per batch for all lanes.

        Args:
            features: float32, on the device.
            start: the stage-1 classifier on the device, None if the bank has none.
        """
        return features

    def logit_scale(self, lanes: Mapping[str, Tensor]) -> Tensor | float:
        """The factor from cosines to logits, which scales margins that are given in cosines; 1 for other heads."""
        return 1.0


HEADS = Registry("heads", HeadSpec, "lt_train.methods.heads")  # type: ignore[type-abstract]
"""The plugin group of heads."""


_KEY = "longtail-sweeps head"


def save_head(path: str | os.PathLike[str], state: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write the state of a classifier (see `MethodSpec.classifier`) and a JSON document to `path`, atomically.

    Raises:
        StorageError: the disk is full or not writable; an existing file is left unchanged.
    """
    with atomic_file(Path(path)) as temporary:
        write_tensors(temporary, dict(state), {_KEY: json.dumps(dict(about))})


def load_head(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """`(tensors, document)` of a file written by `save_head`.

    Raises:
        CheckpointError: the file is missing, truncated or not a head file.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(
            f"head {path} does not exist; write one with `lt-train retrain --out` or correct the path"
        )
    try:
        with safe_open(path, framework="pt") as contents:
            about = parse_json((contents.metadata() or {})[_KEY])
            if not isinstance(about, dict):
                raise ValueError(f"its metadata must be a mapping, got {about!r}")
            return {name: contents.get_tensor(name) for name in contents.keys()}, about
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"head {path} cannot be read ({error}): it is truncated, altered or not a head file; write it again with "
            "`lt-train retrain --out`"
        ) from None
