"""A kind is a file: one frozen `KindSpec` subclass that carries its parameters and its implementation.

`kinds` walks a package, imports its modules and collects those subclasses; `union` makes of them the pydantic
discriminated union that specs and the JSON schema use. Adding a kind therefore means adding a file, and nothing
here is ever edited for it. Knows pydantic only.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import json
import operator
import pkgutil
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from lt_train.errors import SpecError

__all__ = ["KindSpec", "Spec", "explain", "kinds", "parse", "union"]


class Spec(BaseModel):
    """Base of everything a user may write: unknown keys, wrong types, NaN and later changes are refused.

    Strict mode takes no Python list for a tuple, so documents are validated as JSON (`model_validate_json`).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


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
    """
    found: dict[str, type[SpecT]] = {}
    root = importlib.import_module(package)
    for module_info in pkgutil.iter_modules(root.__path__, prefix=f"{package}."):
        module = importlib.import_module(module_info.name)
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
        raise SpecError(f"kind: {name!r} is unknown{_nearest(str(name), room)}; known: {', '.join(room)}")
    try:
        adapter: TypeAdapter[SpecT] = TypeAdapter(room[name])
        return adapter.validate_json(json.dumps(document))
    except ValidationError as error:
        raise SpecError([f"{name}.{path}: {text}" for path, text in explain(error, room[name])]) from None


def explain(error: ValidationError, model: type[BaseModel]) -> list[tuple[str, str]]:
    """pydantic's complaints as `(dotted path, message)` pairs, unknown keys with the nearest known one."""
    problems: list[tuple[str, str]] = []
    for entry in error.errors(include_url=False):
        path = ".".join(str(part) for part in entry["loc"])
        message = entry["msg"]
        if entry["type"] == "extra_forbidden":
            known = list(model.model_fields)
            message = f"unknown key{_nearest(str(entry['loc'][-1]), known)}; known: {', '.join(known)}"
        else:
            message = f"{message}, got {entry['input']!r}"
        problems.append((path, message))
    return problems


def _nearest(word: str, known: Any) -> str:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
