"""Creating a model from the `factory` of an imported backbone.

A sweep file must not be able to run arbitrary code. A factory is therefore a model of torchvision's or timm's registry,
without their arguments for downloading or reading weights, or a function of a package given with `--allow-import`.
"""

from __future__ import annotations

import importlib
import itertools
import re
from collections.abc import Callable, Mapping
from typing import Any

from lt_train.core.errors import UserError, first_line
from lt_train.core.lazy import nn, torch
from lt_train.core.registry import allowed_names, allowed_package
from lt_train.core.validation import nearest

__all__ = ["make_model"]

_LOADERS = re.compile(r"weights\w*|pretrained\w*|checkpoint_path|cache_dir")
"""Arguments with which torchvision and timm download or read weights themselves."""


def make_model(factory: str, arguments: Mapping[str, Any]) -> nn.Module:
    """The model of `factory`, with its own initialisation from torch's global generator.

    A model in half precision is converted to float32.

    Raises:
        UserError: the package is not allowed or not installed, has no such model or function, rejects the arguments,
            or does not return a torch.nn.Module.
    """
    package, _, name = factory.partition(":")
    makers = {"torchvision": _of_torchvision, "timm": _of_timm}
    if package in makers:
        for argument in arguments:
            if _LOADERS.fullmatch(argument):
                raise UserError(
                    f"arguments of {factory} must not include {argument}; weights are read from checkpoint only"
                )
        make = makers[package](factory, name)
    else:
        make = _of_package(factory, package, name)
    try:
        model = make(**arguments)
    except Exception as error:  # the model's own code may raise anything
        raise UserError(
            f"{factory} cannot be created with arguments {dict(arguments)}: {type(error).__name__}: {first_line(error)}"
        ) from error
    if not isinstance(model, nn.Module):
        raise UserError(f"{factory} must return a torch.nn.Module, got {type(model).__name__}")
    tensors = itertools.chain(model.parameters(), model.buffers())
    half = (torch.float16, torch.bfloat16)  # features and heads are float32
    return model.float() if any(tensor.dtype in half for tensor in tensors) else model


def _of_torchvision(factory: str, name: str) -> Callable[..., Any]:
    import torchvision

    known = torchvision.models.list_models(module=torchvision.models)  # classifiers only; detectors download weights
    if name not in known:
        raise UserError(f"{factory}: torchvision has no model {name!r}{nearest(name, known)}")
    return lambda **arguments: torchvision.models.get_model(name, **arguments)


def _of_timm(factory: str, name: str) -> Callable[..., Any]:
    try:
        import timm
    except ImportError:
        raise UserError(f"{factory} needs timm, which is not installed; install it with `pip install timm`") from None
    if not timm.is_model(name):
        raise UserError(f"{factory}: timm has no model {name!r}{nearest(name, timm.list_models())}")
    return lambda **arguments: timm.create_model(name, **arguments)


def _of_package(factory: str, module: str, name: str) -> Callable[..., Any]:
    """A function defined in an allowed package; imported ones, such as `os.system`, are refused."""
    package = next((one for one in allowed_names() if f"{module}.".startswith(f"{one}.")), None)
    if package is None:
        raise UserError(
            f"factory must name torchvision, timm or a package that --allow-import names, got {factory}; "
            f"`--allow-import {module.partition('.')[0]}` allows the code of that package to run"
        )
    allowed_package(package)
    try:
        function: Any = getattr(importlib.import_module(module), name, None)
    except Exception as error:  # the package's own code may raise anything
        raise UserError(
            f"factory {factory}: {module} cannot be imported: {type(error).__name__}: {first_line(error)}"
        ) from error
    home = getattr(function, "__module__", None) or ""
    if not callable(function) or not f"{home}.".startswith(f"{package}."):
        raise UserError(f"factory {factory}: {module} must define a function or class {name}, but does not")
    return lambda **arguments: function(**arguments)
