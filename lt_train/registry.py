"""A kind is a file: one frozen `KindSpec` subclass that carries its parameters and its implementation.

`kinds` walks a package, imports its modules and collects those subclasses; `union` makes of them the pydantic
discriminated union that specs and the JSON schema use. Adding a kind therefore means adding a file, and nothing
here is ever edited for it. A spec names kinds and never code: packages of others are walked only where the person who
runs the program says so (`ALLOWED_VARIABLE`). Knows pydantic only.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import json
import operator
import os
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from lt_train.errors import SpecError, UserError
from lt_train.explain import dotted, explain, offer
from lt_train.shorthand import expand

__all__ = ["ALLOWED_VARIABLE", "KindSpec", "Spec", "allowed_names", "allowed_package", "kinds", "parse", "union"]

ALLOWED_VARIABLE = "LT_ALLOW_IMPORT"
"""Environment variable with the packages whose kinds are there too, comma-separated; `--allow-import` sets it.

Such a package has rooms like ours: kinds of `lt_train.methods` are looked for in `their_package.methods`. It must be
set before any room is walked.
"""


class Spec(BaseModel):
    """Base of everything a user may write: unknown keys, wrong types, NaN and later changes are refused.

    Strict mode takes no Python list for a tuple, so documents are validated as JSON (`model_validate_json`).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    def at_default(self, *names: str) -> set[str]:
        """Which of these fields are at their defaults: an identity leaves out those that were once the only way."""
        fields = type(self).model_fields
        return {name for name in names if getattr(self, name) == fields[name].default}


class KindSpec(Spec):
    """Base of one room's kinds. A subclass narrows `kind` to `Literal["its_name"] = "its_name"`."""

    kind: str

    @classmethod
    def kind_name(cls) -> str:
        """The literal a concrete subclass narrows `kind` to; empty for an abstract base."""
        names = get_args(cls.model_fields["kind"].annotation)
        return names[0] if names else ""


SpecT = TypeVar("SpecT", bound=KindSpec)


@functools.cache
def kinds(package: str, base: type[SpecT]) -> dict[str, type[SpecT]]:
    """All kinds of one room: {kind name: Spec class}, by name, found by importing every module of `package`.

    Raises:
        TypeError: two files claim the same kind; both are named. This is a bug in the tree, not a user's.
        UserError: a package of `ALLOWED_VARIABLE` cannot be found.
    """
    found: dict[str, type[SpecT]] = {}
    for module_name in _modules(package):
        module = importlib.import_module(module_name)
        for member in vars(module).values():
            if not (inspect.isclass(member) and issubclass(member, base)):
                continue
            name = member.kind_name()
            if not name or member.__module__ != module.__name__:
                continue
            if name in found:
                first, second = inspect.getfile(found[name]), inspect.getfile(member)
                raise TypeError(f"kind {name!r} is defined twice: in {first} and in {second}")
            found[name] = member
    return dict(sorted(found.items()))


def _modules(package: str) -> Iterator[str]:
    """Names of the modules of a room, ours and those of the packages that are allowed."""
    room = package.rpartition(".")[2]
    for name in (package, *(f"{one}.{room}" for one in allowed_names())):
        if name != package:
            allowed_package(name.removesuffix(f".{room}"))
            if importlib.util.find_spec(name) is None:
                continue  # a package need not have every room
        root = importlib.import_module(name)
        yield from (module.name for module in pkgutil.iter_modules(root.__path__, prefix=f"{name}."))


def allowed_names() -> list[str]:
    """The packages that `ALLOWED_VARIABLE` names."""
    return [name.strip() for name in os.environ.get(ALLOWED_VARIABLE, "").split(",") if name.strip()]


def allowed_package(package: str) -> Path:
    """The directory of a package that `--allow-import` names; nothing of it is imported.

    Raises:
        UserError: it is no name of a package, or of none that is here.
    """
    if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", package):
        raise UserError(f"--allow-import takes the name of a package, got {package!r}")
    try:
        there = importlib.util.find_spec(package)
    except ModuleNotFoundError:
        there = None
    if there is None:
        raise UserError(f"--allow-import {package}: there is no such package on this machine's path")
    if not there.submodule_search_locations:
        raise UserError(f"--allow-import {package}: it is a module and no package, so it has no rooms with kinds")
    return Path(there.submodule_search_locations[0])


def union(package: str, base: type[SpecT]) -> Any:
    """The discriminated union (on `kind`) over a room, for use as a pydantic field annotation."""
    members = tuple(kinds(package, base).values())
    if len(members) == 1:
        return members[0]
    return Annotated[functools.reduce(operator.or_, members), Field(discriminator="kind")]


def parse(package: str, base: type[SpecT], document: dict[str, Any]) -> SpecT:
    """One kind from a plain mapping such as `{"kind": "los", "smooth_factor": 0.9}`.

    Raises:
        SpecError: unknown kind, unknown key or a value outside its range; every problem at once.
    """
    room = kinds(package, base)
    name = document.get("kind")
    if name not in room:
        raise SpecError(f"kind: {name!r} is unknown{offer(name, room)}")
    try:
        adapter: TypeAdapter[SpecT] = TypeAdapter(room[name])
        return adapter.validate_json(json.dumps(expand(room[name], document)))
    except ValidationError as error:
        raise SpecError([f"{dotted((name, *loc))}: {text}" for loc, text in explain(error, room[name])]) from None
