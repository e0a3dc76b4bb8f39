"""Every method that the registry can compose, and settings of one that differ in whatever a lane may differ in.

Nothing here names a kind: a new file in a room of `lt_train` is in every suite that is parametrised over these.
"""

import contextlib
import functools
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from lt_train.core.errors import SpecError
from lt_train.methods.base import METHODS, MethodSpec, TrainedMethod
from lt_train.methods.constraints.base import CONSTRAINTS
from lt_train.methods.heads.base import HEADS
from lt_train.methods.post_hoc.base import POST_HOC
from lt_train.methods.samplers.base import SAMPLERS

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
    "set_lane_value",
    "variants",
]

Document = dict[str, Any]

KNOWN = {
    "lr": (0.004, 0.006, 0.009, 0.0135, 0.02, 0.03, 0.045, 0.0675),
    "momentum": (0.9, 0.5, 0.0, 0.8, 0.7, 0.6, 0.3, 0.2),
    "weight_decay": (0.0, 0.01, 0.1, 0.05, 0.02, 0.03, 0.2, 0.001),
}
"""By lane, where parts of the default would be no good: rates that suit small banks, and decay, which is 0."""


@functools.cache
def searchable(method: MethodSpec) -> tuple[str, ...]:
    """Lane values that may be changed; one that would count for nothing, as `gamma` without focal loss, may not."""
    paths = []
    for path, value in method.lane_values().items():
        with contextlib.suppress(SpecError):
            set_lane_value(method, path, value * 0.5 + 0.001)
            paths.append(path)
    return tuple(paths)


def variants(method: MethodSpec, number: int, *, alike: Iterable[str] = ()) -> list[MethodSpec]:
    """`number` settings of one method that differ in every searchable value, but for those in `alike`.

    Momentum and weight decay decide how a step is done; `alike=("momentum", "weight_decay")` is momentum .9 and no
    decay in every lane, as the paper has it.
    """
    settings = []
    for i in range(number):
        document = method.model_dump(mode="json")
        for path in searchable(method):
            default = method.lane_values()[path]
            place = 0 if path in alike else i
            if path in KNOWN:
                known = KNOWN[path]
                value = known[place % len(known)] * (1 - place // len(known) / 20)
            else:
                value = default * (1 - 0.93 * place / number)
            _set(document, path, value)
        settings.append(METHODS.parse(document))
    return settings


def set_lane_value(method: MethodSpec, path: str, value: float) -> MethodSpec:
    """`method` with one of its lane values replaced, by dotted path."""
    document = method.model_dump(mode="json")
    _set(document, path, value)
    return METHODS.parse(document)


def _set(document: Document, path: str, value: float) -> None:
    *parts, name = path.split(".")
    for part in parts:
        document = document[part]
    document[name] = value


def _options(model: type[BaseModel]) -> Iterator[tuple[str, Any]]:
    """Fields that choose among a few values, and those values: literals of more than one, and booleans."""
    for name, field in model.model_fields.items():
        values = typing.get_args(field.annotation) if typing.get_origin(field.annotation) is typing.Literal else ()
        for value in (False, True) if field.annotation is bool else values if len(values) > 1 else ():
            yield name, value


def _part_documents(rooms: Mapping[str, Mapping[str, type[BaseModel]]]) -> Iterator[Document]:
    """`{room: {kind: ..., option: ...}}` for every kind of these rooms, with every value of every option."""
    for room, members in rooms.items():
        for kind, spec in members.items():
            yield {room: {"kind": kind}}
            for option, value in _options(spec):
                yield {room: {"kind": kind, option: value}}


def _sorted_out(documents: Iterable[Document]) -> tuple[dict[str, MethodSpec], dict[str, str]]:
    """Methods that are allowed, each once, and the reason why each other document is refused."""
    allowed: dict[MethodSpec, str] = {}
    refused: dict[str, str] = {}
    for document in documents:
        try:
            allowed.setdefault(METHODS.parse(document), named(document))
        except SpecError as error:
            refused[named(document)] = str(error)
    return {name: method for method, name in allowed.items()}, refused


def named(document: Document) -> str:
    """A short name for a document, for test ids."""
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
"""Every method kind as it is when nothing else is said."""

TRAINED = {kind: method for kind, method in DEFAULTS.items() if isinstance(method, TrainedMethod)}

_PRODUCT: list[Document] = [
    {"kind": kind, "head": {"kind": head}, "sampler": {"kind": sampler}}
    for kind in METHODS.kinds()
    for head in HEADS.kinds()
    for sampler in SAMPLERS.kinds()
]
_ALLOWED, REFUSED = _sorted_out(_PRODUCT)

ALLOWED = {**{name: method for name, method in DEFAULTS.items() if method not in _ALLOWED.values()}, **_ALLOWED}
"""Method x head x sampler as far as they go together, and methods that have no sampler because they train nothing."""

PARTS, REFUSED_PARTS = _sorted_out(
    {"kind": kind, "head": {"kind": head}, **part}
    for kind in METHODS.kinds()
    for head in HEADS.kinds()
    for part in _part_documents({"constraint": CONSTRAINTS.kinds(), "post_hoc": POST_HOC.kinds()})
)
"""Method x head x (constraint or post-hoc adjustment, with every option of it) as far as they go together."""

EVERY_PART = [
    (kind, part, word)
    for kind, spec in METHODS.kinds().items()
    for part, room in {
        "head": HEADS.kinds(),
        "sampler": SAMPLERS.kinds(),
        "constraint": CONSTRAINTS.kinds(),
        "post_hoc": POST_HOC.kinds(),
    }.items()
    if part in spec.model_fields and spec.model_fields[part].annotation is not type(None)
    for word in room
]
"""Method kind, field and kind of part, allowed or not, where the method has such a field."""

_CHOSEN, _ = _sorted_out(
    [
        *({"kind": kind, option: value} for kind, spec in METHODS.kinds().items() for option, value in _options(spec)),
        *({"kind": kind, **part} for kind in METHODS.kinds() for part in _part_documents({"head": HEADS.kinds()})),
    ]
)
OPTIONS = {name: method for name, method in _CHOSEN.items() if method not in ALLOWED.values()}
"""Every method kind with every value of every option of it and of its head, where `ALLOWED` does not have it."""
