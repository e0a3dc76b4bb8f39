"""Models by name: what `factory` of an imported backbone may say, and the model that it makes.

A sweep file must not be able to run code. So a name is a model of torchvision or timm, made by their own registries and
without their ways to fetch or read weights, or a function that is defined in a package of `--allow-import`. Touch this
to change what may be called; what becomes of the model is `imported`'s matter. Knows torch only.
"""

from __future__ import annotations

import importlib
import itertools
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from lt_train.core.errors import UserError, first_line
from lt_train.core.registry import allowed_names, allowed_package
from lt_train.core.validation import nearest

__all__ = ["make_model"]

_LOADERS = re.compile(r"weights\w*|pretrained\w*|checkpoint_path|cache_dir")
"""Arguments by which torchvision and timm fetch or read weights themselves, from wherever they are told."""

_HALF = (torch.float16, torch.bfloat16)


def make_model(factory: str, arguments: Mapping[str, Any]) -> nn.Module:
    """The model of `factory`, with weights as its own code initialises them from torch's global generator.

    One that its code puts into half precision is brought to float32.

    Raises:
        UserError: the package is not allowed or not installed, has no such model or function, the arguments are not
            its, or what it makes is no model.
    """
    package, _, name = factory.partition(":")
    makers = {"torchvision": _of_torchvision, "timm": _of_timm}
    if package in makers:
        for argument in arguments:
            if _LOADERS.fullmatch(argument):
                raise UserError(
                    f"arguments of {factory} must not say where weights are, got {argument}; they are read from "
                    "checkpoint alone"
                )
        make = makers[package](factory, name)
    else:
        make = _of_package(factory, package, name)
    try:
        model = make(**arguments)
    except Exception as error:  # whatever the model's own code raises
        raise UserError(
            f"{factory} cannot be made with arguments {dict(arguments)}: {type(error).__name__}: {first_line(error)}"
        ) from error
    if not isinstance(model, nn.Module):
        raise UserError(f"{factory} must make a torch.nn.Module, got {type(model).__name__}")
    tensors = itertools.chain(model.parameters(), model.buffers())
    # Features are float32, and so is what starts from them; a model that is so already is not touched.
    return model.float() if any(tensor.dtype in _HALF for tensor in tensors) else model


def _of_torchvision(factory: str, name: str) -> Callable[..., Any]:
    import torchvision

    known = torchvision.models.list_models(module=torchvision.models)  # classifiers; detectors fetch weights unasked
    if name not in known:
        raise UserError(f"{factory}: torchvision has no model {name!r}{nearest(name, known)}")
    return lambda **arguments: torchvision.models.get_model(name, **arguments)


def _of_timm(factory: str, name: str) -> Callable[..., Any]:
    try:
        import timm
    except ImportError:
        raise UserError(f"{factory} needs timm, which is not installed; `pip install timm` brings it") from None
    if not timm.is_model(name):
        raise UserError(f"{factory}: timm has no model {name!r}{nearest(name, timm.list_models())}")
    return lambda **arguments: timm.create_model(name, **arguments)


def _of_package(factory: str, module: str, name: str) -> Callable[..., Any]:
    """A function that an allowed package defines; one that it merely imports, such as `os.system`, is none of its."""
    package = next((one for one in allowed_names() if f"{module}.".startswith(f"{one}.")), None)
    if package is None:
        raise UserError(
            f"factory must name torchvision, timm or a package that --allow-import names, got {factory}; "
            f"`--allow-import {module.partition('.')[0]}` lets the code of that package run"
        )
    allowed_package(package)
    try:
        function: Any = getattr(importlib.import_module(module), name, None)
    except Exception as error:  # whatever the package's own code raises
        raise UserError(
            f"factory {factory}: {module} cannot be imported: {type(error).__name__}: {first_line(error)}"
        ) from error
    home = getattr(function, "__module__", None) or ""
    if not callable(function) or not f"{home}.".startswith(f"{package}."):
        raise UserError(f"factory {factory}: {module} must define a function or class {name}, and does not")
    return lambda **arguments: function(**arguments)
