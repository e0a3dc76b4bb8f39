"""Lazy imports: torch, optional libraries, and the public names of a package. Sweep files are read without torch.

A module that is imported to read a sweep file writes `from lt_train.core.imports import nn, torch` instead of
`import torch`, and imports types for annotations under `TYPE_CHECKING`. Classes that inherit from `nn.Module` are
defined in modules of their own, which import torch directly.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import types
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from lt_train.core.errors import UserError

__all__ = ["functional", "installed_version", "is_installed", "lazy_exports", "nn", "require", "torch"]


EXTRAS = {
    "ray": "ray",
    "mlflow": "mlflow",
    "wandb": "wandb",
    "matplotlib": "report",
    "jinja2": "report",
    "onnx": "onnx",
    "onnxscript": "onnx",
}
"""The extra of the package that installs each optional library."""


def lazy_exports(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a package that imports its public names at first use.

    Args:
        package: its name.
        modules: the module of each name; an empty string if the name is a submodule. `__version__` is added: the
            installed version.
    """

    def __getattr__(name: str) -> Any:
        if name == "__version__":
            return installed_version()
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        if not modules[name]:
            return importlib.import_module(f"{package}.{name}")
        return getattr(importlib.import_module(modules[name]), name)

    return __getattr__


def installed_version() -> str:
    """The version of this package; `0+unknown` if it is not installed."""
    try:
        return importlib.metadata.version("longtail-sweeps")
    except importlib.metadata.PackageNotFoundError:
        return "0+unknown"


def is_installed(library: str) -> bool:
    """Whether a library can be imported, without importing it. A plain folder of that name is not a library."""
    found = importlib.util.find_spec(library)
    return found is not None and found.origin is not None


def require(*libraries: str) -> None:
    """Check that optional libraries are installed, without importing them.

    Raises:
        UserError: one is not; the message has the command that installs it.
    """
    for library in libraries:
        if not is_installed(library):
            raise UserError(f"{library} is not installed; run: pip install 'longtail-sweeps[{EXTRAS[library]}]'")


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
