"""Specifications and plugin groups: `Spec`, `KindSpec` and the `Registry` of the kinds that a sweep file may name.

A kind is one frozen `KindSpec` subclass that carries its parameters and its implementation. A `Registry` imports the
modules of a package, collects these subclasses and forms the discriminated union that specifications and the JSON
schema use. A new kind needs a class in such a module and no other change. A sweep file names kinds, never code:
packages of users are searched only if the person who runs the program allows it (`ALLOWED_VARIABLE`).
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
from lt_train.core.fields import NOT_IDENTITY, PATH, expand, marked_fields
from lt_train.core.validation import dotted, explain, offer

__all__ = [
    "ALLOWED_VARIABLE",
    "NOT_IDENTITY",
    "PATH",
    "KindSpec",
    "Registry",
    "Spec",
    "allowed_names",
    "allowed_package",
    "as_document",
    "marked_fields",
]

ALLOWED_VARIABLE = "LT_ALLOW_IMPORT"
"""Environment variable with a comma-separated list of packages whose kinds are available too; `--allow-import` sets it.

Such a package mirrors the groups of this one: kinds of the group `methods` are looked up in `their_package.methods`,
a module or a package. The variable must be set before the kinds of any group are first used.
"""


class Spec(BaseModel):
    """Base class of specifications. Unknown keys, wrong types and NaN are rejected; instances are frozen.

    Strict mode does not accept a Python list for a tuple, nor a dict for a specification, so documents are validated as
    JSON (`model_validate_json`). The constructor does so too where the values are not those of the fields: it accepts
    lists, dicts and short forms, as in `LOS(head="cosine")`.

    Raises:
        pydantic.ValidationError: a value is invalid; `lt_train.core.validation.explain` puts it into words.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError:
            try:
                document = json.loads(json.dumps(as_document(values)))
            except TypeError:  # a value that has no JSON form: the first error is the right one
                document = None
            if document is None:
                raise
            text = json.dumps(expand(type(self), document))
            self.__pydantic_validator__.validate_json(text, self_instance=self)

    # Documents are validated without this constructor, as with the one of pydantic.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]


def as_document(value: Any) -> Any:
    """`value` in the form of a sweep file: specifications become mappings of the fields that were given."""
    if isinstance(value, BaseModel):
        given = {
            field.alias or name: getattr(value, name)
            for name, field in type(value).model_fields.items()
            if name in value.model_fields_set or name == "kind"
        }
        return as_document(given)
    if isinstance(value, Mapping):
        return {key: as_document(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_document(item) for item in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


class KindSpec(Spec):
    """Base class of the kinds of a plugin group. A subclass narrows `kind` to `Literal["its_name"] = "its_name"`."""

    kind: str

    @classmethod
    def kind_name(cls) -> str:
        """The literal that a concrete subclass narrows `kind` to; empty for an abstract base."""
        names = get_args(cls.model_fields["kind"].annotation)
        return names[0] if names else ""


SpecT = TypeVar("SpecT", bound=KindSpec)


class Registry(Generic[SpecT]):
    """A plugin group: the kinds that one section of a sweep file may name.

    Args:
        package: the package or module that holds the built-in kinds, for example `lt_train.methods`. The last part of
            its name is the name of the group in packages given with `--allow-import`.
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


def _walk(name: str) -> Iterator[str]:
    """Names of all public modules of a package and of its public subpackages; a plain module yields its own name."""
    root = importlib.import_module(name)
    if not hasattr(root, "__path__"):
        yield name
        return
    for module in pkgutil.iter_modules(root.__path__, prefix=f"{name}."):
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
    """The directory of a package given with `--allow-import`. Nothing in it is imported.

    Raises:
        UserError: it is not a valid package name, or there is no such package.
    """
    if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", package):
        raise UserError(f"--allow-import must be the name of a package, got {package!r}")
    try:
        spec = importlib.util.find_spec(package)
    except ModuleNotFoundError:
        spec = None
    if spec is None:
        raise UserError(
            f"--allow-import {package}: there is no such package on the Python path; install it or set PYTHONPATH"
        )
    if not spec.submodule_search_locations:
        raise UserError(
            f"--allow-import {package}: it must be a package with a module such as {package}.methods, got a module"
        )
    return Path(spec.submodule_search_locations[0])
