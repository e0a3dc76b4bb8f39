"""Several sweeps in one file: `matrix` names what differs, and each of its values makes one whole, ordinary sweep.

A matrix is expanded where it is read and nowhere else: each of its members has a name, a directory, a ledger and a
result of its own, and whoever is handed one does not know of the others. What they have in common, backbones and
features, they share as all sweeps of a storage do. Touch this to change how a matrix is written; a single sweep is
`sweeps.config.spec`'s.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from lt_train.core.errors import SpecError
from lt_train.core.shorthand import expand
from lt_train.core.validation import Problem
from sweeps.config.spec import MATRIX_KEY, NAME, SHARED, SweepSpec, checked, told
from sweeps.config.yaml_source import Source, load_yaml

__all__ = ["SweepMatrix", "load_file", "load_matrix"]

Loc = tuple[int | str, ...]


@dataclass(frozen=True)
class SweepMatrix:
    """The sweeps of one file.

    Attributes:
        name: the file's; members are called `<name>-<name of the value>`.
        matrix: the section or dotted field in which they differ.
        members: by the name of the value that makes them, in the file's order.
    """

    name: str
    axis: str
    members: Mapping[str, SweepSpec]

    @property
    def sweeps(self) -> list[SweepSpec]:
        """The members."""
        return list(self.members.values())

    @property
    def storage(self) -> str:
        """Where all of them are kept."""
        return self.sweeps[0].storage

    def anchored(self, place: Path) -> SweepMatrix:
        """The same matrix, good from any directory; see `SweepSpec.anchored`."""
        return self.each(lambda spec: spec.anchored(place))

    def each(self, changed: Callable[[SweepSpec], SweepSpec]) -> SweepMatrix:
        """The same matrix, each of its sweeps changed."""
        return replace(self, members={value: changed(spec) for value, spec in self.members.items()})


def load_file(path: str | Path) -> SweepSpec | SweepMatrix:
    """Read and check a file of one sweep, or of several.

    Raises:
        SpecError: `problems` holds every problem once, as `file:line: dotted.path: what is wrong; did you mean ...`.
    """
    source = load_yaml(path)
    if MATRIX_KEY in source.document:
        return _matrix(source)
    sweep = checked(source.document)
    if isinstance(sweep, SweepSpec):
        return sweep
    raise SpecError(told(sweep, source))


def load_matrix(path: str | Path) -> SweepMatrix:
    """Read and check a file with `matrix`.

    Raises:
        SpecError: as `load_file`, or the file is of one sweep.
    """
    matrix = load_file(path)
    if isinstance(matrix, SweepSpec):
        raise SpecError(
            f"{path}:1: {MATRIX_KEY}: is not given, so this is one sweep and no matrix; sweeps.load reads it"
        )
    return matrix


class _Value(NamedTuple):
    """One value of `matrix`: what it is called, where it stands, and itself. Without a name it has none."""

    name: str | None
    place: Loc
    value: Any


def _matrix(source: Source) -> SweepMatrix:
    document = {key: part for key, part in source.document.items() if key != MATRIX_KEY}
    axis = source.document[MATRIX_KEY]
    problems: dict[Problem, None] = dict.fromkeys(_form_problems(axis))
    key, values = _values(axis)
    problems |= dict.fromkeys(_name_problems(document.get("name"), key, values))
    members: dict[str, SweepSpec] = {}
    found: list[list[Problem]] = []
    for value in values:
        member = checked(_laid(document, key, value.value))
        if isinstance(member, SweepSpec):
            members[value.name or ""] = member.model_copy(update={"name": f"{member.name}-{value.name}"})
        else:
            found.append([problem._replace(loc=_in_file(problem.loc, key, value.place)) for problem in member])
    if not values and not isinstance(alone := checked(document), SweepSpec):
        # Whatever `matrix` should have supplied is missing, which is no further mistake.
        found.append([problem for problem in alone if "required, but not given" not in problem.message])
    problems |= dict.fromkeys(_once(found, key, values))
    if problems:
        raise SpecError(told(problems, source))
    return SweepMatrix(source.document["name"], key, members)


def _form_problems(axis: Any) -> Iterator[Problem]:
    if not isinstance(axis, dict) or len(axis) != 1:
        yield Problem(
            (MATRIX_KEY,),
            "must be a mapping with one key, the section or dotted field that differs, such as stage1 or "
            f"dataset.imbalance_ratio, and its values, got {json.dumps(axis)[:60]}",
        )
        return
    ((key, listed),) = axis.items()
    if key.partition(".")[0] in (*SHARED, MATRIX_KEY):
        yield Problem((MATRIX_KEY, key), f"decides no result; all sweeps of a matrix have the same {key}")
    elif not isinstance(listed, list | dict) or len(listed) < 2:
        got = json.dumps(listed)[:60]
        yield Problem(
            (MATRIX_KEY, key), f"must be a list of at least two values, or a mapping of names to them, got {got}"
        )


def _values(axis: Any) -> tuple[str, list[_Value]]:
    """What differs, and its values as far as the file has any."""
    ((key, listed),) = axis.items() if isinstance(axis, dict) and len(axis) == 1 else [("", None)]
    if key.partition(".")[0] in SHARED or not isinstance(listed, list | dict):
        return key, []
    if isinstance(listed, dict):
        return key, [_Value(name, (MATRIX_KEY, key, name), value) for name, value in listed.items()]
    return key, [_Value(_called(value), (MATRIX_KEY, key, index), value) for index, value in enumerate(listed)]


def _called(value: Any) -> str | None:
    """What a value is called where the file does not say: a kind, a word or a number."""
    if isinstance(value, dict):
        value = value.get("kind")
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    return value if isinstance(value, str) else None


def _name_problems(matrix: Any, key: str, values: list[_Value]) -> Iterator[Problem]:
    way_out = "write a mapping of names to values instead of a list"
    first: dict[str | None, _Value] = {}
    for name, place, _ in values:
        if name is None:
            yield Problem(place, f"must have a kind, or be a word or a number, to be called by; or {way_out}")
        elif name in first:
            yield Problem(place, f"{name!r} is what {key}[{first[name].place[-1]}] is called already; {way_out}")
        elif not isinstance(matrix, str) or not re.fullmatch(NAME, matrix):
            pass  # told of the matrix's name
        elif not re.fullmatch(NAME, f"{matrix}-{name}"):
            yield Problem(
                place,
                f"the sweep would be called {f'{matrix}-{name}'!r}: a name has at most 64 letters, digits, dots, "
                f"dashes or underscores; shorten it, or {way_out}",
            )
        first.setdefault(name, _Value(name, place, None))


def _laid(document: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """The document of one member: `value` in the place of what the file says there."""
    laid: dict[str, Any] = expand(SweepSpec, dict(document))
    *sections, name = key.split(".")
    place = laid
    for section in sections:
        inner = place.get(section, {})
        if not isinstance(inner, dict):
            return laid  # is wrong itself, and told
        place[section] = place = dict(inner)
    place[name] = value
    return laid


def _in_file(loc: Loc, key: str, place: Loc) -> Loc:
    """Where the file has what a member's document has at `loc`."""
    at = tuple(key.split("."))
    return (*place, *loc[len(at) :]) if loc[: len(at)] == at else loc


def _once(found: list[list[Problem]], key: str, values: list[_Value]) -> Iterator[Problem]:
    """The problems of all members; what is wrong with the key itself, and so with every value alike, is told of it."""
    places = {value.place for value in values}
    alike = [message for loc, message in found[0] if loc in places] if 0 < len(found) == len(values) else []
    alike = [message for message in alike if all(any(message == one for _, one in each) for each in found)]
    for each in found:
        for loc, message in each:
            yield Problem((MATRIX_KEY, key), message) if loc in places and message in alike else Problem(loc, message)
