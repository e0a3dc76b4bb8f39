"""torch, imported at its first use: specs define what they compute with it, and can be read without it.

A module that is imported to read a sweep file writes `from lt_train.core.lazy import nn, torch` instead of
`import torch`, and imports types for annotations under `TYPE_CHECKING`. Classes that inherit from `nn.Module` are
defined in modules of their own, which import torch directly.
"""

from __future__ import annotations

import importlib
import types
from typing import TYPE_CHECKING, Any

__all__ = ["functional", "nn", "torch"]


class _LazyModule(types.ModuleType):
    """Stands for a module, which is imported when an attribute is first read. Attributes that were read are kept."""

    def __getattr__(self, name: str) -> Any:
        value = getattr(importlib.import_module(self.__name__), name)
        setattr(self, name, value)
        return value

    def __reduce__(self) -> tuple[type[_LazyModule], tuple[str]]:
        return _LazyModule, (self.__name__,)  # by name, in functions that cloudpickle sends by value


if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.nn import functional
else:
    functional, nn, torch = (_LazyModule(name) for name in ("torch.nn.functional", "torch.nn", "torch"))
