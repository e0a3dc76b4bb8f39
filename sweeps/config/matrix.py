"""Sweep matrices: several sweeps in one file, which differ in one section or field.

Each value under `matrix` gives one ordinary sweep with its own name, directory, ledger and result. The sweeps share
backbones and feature banks through their storage, as all sweeps do.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from lt_train.core.errors import SpecError
from lt_train.core.fields import expand
from lt_train.core.registry import as_document
from lt_train.core.validation import Problem
from sweeps.config.spec import MATRIX_KEY, NAME, SHARED, SweepSpec, format_problems, validate_document
from sweeps.config.yaml_source import Source, load_yaml, parse_yaml

__all__ = ["SweepMatrix", "load_document", "load_file", "load_matrix", "sweeps_of"]

Loc = tuple[int | str, ...]


@dataclass(frozen=True)
class SweepMatrix:
    """The sweeps of one file.

    Attributes:
        name: of the file; each sweep is named `<name>-<name of its value>`.
        axis: the section or dotted field in which the sweeps differ.
        members: the sweeps by the name of their value, in the order of the file.
    """

    name: str
    axis: str
    members: Mapping[str, SweepSpec]

    @property
    def sweeps(self) -> list[SweepSpec]:
        """The sweeps."""
        return list(self.members.values())

    @property
    def storage(self) -> str:
        """The storage of all sweeps."""
        return self.sweeps[0].storage

    def with_absolute_paths(self, base: str | os.PathLike[str]) -> SweepMatrix:
        """The same matrix, independent of the working directory; see `SweepSpec.with_absolute_paths`."""
        return self.map(lambda spec: spec.with_absolute_paths(base))

    def map(self, function: Callable[[SweepSpec], SweepSpec]) -> SweepMatrix:
        """The same matrix with `function` applied to each sweep."""
        return replace(self, members={value: function(spec) for value, spec in self.members.items()})


def load_file(path: str | os.PathLike[str]) -> SweepSpec | SweepMatrix:
    """Read and validate a file of one sweep or of a matrix.

    Raises:
        SpecError: `problems` holds every problem once, as `file:line: dotted.path: message`.
    """
    source = load_yaml(path)
    if MATRIX_KEY in source.document:
        return _matrix(source)
    sweep = validate_document(source.document)
    if isinstance(sweep, SweepSpec):
        return sweep
    raise SpecError(format_problems(sweep, source))


def load_document(document: Mapping[str, Any]) -> SweepSpec | SweepMatrix:
    """The sweep or matrix of a mapping in the form of a file, which may contain instances of specifications.

    Raises:
        SpecError: `problems` holds every problem as `dotted.path: message`.
    """
    if MATRIX_KEY not in document:
        return SweepSpec(**document)
    source = parse_yaml(json.dumps(as_document(dict(document)), default=repr), "mapping")
    try:
        return _matrix(source)
    except SpecError as error:
        raise SpecError([re.sub(r"^mapping:\d+: ", "", problem) for problem in error.problems]) from None


def sweeps_of(loaded: SweepSpec | SweepMatrix) -> list[SweepSpec]:
    """The sweeps of a file that `load_file` has read."""
    return list(loaded.sweeps) if isinstance(loaded, SweepMatrix) else [loaded]


def load_matrix(path: str | os.PathLike[str]) -> SweepMatrix:
    """Read and validate a file with `matrix`.

    Raises:
        SpecError: as `load_file`, or the file holds one sweep.
    """
    matrix = load_file(path)
    if isinstance(matrix, SweepSpec):
        raise SpecError(
            f"{path}:1: {MATRIX_KEY}: is not given: the file holds one sweep; read it with sweeps.load_sweep"
        )
    return matrix


class _Value(NamedTuple):
    """One value of `matrix`: its name (None if it has none), its location in the file, and the value."""

    name: str | None
    loc: Loc
    value: Any


def _matrix(source: Source) -> SweepMatrix:
    document = {key: part for key, part in source.document.items() if key != MATRIX_KEY}
    matrix = source.document[MATRIX_KEY]
    problems: dict[Problem, None] = dict.fromkeys(_form_problems(matrix))
    axis, values = _values(matrix)
    problems |= dict.fromkeys(_name_problems(document.get("name"), axis, values))
    members: dict[str, SweepSpec] = {}
    found: list[list[Problem]] = []
    for value in values:
        member = validate_document(_with_value(document, axis, value.value))
        if isinstance(member, SweepSpec):
            members[value.name or ""] = member.model_copy(update={"name": f"{member.name}-{value.name}"})
        else:
            found.append([problem._replace(loc=_loc_in_file(problem.loc, axis, value.loc)) for problem in member])
    if not values and not isinstance(single := validate_document(document), SweepSpec):
        # A section that the invalid matrix should have supplied is not reported as missing.
        found.append([problem for problem in single if "required, but not given" not in problem.message])
    problems |= dict.fromkeys(_without_duplicates(found, axis, values))
    if problems:
        raise SpecError(format_problems(problems, source))
    return SweepMatrix(source.document["name"], axis, members)


def _form_problems(matrix: Any) -> Iterator[Problem]:
    if not isinstance(matrix, dict) or len(matrix) != 1:
        yield Problem(
            (MATRIX_KEY,),
            "must be a mapping with one key, a section or dotted field such as stage1 or dataset.imbalance_ratio, and "
            f"its values, got {json.dumps(matrix)[:60]}",
        )
        return
    ((axis, listed),) = matrix.items()
    if axis.partition(".")[0] in (*SHARED, MATRIX_KEY):
        yield Problem((MATRIX_KEY, axis), f"has no influence on results; all sweeps of a matrix share {axis}")
    elif not isinstance(listed, list | dict) or len(listed) < 2:
        yield Problem(
            (MATRIX_KEY, axis),
            "must be a list of at least two values, or a mapping of names to values, got " + json.dumps(listed)[:60],
        )


def _values(matrix: Any) -> tuple[str, list[_Value]]:
    """The axis and its values; no values if `matrix` is invalid."""
    ((axis, listed),) = matrix.items() if isinstance(matrix, dict) and len(matrix) == 1 else [("", None)]
    if axis.partition(".")[0] in SHARED or not isinstance(listed, list | dict):
        return axis, []
    if isinstance(listed, dict):
        return axis, [_Value(name, (MATRIX_KEY, axis, name), value) for name, value in listed.items()]
    return axis, [_Value(_default_name(value), (MATRIX_KEY, axis, index), value) for index, value in enumerate(listed)]


def _default_name(value: Any) -> str | None:
    """The name of a value in a list: its kind, or the word or number itself."""
    if isinstance(value, dict):
        value = value.get("kind")
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    return value if isinstance(value, str) else None


def _name_problems(sweep_name: Any, axis: str, values: list[_Value]) -> Iterator[Problem]:
    remedy = "use a mapping of names to values instead of a list"
    first: dict[str | None, _Value] = {}
    for value in values:
        name = value.name
        if name is None:
            yield Problem(
                value.loc, f"must have a kind, or be a word or a number, so that its sweep can be named; or {remedy}"
            )
        elif name in first:
            yield Problem(value.loc, f"{name!r} is already the name of {axis}[{first[name].loc[-1]}]; {remedy}")
        elif not isinstance(sweep_name, str) or not re.fullmatch(NAME, sweep_name):
            pass  # is reported for the field `name`
        elif not re.fullmatch(NAME, f"{sweep_name}-{name}"):
            yield Problem(
                value.loc,
                f"gives the sweep the name {f'{sweep_name}-{name}'!r}; a name has at most 64 letters, digits, dots, "
                f"dashes or underscores; shorten it, or {remedy}",
            )
        first.setdefault(name, value)


def _with_value(document: Mapping[str, Any], axis: str, value: Any) -> dict[str, Any]:
    """The document of one sweep: `document` with `value` at the path `axis`."""
    result: dict[str, Any] = expand(SweepSpec, dict(document))
    *sections, name = axis.split(".")
    target = result
    for section in sections:
        inner = target.get(section, {})
        if not isinstance(inner, dict):
            return result  # is reported as invalid itself
        target[section] = target = dict(inner)
    target[name] = value
    return result


def _loc_in_file(loc: Loc, axis: str, value_loc: Loc) -> Loc:
    """The location in the file of `loc` in the document of one sweep."""
    at = tuple(axis.split("."))
    return (*value_loc, *loc[len(at) :]) if loc[: len(at)] == at else loc


def _without_duplicates(found: list[list[Problem]], axis: str, values: list[_Value]) -> Iterator[Problem]:
    """The problems of all sweeps; one that every value has, such as an unknown axis, is reported once at the axis."""
    locs = {value.loc for value in values}
    common = [message for loc, message in found[0] if loc in locs] if 0 < len(found) == len(values) else []
    common = [message for message in common if all(any(message == other for _, other in each) for each in found)]
    for each in found:
        for loc, message in each:
            yield Problem((MATRIX_KEY, axis), message) if loc in locs and message in common else Problem(loc, message)
