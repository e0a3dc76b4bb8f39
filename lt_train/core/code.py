"""Fingerprints of the code of kinds from outside, so that results of changed code are not taken for those of the old.

What a built-in kind computes is fixed by a version of this package. The class of a user may change between two runs of
a cell, while its name and fields stay the same. So the source of the class, and of the functions, classes and constants
that it uses, is part of the identity of a run, unless they belong to an installed library other than its own package.
Comments, docstrings and formatting are not part of it.
"""

from __future__ import annotations

import ast
import functools
import inspect
import sys
import sysconfig
import textwrap
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from lt_train.core.io import fingerprint
from lt_train.core.registry import KindSpec

__all__ = ["code_of", "outside_kinds"]

_OWN = ("lt_train", "sweeps")
_CONSTANT = (bool, int, float, complex, str, bytes, tuple, frozenset, type(None))


def code_of(value: Any) -> dict[str, str]:
    """A fingerprint per kind in a specification (or a list of them) that is defined outside this package; often empty.

    Keys are the names of classes, values are sha256 in hex.
    """
    return {f"{one.__module__}.{one.__qualname__}": _fingerprint(one) for one in outside_kinds(value)}


def outside_kinds(value: Any) -> Iterator[type[KindSpec]]:
    """The classes of kinds in a specification, or a list of them, that are defined outside this package."""
    if isinstance(value, KindSpec) and _package(type(value)) not in _OWN:
        yield type(value)
    if isinstance(value, BaseModel):
        value = [getattr(value, name) for name in type(value).model_fields]
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from outside_kinds(item)


def _package(item: Any) -> str:
    """The top-level package of a module, class or function; empty if it has none."""
    name = item.__name__ if isinstance(item, types.ModuleType) else getattr(item, "__module__", None)
    return str(name or "").partition(".")[0]


@functools.cache
def _is_library(package: str) -> bool:
    """Whether a package is installed, or part of Python or of this project."""
    file = getattr(sys.modules.get(package), "__file__", None)
    if package in _OWN or package in sys.stdlib_module_names:
        return package != "__main__"
    places = {sysconfig.get_path(name) for name in ("purelib", "platlib")}
    return file is not None and any(Path(file).is_relative_to(place) for place in places)


def _fingerprint(spec: type) -> str:
    found: dict[str, str] = {}
    _collect(spec, spec.__qualname__, _package(spec), found)
    return fingerprint(found)


def _collect(item: Any, name: str, package: str, found: dict[str, str]) -> None:
    """Add the source of `item`, and of everything of the same package that it uses, to `found`."""
    item = inspect.unwrap(item) if callable(item) else item
    if isinstance(item, functools.partial):
        for part in (item.func, item.args, *item.keywords.values()):
            _collect(part, f"{name}()", package, found)
    elif isinstance(item, _CONSTANT):
        found[name] = repr(item)
    elif name in found or not _is_users(item, package):
        return
    elif inspect.isclass(item):
        found[name] = ", ".join(base.__qualname__ for base in item.__bases__)
        for base in item.__bases__:
            _collect(base, base.__qualname__, package, found)
        for key, member in vars(item).items():
            if not key.startswith(("__", "_abc", "model_")) or key in ("__init__", "__call__"):
                for function in _functions(member):
                    _collect(function, f"{name}.{key}", package, found)
    elif isinstance(item, types.FunctionType):
        found[name] = _source(item)
        used = _names(item.__code__)
        for key in sorted(used):
            value = item.__globals__.get(key)
            if isinstance(value, types.ModuleType) and _is_users(value, package):
                for inner in sorted(used & vars(value).keys()):
                    _collect(getattr(value, inner), f"{value.__name__}.{inner}", package, found)
            elif value is not None:
                _collect(value, key, package, found)


def _is_users(item: Any, package: str) -> bool:
    own = _package(item)
    return own == package or (own != "" and not _is_library(own))


def _functions(member: Any) -> list[Any]:
    """The functions behind a member of a class: of a property, a class method, or itself."""
    if isinstance(member, property):
        return [function for function in (member.fget, member.fset) if function is not None]
    if isinstance(member, classmethod | staticmethod):
        return [member.__func__]
    return [getattr(member, "wrapped", member)]  # validators of pydantic wrap their function


def _names(code: types.CodeType) -> set[str]:
    inner = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return {*code.co_names}.union(*map(_names, inner))


def _source(function: types.FunctionType) -> str:
    """The syntax tree without docstrings; the byte code if the source is not available."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        code = function.__code__
        return repr((code.co_code, [one for one in code.co_consts if isinstance(one, _CONSTANT)]))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.dump(tree)
