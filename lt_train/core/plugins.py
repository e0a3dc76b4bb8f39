"""Code of other authors: the modules that `--allow-import` names, and kinds that installed packages offer.

A sweep file names kinds, never code. A module of a user, or of an installed package, is imported only if the person who
runs the program allows it by name (`ALLOWED_VARIABLE`). Kinds that an installed package declares as entry points are
listed without importing the package.

A module that cannot be imported is reported as a warning and remembered in `failures`, and its kinds are not available.
Whatever does not need them continues.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import logging
import os
import re
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from lt_train.core.errors import UserError, first_line

__all__ = [
    "ALLOWED_VARIABLE",
    "allowed_names",
    "failures",
    "import_allowed",
    "is_allowed",
    "is_in",
    "load",
    "module_path",
    "offered",
    "registered",
    "without_kinds",
]

_log = logging.getLogger(__name__)

ALLOWED_VARIABLE = "LT_ALLOW_IMPORT"
"""Environment variable with a comma-separated list of modules or packages that are imported; `--allow-import` sets it.

Their classes are decorated with the `register` method of a plugin group, such as `METHODS.register`.
"""

ENTRY_POINTS = "longtail_sweeps"
"""Kinds of the group `methods` are entry points of the group `longtail_sweeps.methods`: `kind = "module:Class"`."""

failures: dict[str, str] = {}
"""Why an allowed module, or a kind that a package offers, could not be loaded, by its name."""

_imported: set[str] = set()
_with_kinds: set[str] = set()  # modules that have registered kinds
_undo: list[list[Callable[[], None]]] = []  # for every module that is being loaded, what its failure undoes


def allowed_names() -> list[str]:
    """The modules and packages that `ALLOWED_VARIABLE` names."""
    return [name.strip() for name in os.environ.get(ALLOWED_VARIABLE, "").split(",") if name.strip()]


def is_allowed(module: str) -> bool:
    """Whether `ALLOWED_VARIABLE` names `module` or a package that contains it."""
    return any(is_in(name, module) for name in allowed_names())


def is_in(package: str, module: str) -> bool:
    """Whether a module is `package` itself or part of it."""
    return f"{module}.".startswith(f"{package}.")


def module_path(name: str) -> Path:
    """The file of a module, or the directory of the package it is in, given with `--allow-import`; nothing is imported.

    Raises:
        UserError: it is not a valid module name, or there is no such module.
    """
    if name.endswith(".py") or not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", name):
        hint = f"; for a file, give {Path(name).stem} in the directory of the file" if name.endswith(".py") else ""
        raise UserError(f"--allow-import must be the name of a module or package, got {name!r}{hint}")
    spec = importlib.util.find_spec(name.partition(".")[0])  # of a submodule it would import the package
    if spec is None or not (spec.has_location or spec.submodule_search_locations):
        raise UserError(
            f"--allow-import {name}: there is no such module on the Python path; install it, set PYTHONPATH, or run "
            "the command in the directory that contains it"
        )
    return Path(spec.submodule_search_locations[0] if spec.submodule_search_locations else spec.origin or "")


def import_allowed() -> None:
    """Import every allowed module once, so that it registers its kinds. One that fails is recorded in `failures`.

    Raises:
        UserError: there is no such module.
    """
    for name in allowed_names():
        if name not in _imported:
            module_path(name)
            _imported.add(name)  # before the import, because the module may use plugin groups itself
            load(name, functools.partial(importlib.import_module, name))


def load(name: str, importing: Callable[[], object]) -> object:
    """The result of `importing`; None if it fails, with the reason in `failures` and in a warning."""
    _undo.append([])
    try:
        with contextlib.redirect_stdout(sys.stderr):  # standard output is reserved for results
            return importing()
    except (Exception, SystemExit) as error:  # the code of another author may raise anything
        failures[name] = f"{type(error).__name__}: {first_line(error)}"
        _log.warning("%s could not be imported, and not all of its kinds are available: %s", name, failures[name])
        for undo in reversed(_undo[-1]):
            undo()
        return None
    finally:
        _undo.pop()


def registered(module: str, forget: Callable[[], None]) -> None:
    """Note that a module has registered a kind.

    Args:
        module: its name.
        forget: called if the import of the module, or of a package that it is in, fails after that.
    """

    def undo() -> None:
        parts = module.split(".")
        # Python removes a module that fails from `sys.modules`.
        if any(".".join(parts[: depth + 1]) not in sys.modules for depth in range(len(parts))):
            _with_kinds.discard(module)
            forget()

    _with_kinds.add(module)
    if _undo:
        _undo[-1].append(undo)


def without_kinds() -> list[str]:
    """The allowed modules and packages that were imported and have no kind, registered or as an entry point."""
    groups = (group for group in entry_points().groups if group.startswith(f"{ENTRY_POINTS}."))
    having = _with_kinds | {point.module for group in groups for point in entry_points(group=group)}
    imported = (name for name in allowed_names() if name in _imported and name not in failures)
    return [name for name in imported if not any(is_in(name, module) for module in having)]


@functools.cache
def offered(group: str) -> tuple[EntryPoint, ...]:
    """The kinds of a plugin group that installed packages offer, allowed or not. Nothing is imported."""
    return tuple(sorted(entry_points(group=f"{ENTRY_POINTS}.{group}"), key=lambda point: (point.name, point.value)))
