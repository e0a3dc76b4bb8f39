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
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lt_train.core.errors import SpecError, UserError
from lt_train.core.shorthand import expand
from lt_train.core.validation import dotted, explain, offer

__all__ = ["ALLOWED_VARIABLE", "KindSpec", "Registry", "Spec", "allowed_names", "allowed_package"]

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


class Registry(Generic[SpecT]):
    """A plugin group: the kinds that one section of a sweep file may name.

    Args:
        package: the package that holds the built-in kinds, for example `lt_train.methods`. The last part of its name is
            the name of the group in packages that `--allow-import` admits.
        base: the base class of the group's kinds.
        modules: the modules of `package` that define kinds; None for all of them, including those in subpackages.
    """

    def __init__(self, package: str, base: type[SpecT], modules: Sequence[str] | None = None) -> None:
        self.package, self.base, self.modules = package, base, modules
        self._kinds: dict[str, type[SpecT]] | None = None

    def kinds(self) -> Mapping[str, type[SpecT]]:
        """The classes of the group by kind, sorted; their modules are imported at the first call.

        Raises:
            TypeError: two modules define the same kind; the message names both.
            UserError: a package of `ALLOWED_VARIABLE` cannot be found.
        """
        if self._kinds is None:
            self._kinds = self._collect()
        return self._kinds

    def union(self) -> Any:
        """The union of the group's classes, discriminated by `kind`, for a pydantic field annotation."""
        members = tuple(self.kinds().values())
        if len(members) == 1:
            return members[0]
        return Annotated[functools.reduce(operator.or_, members), Field(discriminator="kind")]

    def parse(self, document: Mapping[str, Any]) -> SpecT:
        """One kind from a plain mapping such as `{"kind": "los", "smooth_factor": 0.9}`.

        Raises:
            SpecError: unknown kind, unknown field or a value out of range; `problems` holds all of them.
        """
        found, name = self.kinds(), document.get("kind")
        if not isinstance(name, str) or name not in found:
            raise SpecError(f"kind: {name!r} is unknown{offer(name, found)}")
        spec = found[name]
        try:
            return spec.model_validate_json(json.dumps(expand(spec, dict(document))))
        except ValidationError as error:
            raise SpecError([f"{dotted((name, *loc))}: {text}" for loc, text in explain(error, spec)]) from None

    def _collect(self) -> dict[str, type[SpecT]]:
        found: dict[str, type[SpecT]] = {}
        for module_name in self._module_names():
            module = importlib.import_module(module_name)
            for member in vars(module).values():
                if not (inspect.isclass(member) and issubclass(member, self.base)):
                    continue
                name = member.kind_name()
                if not name or member.__module__ != module.__name__:
                    continue
                if name in found:
                    first, second = inspect.getfile(found[name]), inspect.getfile(member)
                    raise TypeError(f"kind {name!r} is defined twice: in {first} and in {second}")
                found[name] = member
        return dict(sorted(found.items()))

    def _module_names(self) -> Iterator[str]:
        if self.modules is None:
            yield from _walk(self.package)
        else:
            yield from (f"{self.package}.{module}" for module in self.modules)
        group = self.package.rpartition(".")[2]
        for name in allowed_names():
            allowed_package(name)
            if importlib.util.find_spec(f"{name}.{group}") is not None:  # a package need not have every group
                yield from _walk(f"{name}.{group}")


def _walk(package: str) -> Iterator[str]:
    """Names of all public modules of a package and of its public subpackages."""
    root = importlib.import_module(package)
    for module in pkgutil.iter_modules(root.__path__, prefix=f"{package}."):
        if module.name.rpartition(".")[2].startswith("_"):
            continue
        if module.ispkg:
            yield from _walk(module.name)
        else:
            yield module.name


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
