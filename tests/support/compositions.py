"""Every valid composition of a method from the registry, and variants of a method with different lane values.

No kind is named here, so a new kind is tested by every suite that is parametrised over these.
"""

import contextlib
import functools
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from lt_train.core.errors import SpecError
from lt_train.core.fields import substitute
from lt_train.methods.base import METHODS, MethodSpec, TrainedMethod
from lt_train.methods.constraints import CONSTRAINTS
from lt_train.methods.heads.base import HEADS
from lt_train.methods.post_hoc import POST_HOC
from lt_train.methods.samplers import SAMPLERS

__all__ = [
    "ALLOWED",
    "DEFAULTS",
    "EVERY_PART",
    "OPTIONS",
    "PARTS",
    "REFUSED",
    "REFUSED_PARTS",
    "TRAINED",
    "Document",
    "named",
    "searchable",
    "variants",
]

Document = dict[str, Any]

KNOWN = {
    "lr": (0.004, 0.006, 0.009, 0.0135, 0.02, 0.03, 0.045, 0.0675),
    "momentum": (0.9, 0.5, 0.0, 0.8, 0.7, 0.6, 0.3, 0.2),
    "weight_decay": (0.0, 0.01, 0.1, 0.05, 0.02, 0.03, 0.2, 0.001),
}
"""Values by lane where fractions of the default are unsuitable: rates for small banks, and decay, which is 0."""


@functools.cache
def searchable(method: MethodSpec) -> tuple[str, ...]:
    """Lane values that may be changed; not those without effect, such as `gamma` without focal loss."""
    paths = []
    for path, value in method.lane_values().items():
        with contextlib.suppress(ValidationError):
            substitute(method, {path: value * 0.5 + 0.001})
            paths.append(path)
    return tuple(paths)


def variants(method: MethodSpec, number: int, *, alike: Iterable[str] = ()) -> list[MethodSpec]:
    """`number` variants of a method that differ in every searchable value except those in `alike`.

    Momentum and weight decay decide how a step is computed; `alike=("momentum", "weight_decay")` gives momentum 0.9 and
    no decay in every lane, as in the paper.
    """
    settings = []
    for i in range(number):
        values = {}
        for path in searchable(method):
            default = method.lane_values()[path]
            index = 0 if path in alike else i
            if path in KNOWN:
                known = KNOWN[path]
                values[path] = known[index % len(known)] * (1 - index // len(known) / 20)
            else:
                values[path] = default * (1 - 0.93 * index / number)
        settings.append(substitute(method, values))
    return settings


def _options(model: type[BaseModel]) -> Iterator[tuple[str, Any]]:
    """Fields with a few allowed values (literals and booleans) and each of these values."""
    for name, field in model.model_fields.items():
        values = typing.get_args(field.annotation) if typing.get_origin(field.annotation) is typing.Literal else ()
        for value in (False, True) if field.annotation is bool else values if len(values) > 1 else ():
            yield name, value


def _part_documents(groups: Mapping[str, Mapping[str, type[BaseModel]]]) -> Iterator[Document]:
    """`{part: {kind: ..., option: ...}}` for every kind of these plugin groups, with every value of every option."""
    for part, members in groups.items():
        for kind, spec in members.items():
            yield {part: {"kind": kind}}
            for option, value in _options(spec):
                yield {part: {"kind": kind, option: value}}


def _validated(documents: Iterable[Document]) -> tuple[dict[str, MethodSpec], dict[str, str]]:
    """The valid methods, each once, and the error of every other document."""
    allowed: dict[MethodSpec, str] = {}
    refused: dict[str, str] = {}
    for document in documents:
        try:
            allowed.setdefault(METHODS.parse(document), named(document))
        except SpecError as error:
            refused[named(document)] = str(error)
    return {name: method for method, name in allowed.items()}, refused


def named(document: Document) -> str:
    """A short test id for a document."""
    words = [
        f"{key}:{value['kind']}" + "".join(f",{name}={inner}" for name, inner in value.items() if name != "kind")
        if isinstance(value, dict)
        else f"{value}"
        if key == "kind"
        else f"{key}={value}"
        for key, value in document.items()
    ]
    return "-".join(words)


DEFAULTS = {kind: METHODS.parse({"kind": kind}) for kind in METHODS.kinds()}
"""Every method kind with its defaults."""

TRAINED = {kind: method for kind, method in DEFAULTS.items() if isinstance(method, TrainedMethod)}

_PRODUCT: list[Document] = [
    {"kind": kind, "head": {"kind": head}, "sampler": {"kind": sampler}}
    for kind in METHODS.kinds()
    for head in HEADS.kinds()
    for sampler in SAMPLERS.kinds()
]
_ALLOWED, REFUSED = _validated(_PRODUCT)

ALLOWED = {**{name: method for name, method in DEFAULTS.items() if method not in _ALLOWED.values()}, **_ALLOWED}
"""Every valid method x head x sampler, and the methods that train nothing and have no sampler."""

PARTS, REFUSED_PARTS = _validated(
    {"kind": kind, "head": {"kind": head}, **part}
    for kind in METHODS.kinds()
    for head in HEADS.kinds()
    for part in _part_documents({"constraint": CONSTRAINTS.kinds(), "post_hoc": POST_HOC.kinds()})
)
"""Every valid method x head x (constraint or post-hoc adjustment, with every option)."""

EVERY_PART = [
    (kind, part, value)
    for kind, spec in METHODS.kinds().items()
    for part, group in {
        "head": HEADS.kinds(),
        "sampler": SAMPLERS.kinds(),
        "constraint": CONSTRAINTS.kinds(),
        "post_hoc": POST_HOC.kinds(),
    }.items()
    if part in spec.model_fields and spec.model_fields[part].annotation is not type(None)
    for value in group
]
"""Method kind, field and kind of the part, valid or not, where the method has such a field."""

_CHOSEN, _ = _validated(
    [
        *({"kind": kind, option: value} for kind, spec in METHODS.kinds().items() for option, value in _options(spec)),
        *({"kind": kind, **part} for kind in METHODS.kinds() for part in _part_documents({"head": HEADS.kinds()})),
    ]
)
OPTIONS = {name: method for name, method in _CHOSEN.items() if method not in ALLOWED.values()}
"""Every method kind with every value of every option of the method and its head, except those in `ALLOWED`."""
