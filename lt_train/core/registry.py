"""Specifications and plugin groups: `Spec`, `KindSpec` and the `Registry` of the kinds that a sweep file may name.

A kind is one frozen `KindSpec` subclass that carries its parameters and its implementation. The decorator `register` of
its group makes it available, in a module of this package, in a module of a user, or in a cell of a notebook:

    @METHODS.register
    class MyMethod(TrainedMethod):
        kind: Literal["my_method"] = "my_method"
        ...

A field that takes any kind of a group is annotated with the registry: `head: Annotated[HeadSpec, HEADS] = Linear()`.
Kinds that are registered later are accepted too, because kinds are looked up when a document is validated.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import operator
import os
import pkgutil
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import EntryPoint
from types import MappingProxyType
from typing import Annotated, Any, Generic, TypeVar, cast, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    TypeAdapter,
    ValidationError,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from lt_train.core import plugins
from lt_train.core.code import is_outside, remember
from lt_train.core.errors import SpecError, UserError, first_line
from lt_train.core.fields import BATCHED, NOT_IDENTITY, PATH, KindField, expand, marked_fields
from lt_train.core.validation import dotted, explain, nearest, offer

__all__ = [
    "NOT_IDENTITY",
    "PATH",
    "REGISTRIES",
    "KindSpec",
    "Registry",
    "Spec",
    "as_document",
    "marked_fields",
]


class Spec(BaseModel):
    """Base class of specifications. Unknown keys, wrong types and NaN are rejected; instances are frozen.

    Strict mode does not accept a Python list for a tuple, nor a dict for a specification, so documents are validated as
    JSON (`model_validate_json`). The constructor does so too where the values are not those of the fields: it accepts
    lists, dicts and short forms, as in `LOS(head="cosine")`.

    Raises:
        pydantic.ValidationError: a value is invalid; `lt_train.core.validation.explain` puts it into words.
        SpecError: a class stands in the place of an instance; or an instance would change on its way to a worker or
            into a file, because JSON does not have one of its values.
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


def as_document(value: Any, loc: tuple[str | int, ...] = ()) -> Any:
    """`value` in the form of a sweep file: specifications become mappings of the fields that were given.

    The class of an instance that no `Registry` has yet is registered.

    Args:
        value: what a constructor was called with.
        loc: its path, for messages.

    Raises:
        SpecError: a class stands in the place of an instance; or an instance would change on its way to a worker or
            into a file, because JSON does not have one of its values.
    """
    if isinstance(value, type) and issubclass(value, KindSpec):
        name = value.__name__
        raise SpecError(f"{dotted(loc)}: must be an instance, got the class {name}; pass an instance: {name}(...)")
    if isinstance(value, KindSpec):
        _register_class(type(value))
        _check_document(value, loc)
    if isinstance(value, BaseModel):
        given = {
            field.alias or name: getattr(value, name)
            for name, field in type(value).model_fields.items()
            if name in value.model_fields_set or name == "kind"
        }
        return as_document(given, loc)
    if isinstance(value, Mapping):
        return {key: as_document(item, (*loc, key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_document(item, (*loc, index)) for index, item in enumerate(value)]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _check_document(value: KindSpec, loc: tuple[str | int, ...]) -> None:
    """Refuse an instance that is another one after a round trip through JSON, in which workers and files have it."""
    cls = type(value)
    if not is_outside(cls):
        return
    for field in cls.model_fields:
        try:
            value.model_dump_json(include={field})
        except Exception as error:  # of pydantic, or of a serializer of the class
            raise SpecError(_not_json(cls, (*loc, field), first_line(error))) from None
    try:
        again = cls.model_validate_json(value.model_dump_json())
    except ValidationError as error:
        raise SpecError(_not_json(cls, (*loc, *error.errors()[0]["loc"]), first_line(error))) from None
    for field in cls.model_fields:
        old, new = getattr(value, field), getattr(again, field)
        try:
            same = bool(old == new) and isinstance(old, type(new))
        except Exception:  # comparisons of arrays have no truth value
            same = False
        if not same:
            raise SpecError(_not_json(cls, (*loc, field), f"{old!r} becomes {new!r}"))
    if value.__pydantic_private__ and value.__pydantic_private__ != again.__pydantic_private__:
        raise SpecError(
            f"{dotted(loc)}: private attributes of {cls.__name__} do not reach workers and files; make them fields, or "
            "compute them where they are used"
        )


def _not_json(cls: type, loc: tuple[str | int, ...], why: str) -> str:
    return (
        f"{dotted(loc)}: must be a value that JSON has, because workers and files receive {cls.__name__} as JSON: "
        f"{why}; use text, numbers, true, false, null, lists, or mappings with text as keys"
    )


class KindSpec(Spec):
    """Base class of the kinds of a plugin group. A subclass narrows `kind` to `Literal["its_name"] = "its_name"`."""

    kind: str

    @classmethod
    def kind_name(cls) -> str:
        """The literal that a concrete subclass narrows `kind` to; empty for an abstract base."""
        names = get_args(cls.model_fields["kind"].annotation)
        return names[0] if names else ""


SpecT = TypeVar("SpecT", bound=KindSpec)
ClassT = TypeVar("ClassT", bound=type[KindSpec])


class Registry(KindField, Generic[SpecT]):
    """A plugin group: the kinds that one section of a sweep file may name. Also the annotation of such a section.

    Args:
        name: of the group, for example `methods`; installed packages offer kinds as entry points of the group
            `longtail_sweeps.methods`.
        base: the base class of the group's kinds.
        package: the package or module with the built-in kinds, for example `lt_train.methods`.
        modules: the modules of `package` that define kinds; None for all of them, including those in subpackages.
    """

    def __init__(self, name: str, base: type[SpecT], package: str, modules: Sequence[str] | None = None) -> None:
        self.name, self.base, self.package, self.modules = name, base, package, modules
        self._kinds: dict[str, type[SpecT]] = {}
        self._has_built_ins = False
        self._loaded: set[str] = set()  # entry points
        self._adapter: TypeAdapter[SpecT] | None = None
        self._in_schema = False
        REGISTRIES[name] = self

    def register(self, spec: ClassT) -> ClassT:
        """Make a kind available in this process; a decorator. A cell of a notebook may be run again.

        Raises:
            TypeError: the class cannot be a kind of this group.
            UserError: another class has the same kind; the message names both.
        """
        kind = self._check(spec)
        if not plugins.is_in(self.package, spec.__module__):
            self._load_built_ins()
        known = self._kinds.get(kind)
        if known is not None and _place(known) != _place(spec):
            raise UserError(
                f"{self.name}: kind {kind!r} is defined twice, in {_place(known)} and in {_place(spec)}; give one "
                "of them another kind"
            )
        self._set({**self._kinds, kind: cast(type[SpecT], spec)})
        if not _is_own(spec):
            plugins.registered(spec.__module__, functools.partial(self._forget, kind, known))
            remember(spec)
            _register_defaults(spec)
        return spec

    def kinds(self) -> Mapping[str, type[SpecT]]:
        """The classes of the group by kind, sorted: built-in ones, registered ones, those of allowed modules.

        Raises:
            UserError: there is no module of a name in `plugins.ALLOWED_VARIABLE`.
        """
        self._load_built_ins()
        plugins.import_allowed()
        for point in plugins.offered(self.name):
            if point.value not in self._loaded and plugins.is_allowed(point.module):
                self._loaded.add(point.value)
                name = f"{point.value} ({self.name}: {point.name})"
                plugins.load(name, functools.partial(self._load_offered, point))
        return MappingProxyType(self._kinds)

    def parse(self, document: Mapping[str, Any]) -> SpecT:
        """One kind from a plain mapping such as `{"kind": "los", "smooth_factor": 0.9}`.

        Raises:
            SpecError: unknown kind, unknown field or a value out of range; `problems` holds all of them.
        """
        found, name = self.kinds(), document.get("kind")
        if not isinstance(name, str) or name not in found:
            raise SpecError(f"kind: {name!r} is unknown{offer(name, found)}{self.hint(name)}")
        spec = found[name]
        try:
            return spec.model_validate_json(json.dumps(expand(spec, dict(document))))
        except ValidationError as error:
            raise SpecError([f"{dotted((name, *loc))}: {text}" for loc, text in explain(error, spec)]) from None

    def hint(self, kind: Any) -> str:
        """`; ...`: where an unknown kind may come from: a package that is not allowed, that failed or has no kinds."""
        offering = {point.module.partition(".")[0] for point in plugins.offered(self.name) if point.name == kind}
        for package in sorted(offering):
            if not plugins.is_allowed(package):
                return f"; the installed package {package} offers it: allow it with --allow-import {package}"
        if plugins.failures:
            return "".join(f"; {name} could not be imported: {reason}" for name, reason in plugins.failures.items())
        if without := plugins.without_kinds():
            decorate = f"decorate its class with {self.name.upper()}.register"
            return f"; {', '.join(without)}, given with --allow-import, registers no kind: {decorate}"
        is_typo = bool(nearest(str(kind), self._kinds))
        return "" if is_typo else "; for a kind of your own, import its module, or name it with --allow-import MODULE"

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """A validator that looks kinds up when it is called."""
        return core_schema.no_info_plain_validator_function(self._validate)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Any kind of the group, or its name. Inside a kind that contains kinds of its own group: with any fields."""
        words = {"type": "string", "enum": list(self.kinds())}
        if self._in_schema:
            return {"anyOf": [{"type": "object", "properties": {"kind": words}, "required": ["kind"]}, words]}
        self._in_schema = True
        try:
            return {"anyOf": [handler(self._union().core_schema), words]}
        finally:
            self._in_schema = False

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy in another process is the registry of that process."""
        return _registry, (self.base.__module__, self.name)

    def _set(self, kinds: Mapping[str, type[SpecT]]) -> None:
        self._kinds = dict(sorted(kinds.items()))
        self._adapter = None

    def _forget(self, kind: str, before: type[SpecT] | None) -> None:
        """Undo a registration; `before` is the class that had the kind then."""
        others = {name: spec for name, spec in self._kinds.items() if name != kind}
        self._set(others if before is None else {**others, kind: before})

    def _check(self, spec: type[KindSpec]) -> str:
        """The kind of a class that can be registered.

        Raises:
            TypeError: see `register`.
        """
        if not (inspect.isclass(spec) and issubclass(spec, self.base)):
            raise TypeError(f"{self.name}: a kind must be a subclass of {self.base.__name__}, got {spec!r}")
        kind, name = spec.kind_name(), spec.__name__
        names = get_args(spec.model_fields["kind"].annotation)
        is_name = len(names) == 1 and isinstance(kind, str) and re.fullmatch(r"[a-z][a-z0-9_]*", kind)
        if not is_name or spec.model_fields["kind"].default != kind:
            example = f'kind: Literal["{name.lower()}"] = "{name.lower()}"'
            raise TypeError(
                f"{self.name}: {name} must name its kind, in lower case letters, digits and underscores, for example "
                f"{example}"
            )
        if inspect.isabstract(spec):
            raise TypeError(f"{self.name}: {name} must implement {', '.join(sorted(spec.__abstractmethods__))}")
        for field in marked_fields(spec, BATCHED):
            if spec.model_fields[field].annotation is not float:
                raise TypeError(f"{self.name}: {name}.{field} is BATCHED, so it must be a float")
        return kind

    def _validate(self, value: Any) -> SpecT:
        """An instance as it is; anything else is validated as JSON, so that lists are accepted for tuples."""
        if isinstance(value, self.base):
            _register_class(type(value))
            return value
        try:
            text = json.dumps(value)
        except TypeError:
            raise ValueError(f"must be a mapping with the key kind, got {value!r}") from None
        validated: SpecT = self._union().validate_json(text)
        return validated

    def _union(self) -> TypeAdapter[SpecT]:
        """The union of the kinds, discriminated by `kind`."""
        members = tuple(self.kinds().values())
        if self._adapter is None:
            union: Any = functools.reduce(operator.or_, members)
            annotation: Any = Annotated[union, Field(discriminator="kind")]
            self._adapter = TypeAdapter(union if len(members) == 1 else annotation)
        return self._adapter

    def _load_built_ins(self) -> None:
        if not self._has_built_ins:
            self._has_built_ins = True  # before the imports, because the modules use plugin groups themselves
            modules = _walk(self.package) if self.modules is None else (f"{self.package}.{one}" for one in self.modules)
            for module in modules:
                importlib.import_module(module)

    def _load_offered(self, point: EntryPoint) -> None:
        """Register the class of an entry point.

        Raises:
            UserError: its kind is not the name of the entry point.
        """
        spec = self.register(point.load())
        if spec.kind_name() != point.name:
            raise UserError(f"the entry point {point.name} is of kind {spec.kind_name()!r}; give both the same name")


REGISTRIES: dict[str, Registry[Any]] = {}
"""The plugin groups of the modules that are imported, by name."""


def _registry(module: str, name: str) -> Registry[Any]:
    importlib.import_module(module)
    return REGISTRIES[name]


def _register_class(spec: type[KindSpec]) -> None:
    """Register the class of an instance with its group, if it belongs to one and is not registered yet."""
    if _is_own(spec):
        return  # registered when its module was imported
    for registry in list(REGISTRIES.values()):
        if issubclass(spec, registry.base):
            if registry.kinds().get(spec.kind_name()) is not spec:
                registry.register(spec)


def _register_defaults(spec: type[KindSpec]) -> None:
    """Register the classes of parts that are the default of a field: a part of the user may occur nowhere else."""
    for field in spec.model_fields.values():
        if isinstance(field.default, KindSpec):
            _register_class(type(field.default))


def _is_own(spec: type[KindSpec]) -> bool:
    """Whether a class is part of this project."""
    return plugins.is_in("lt_train", spec.__module__) or plugins.is_in("sweeps", spec.__module__)


def _place(spec: type[KindSpec]) -> str:
    return f"{spec.__module__}.{spec.__qualname__}"


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
