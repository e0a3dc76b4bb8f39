"""Packs as bytes, on their way to a worker: what cannot be pickled, or cannot be imported there, is named.

Left to Ray, a pack that a worker cannot unpickle would be retried like one whose machine failed, and one that cannot
be pickled would be reported without the attribute that is the reason.
"""

from __future__ import annotations

import socket
import traceback
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lt_train.core.code import code_of
from lt_train.core.errors import UserError, first_line
from lt_train.retrain.base import Pack

__all__ = ["CannotImport", "pack_bytes", "unpack"]

DEEPEST = 12
"""Levels of attributes that are searched for one that cannot be pickled."""


@dataclass(frozen=True)
class CannotImport:
    """What a worker returns for a pack that it cannot unpickle.

    Attributes:
        reason: the error, in one line.
        module: the module whose import raised it; empty if that is not known.
    """

    reason: str
    module: str = ""

    def error(self, pack: Pack) -> UserError:
        """The error for the user, which names the module, or else those of the pack's kinds from outside."""
        kinds = sorted({key.partition(":")[0] for run in pack.runs for key in code_of(getattr(run, "method", None))})
        modules = self.module or " or ".join(kinds) or "the classes of a pack"
        return UserError(
            f"a worker cannot import {modules}: {self.reason}; every node "
            "needs the packages of the driver, including those named by --allow-import, and what these need "
            "(`lt-sweep submit --ship-code` sends them); then `lt-sweep resume` continues"
        )


def pack_bytes(pack: Pack) -> bytes:
    """A pack, for `unpack` in a worker.

    Raises:
        UserError: it cannot be pickled; the message names the attribute.
    """
    from ray import cloudpickle

    try:
        data: bytes = cloudpickle.dumps(pack)
    except Exception as error:
        raise _not_picklable(pack, error) from error
    return data


def unpack(data: bytes) -> Pack | CannotImport:
    """The pack of `pack_bytes`, in a worker. The code of the user's modules, which is run then, may raise anything."""
    from ray import cloudpickle

    try:
        pack: Pack = cloudpickle.loads(data)
    except (Exception, SystemExit) as error:
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__) if frame.f_code.co_name == "<module>"]
        module = next((str(frame.f_globals["__name__"]) for frame in reversed(frames)), "")
        return CannotImport(f"{type(error).__name__}: {first_line(error)} (on {socket.gethostname()})", module)
    return pack


def _not_picklable(pack: Pack, error: Exception) -> UserError:
    for run in pack.runs:
        method = getattr(run, "method", run)
        path, value = _find(method, type(method).__name__, set(), DEEPEST)
        if path:
            return UserError(
                f"{path} (of type {type(value).__module__}.{type(value).__qualname__}) cannot be sent to a worker: "
                f"{first_line(error)}; create it where it is used, or train in this process with backend: inline"
            )
    return UserError(f"pack {pack.name} cannot be sent to a worker: {first_line(error)}; use backend: inline")


def _find(value: Any, path: str, seen: set[int], depth: int) -> tuple[str, Any]:
    """The path and value of the innermost attribute that cannot be pickled; an empty path if all can be."""
    from ray import cloudpickle

    if id(value) in seen or depth == 0:
        return "", None
    seen.add(id(value))
    try:
        cloudpickle.dumps(value)
    except Exception:
        for name, part in _parts(value):
            inner = _find(part, f"{path}{name}", seen, depth - 1)
            if inner[0]:
                return inner
        return path, value
    return "", None


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """What is pickled with a value: items, attributes, and of code by value also its class and the names it uses."""
    if isinstance(value, Mapping):
        yield from ((f"[{key!r}]", item) for key, item in value.items())
    elif isinstance(value, list | tuple | set | frozenset):
        yield from ((f"[{index}]", item) for index, item in enumerate(value))
    elif isinstance(value, types.FunctionType):
        names = value.__code__.co_names
        yield from ((f": {name}", value.__globals__[name]) for name in names if name in value.__globals__)
        cells = zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)
        yield from ((f": {name}", cell.cell_contents) for name, cell in cells)
    elif isinstance(value, type):
        for name, item in vars(value).items():
            if not name.startswith("__"):
                yield f".{name}", getattr(item, "__func__", getattr(item, "fget", item))
    else:
        private = getattr(value, "__pydantic_private__", None) or {}
        yield from ((f".{name}", item) for name, item in {**getattr(value, "__dict__", {}), **private}.items())
        yield "", type(value)
