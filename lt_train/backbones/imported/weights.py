"""Reading weights saved by other tools without running their code, and matching them to a model by tensor names."""

from __future__ import annotations

import fnmatch
import itertools
import pickle
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from lt_train.core.errors import CheckpointError, first_line
from lt_train.core.validation import named

__all__ = ["KeyReport", "fit_weights", "read_weights"]

PREFIXES = ("module.", "backbone.", "model.", "_orig_mod.")
"""Prefixes that DataParallel, wrappers and torch.compile add to tensor names."""

_NESTED = ("state_dict", "model_state_dict", "model", "net")
"""Keys under which training scripts save the weights, in order of preference."""

_MOST_NAMES = 8


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of a `torch.save` file with only tensors and plain values.

    Raises:
        CheckpointError: the file is missing or damaged, contains pickled objects, or contains no named tensors.
    """
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} does not exist; correct the path")
    try:
        with safe_open(path, framework="pt") as contents:
            return {name: contents.get_tensor(name) for name in contents.keys()}
    except (SafetensorError, OSError):
        pass
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # suggests ways to read it anyway
            saved = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"checkpoint {path} contains pickled objects besides weights and is not read, because that would run "
            "code. If you trust it, convert it once: "
            "`saved = torch.load(old, weights_only=False)`, then `torch.save(saved.state_dict(), new)` if it is a "
            "module, or `torch.save(saved['state_dict'], new)` if it is a dictionary"
        ) from None
    except Exception as error:  # torch raises many types for invalid files
        raise CheckpointError(
            f"checkpoint {path} cannot be read ({type(error).__name__}: {first_line(error)[:80]}): it must be a "
            "safetensors or torch.save file, and it is truncated, altered or of another format"
        ) from None
    return _named_tensors(path, saved)


def _named_tensors(path: Path, saved: Any) -> dict[str, Tensor]:
    """The named tensors at the top level of `saved` or under one of the usual keys."""
    keys = list(saved) if isinstance(saved, Mapping) else []
    for candidate in (saved, *(saved[name] for name in _NESTED if name in keys)):
        if isinstance(candidate, Mapping):
            tensors = {str(name): value for name, value in candidate.items() if isinstance(value, Tensor)}
            if tensors:
                return tensors
    found = f"the keys {named(keys, _MOST_NAMES)}" if keys else f"a {type(saved).__name__}"
    raise CheckpointError(
        f"checkpoint {path} must contain named tensors, at its top level or under {', '.join(_NESTED)}, got {found}"
    )


@dataclass(frozen=True)
class KeyReport:
    """How the tensors of a checkpoint match those of a model.

    Attributes:
        matched: number of tensors that were loaded.
        total: number of tensors of the model.
        prefix: prefixes removed from the checkpoint's names, outermost first.
        missing: tensors of the model that the checkpoint does not have.
        left_over: tensors of the checkpoint that the model does not have.
        reshaped: tensors of both with different shapes, with both shapes.
    """

    matched: int
    total: int
    prefix: tuple[str, ...]
    missing: tuple[str, ...]
    left_over: tuple[str, ...]
    reshaped: tuple[str, ...]

    def __str__(self) -> str:
        text = f"{self.matched} of the model's {self.total} tensors match"
        if self.prefix:
            text += f" (without the prefix {''.join(self.prefix)})"
        parts = (("missing", self.missing), ("left over", self.left_over), ("with another shape", self.reshaped))
        return "; ".join([text, *(f"{what}: {named(names, _MOST_NAMES)}" for what, names in parts if names)])


def fit_weights(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    strip_prefix: str | None,
    allow_missing: Sequence[str] = (),
    allow_left_over: Sequence[str] = (),
    ignored: Sequence[str] = (),
) -> KeyReport:
    """Load `tensors` into `model` and report how they match.

    Args:
        model: changed in place.
        tensors: those of a checkpoint, by name.
        strip_prefix: prefix to remove from the checkpoint's names; None: the best match among `PREFIXES`.
        allow_missing: patterns of names, such as `pool.*`, that may be missing in the checkpoint.
        allow_left_over: patterns of names that may be missing in the model.
        ignored: layers that are not used, whose tensors may differ in any way.

    Raises:
        CheckpointError: other tensors are missing, left over or with another shape; the message lists all.
    """
    wanted = model.state_dict()
    if strip_prefix is None:
        prefix, renamed = _best_names(tensors, wanted)
    else:
        prefix = (strip_prefix,) if strip_prefix else ()
        renamed = {name.removeprefix(strip_prefix): tensor for name, tensor in tensors.items()}
    fitting = {
        name: tensor for name, tensor in renamed.items() if name in wanted and tensor.shape == wanted[name].shape
    }
    report = KeyReport(
        matched=len(fitting),
        total=len(wanted),
        prefix=prefix,
        # A counter of batch norm that old files lack and that is not used.
        missing=tuple(name for name in wanted if name not in renamed and not name.endswith("num_batches_tracked")),
        left_over=tuple(name for name in renamed if name not in wanted),
        reshaped=tuple(
            f"{name} {list(renamed[name].shape)} where the model has {list(tensor.shape)}"
            for name, tensor in wanted.items()
            if name in renamed and name not in fitting
        ),
    )
    unused = tuple(f"{layer}.*" for layer in ignored)
    refused = KeyReport(
        matched=report.matched,
        total=report.total,
        prefix=prefix,
        missing=_unlike(report.missing, (*allow_missing, *unused)),
        left_over=_unlike(report.left_over, (*allow_left_over, *unused)),
        reshaped=_unlike(report.reshaped, tuple(f"{pattern} *" for pattern in unused)),
    )
    if refused.missing or refused.left_over or refused.reshaped or not fitting:
        raise CheckpointError(
            f"its tensors do not match the model's: {refused}; give the arguments it was trained with, remove a prefix "
            "with strip_prefix, or list exceptions in allow_missing and allow_left_over (patterns of names)"
        )
    model.load_state_dict(fitting, strict=False)
    return report


def _best_names(tensors: Mapping[str, Tensor], wanted: Iterable[str]) -> tuple[tuple[str, ...], dict[str, Tensor]]:
    """The fewest prefixes whose removal matches the most names, and the tensors by their remaining names."""
    wanted = set(wanted)
    best: tuple[tuple[str, ...], dict[str, Tensor]] = (), dict(tensors)
    for depth in range(1, 4):
        for prefix in itertools.product(PREFIXES, repeat=depth):
            renamed = dict(tensors)
            for part in prefix:
                renamed = {name.removeprefix(part): tensor for name, tensor in renamed.items()}
            if len(renamed) == len(tensors) and len(wanted & renamed.keys()) > len(wanted & best[1].keys()):
                best = prefix, renamed
    return best


def _unlike(names: Iterable[str], patterns: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in names if not any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns))
