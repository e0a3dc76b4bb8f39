"""Rules between the parts of a sweep file: what no single field can check.

Each rule takes the parts by name and yields a problem with the path of the field to correct. The parts of an invalid
file are reduced to what is valid (`valid_parts`); an invalid part is missing and its rules are skipped, so that all
independent problems are reported at once.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, get_args, get_type_hints

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from lt_train.core.fields import annotated, substitute
from lt_train.core.validation import Problem, dotted, explain, offer
from lt_train.datasets.base import DatasetSpec, FeatureData
from lt_train.methods.base import TrainingSpec
from lt_train.metrics import METRICS, Score, scores
from sweeps.config.interfaces import BACKENDS
from sweeps.config.methods import (
    Candidate,
    MethodEntry,
    candidates,
    searchable,
    types_of,
    why_not_searchable,
)
from sweeps.config.sections import SearchSpec
from sweeps.search.base import Dimension, Range

__all__ = ["broken_rules", "valid_parts"]


MAX_COMBINATIONS = 2000
"""The maximum number of combinations of searched values that are checked against the rules of a method."""

Parts = Mapping[str, Any]
Loc = tuple[int | str, ...]


def broken_rules(parts: Parts) -> Iterator[Problem]:
    """The problems between the valid parts of a sweep file."""
    yield from _backbone_problems(parts)
    yield from _worker_problems(parts)
    yield from _selection_problems(parts)
    yield from _metric_problems(parts)
    yield from _method_problems(parts)
    if "search" in parts:
        searched = _searched(parts)
        yield from _space_problems(parts, searched)
        yield from _algorithm_problems(parts["search"], searched)
        yield from _early_stopping_problems(parts, searched)


def _backbone_problems(parts: Parts) -> Iterator[Problem]:
    if not {"dataset", "backbone", "stage1"} <= set(parts):
        return
    dataset, backbone, stage1 = parts["dataset"], parts["backbone"], parts["stage1"]
    if backbone is None:
        if not _may_hold_features(dataset):
            yield Problem(("backbone",), f"is required, because dataset {dataset.kind} contains images, not features")
        elif stage1 is not None:
            yield Problem(("stage1",), "has no backbone to train; set backbone, or remove stage1")
        return
    if backbone.checkpoint is None and stage1 is None:
        yield Problem(("backbone",), "has no weights; set backbone.checkpoint to load them, or stage1 to train them")
    elif backbone.checkpoint is not None and stage1 is not None:
        yield Problem(("stage1",), "must not be given together with backbone.checkpoint; remove one of the two")


def _worker_problems(parts: Parts) -> Iterator[Problem]:
    if not {"backend", "resources"} <= set(parts):
        return
    backend = parts["backend"]
    for field in ("stage1_workers", "extract_workers"):
        workers = getattr(parts["resources"], field)
        if workers > 1 and not backend.has_workers:
            able = " or ".join(name for name, kind in BACKENDS.kinds().items() if kind.has_workers)
            yield Problem(
                ("resources", field),
                f"must be 1 with backend {backend.kind}, which has no workers, got {workers}; set backend to {able}",
            )


def _may_hold_features(dataset: DatasetSpec) -> bool:
    """Whether a dataset can be used without a backbone, by the return type of its `load`."""
    try:
        returned = get_type_hints(type(dataset).load)["return"]
    except (KeyError, NameError):  # a dataset of a user without an annotation
        return True
    return FeatureData in (returned, *get_args(returned))


def _selection_problems(parts: Parts) -> Iterator[Problem]:
    if not {"dataset", "selection"} <= set(parts):
        return
    if parts["selection"].on == "val" and getattr(parts["dataset"], "val_per_class", None) == 0:
        yield Problem(
            ("dataset", "val_per_class"),
            "0 leaves no validation set for selection; set it to at least 1, or set selection.on to test",
        )


def _metric_problems(parts: Parts) -> Iterator[Problem]:
    if "metrics" not in parts:
        return
    kinds = [metric.kind for metric in parts["metrics"]]
    for index, kind in enumerate(kinds):
        if kind in kinds[:index]:
            yield Problem(
                ("metrics", index), f"{kind} is already metrics[{kinds.index(kind)}]; list each kind of metric once"
            )
    if "selection" not in parts:
        return
    metric = parts["selection"].metric
    if reason := _not_selectable(metric, {score.name: score for score in scores(parts["metrics"])}):
        yield Problem(("selection", "metric"), reason)


def _not_selectable(metric: str, known: Mapping[str, Score]) -> str:
    """Why a sweep with these scores cannot select on `metric`; empty if it can."""
    if metric not in known:
        if metric in METRICS.kinds():
            return f"{metric} is not computed in this sweep; list it in metrics"
        return f"unknown metric {metric!r}{offer(metric, [*known, *METRICS.kinds()])}{METRICS.hint(metric)}"
    only = f"got {metric}, which can only be reported"
    if not known[metric].higher_is_better:
        return f"must be a metric of which higher values are better, {only}"
    if not known[metric].percent:
        return f"must be a metric in percent, because relevant differences are defined in percentage points, {only}"
    return ""


def _method_problems(parts: Parts) -> Iterator[Problem]:
    if not {"method", "methods"} <= set(parts):
        return
    if parts["methods"] is None:
        if parts["method"] is None:
            yield Problem(("method",), "is required; set method, or list several in methods")
        elif "search" in parts and not parts["search"].space:
            yield Problem(("search", "space"), "must have at least 1 entry, got {}")
        return
    if parts["method"] is not None:
        yield Problem(
            ("methods",), "must not be given together with method; set one method, or list all of them in methods"
        )
    known: dict[str, int] = {}
    for index, entry in enumerate(parts["methods"]):
        if entry is None:
            continue
        first = known.setdefault(entry.display_name(), index)
        if first != index:
            yield Problem(
                ("methods", index, "name"),
                f"{entry.display_name()!r} is already the name of methods[{first}]; give each method a unique name",
            )


def _algorithm_problems(search: SearchSpec, searched: Sequence[_Searched]) -> Iterator[Problem]:
    refused = {
        one.locs[path]: message for one in searched for path, message in search.algorithm.check(one.candidate.space)
    }
    for loc, message in refused.items():
        yield Problem(loc, message)
    spaces = [] if refused else [one.candidate.space for one in searched if one.candidate.space]
    sizes = [search.algorithm.size(space) for space in spaces]
    finite = [size for size in sizes if size is not None]
    if sizes and len(finite) == len(sizes) and search.trials > max(finite):
        grid = "the grid" if len(finite) == 1 else "the largest grid"
        yield Problem(
            ("search", "trials"), f"must be at most {max(finite)}, the number of points of {grid}, got {search.trials}"
        )


def _early_stopping_problems(parts: Parts, searched: Sequence[_Searched]) -> Iterator[Problem]:
    """Early stopping compares the trials of a pack: a pack must hold at least two, with runs of equal length."""
    search = parts["search"]
    trained = [one for one in searched if one.candidate.method.trains]
    stopped = [one for one in trained if search.early_stopping.halving(one.candidate.training) is not None]
    if not stopped:
        for field, message in search.early_stopping.check(trained[0].candidate.training) if trained else ():
            yield Problem(("search", "early_stopping", field), message)
        return
    kind = f"early stopping {search.early_stopping.kind}"
    for loc in dict.fromkeys(one.locs[path] for one in stopped for path in one.static()):
        yield Problem(
            loc,
            f"cannot be searched with {kind}, which compares the trials of a pack, because all runs of a pack have the "
            "same value; list the values as several methods, or search without early stopping",
        )
    if search.proposal_batch < 2:
        yield Problem(
            ("search", "proposal_batch"),
            f"must be at least 2 for {kind}, which compares the trials of a proposal batch, "
            f"got {search.proposal_batch}",
        )
    if {"resources", "selection"} <= set(parts):
        lanes, seeds = parts["resources"].lanes_per_pack, parts["selection"].seeds
        if lanes != "auto" and lanes < 2 * seeds:
            yield Problem(
                ("resources", "lanes_per_pack"),
                f"must be at least {2 * seeds} for {kind}, which compares the trials of a pack: two trials with "
                f"{seeds} seed{'s' * (seeds > 1)} each, got {lanes}",
            )


class _Searched(NamedTuple):
    """A candidate and the location in the file of each of its searched dimensions."""

    candidate: Candidate
    locs: dict[str, Loc]

    def static(self) -> list[str]:
        """The searched paths whose value must be equal for all runs of a pack."""
        lanes = {f"method.{path}" for path in self.candidate.method.lane_values()}
        return [path for path in self.candidate.space if path not in lanes]


def _searched(parts: Parts) -> list[_Searched]:
    """The candidates whose method is valid."""
    training = parts.get("training", TrainingSpec())
    shared: dict[str, Loc] = {path: ("search", "space", path) for path in parts["search"].space}
    if parts.get("methods") is None:
        return [_Searched(one, shared) for one in candidates(parts.get("method"), None, training, parts["search"])]
    valid = {index: entry for index, entry in enumerate(parts["methods"]) if entry is not None}
    found = candidates(None, list(valid.values()), training, parts["search"])
    return [
        _Searched(one, shared | {path: ("methods", index, "space", path) for path in entry.space})
        for one, (index, entry) in zip(found, valid.items(), strict=True)
    ]


def _space_problems(parts: Parts, searched: Sequence[_Searched]) -> Iterator[Problem]:
    """Problems of the searched ranges; one that concerns several methods is reported once."""
    problems: dict[Problem, None] = {}
    fields = {path: None for one in searched for path in one.candidate.fields()}
    all_valid = all(entry is not None for entry in parts.get("methods") or [])
    for path in parts["search"].space if searched and all_valid else ():
        if path not in fields:
            problems[Problem(("search", "space", path), _unknown_path(path, searched, fields))] = None
    for one in searched:
        own = one.candidate.fields()
        for path in one.candidate.space:
            if path not in own and one.locs[path][0] == "methods":
                problems[Problem(one.locs[path], _unknown_path(path, [one], own))] = None
        problems |= dict.fromkeys(_range_problems(one))
    yield from problems


def _unknown_path(path: str, searched: Sequence[_Searched], fields: Iterable[str]) -> str:
    """The message for a path that is not a field of any of these candidates."""
    section, _, rest = path.partition(".")
    if rest.rpartition(".")[2] == "kind":
        return "a kind cannot be searched, because each kind has different fields; list several methods in methods"
    if section == "training" and rest in searchable(searched[0].candidate.training):
        return "has no effect: the method has no training"
    if section == "method":
        for one in searched:
            if reason := why_not_searchable(one.candidate.method, rest, "method"):
                return reason + offer(path, fields)
    return f"is not a field that can be searched{offer(path if rest else f'method.{path}', fields)}"


def _range_problems(one: _Searched) -> Iterator[Problem]:
    """Ranges of a wrong type, and ranges whose values the fields do not allow, alone or in combination."""
    fields = one.candidate.fields()
    compatible: dict[str, Dimension] = {}
    for path, dimension in one.candidate.space.items():
        if path not in fields:
            continue
        if reason := _type_mismatch(path, fields[path], dimension):
            yield Problem(one.locs[path], reason)
        else:
            compatible[path] = dimension
    yield from _value_problems(one, compatible)


def _type_mismatch(path: str, field: FieldInfo, dimension: Dimension) -> str:
    """Why a range has the wrong type for a field, or nothing. The values of a choice are checked one by one."""
    if not isinstance(dimension, Range):
        return ""
    types, name = types_of(field), path.rpartition(".")[2]
    if dimension.number in types:
        return ""
    if float in types:
        return f"{name} is a decimal number: use uniform, loguniform or choice, got {dimension.key}"
    if int in types:
        return f"{name} is a whole number: use int or choice, got {dimension.key}"
    return f"{name} is not a number: use choice, got {dimension.key}"


def _value_problems(one: _Searched, space: Mapping[str, Dimension]) -> Iterator[Problem]:
    """Check the bounds of ranges and all choices: first each value alone, then combinations of valid values.

    A combination is reported at the line of its last dimension.
    """
    refused: set[frozenset[tuple[str, int]]] = set()
    for probes in itertools.islice(_combinations(space), MAX_COMBINATIONS):
        places = frozenset((path, index) for path, index, _ in probes)
        if any(smaller <= places for smaller in refused):
            continue
        for problem in _refusal(one.candidate, {path: value for path, _, value in probes}):
            refused.add(places)
            path, index, _ = probes[-1]
            yield Problem((*one.locs[path], space[path].key, index), problem)


def _combinations(space: Mapping[str, Dimension]) -> Iterator[list[tuple[str, int, Any]]]:
    """`(path, index, value)` of the probes of one dimension, then of all pairs of dimensions, and so on."""
    for count in range(1, len(space) + 1):
        for chosen in itertools.combinations(space.items(), count):
            for probes in itertools.product(*(dimension.probes() for _, dimension in chosen)):
                yield [(path, index, value) for (path, _), (index, value) in zip(chosen, probes, strict=True)]


def _refusal(candidate: Candidate, values: Mapping[str, Any]) -> Iterator[str]:
    """Why a candidate does not allow these values; empty if it does."""
    for section, spec in (("method", candidate.method), ("training", candidate.training)):
        own = {path.partition(".")[2]: value for path, value in values.items() if path.startswith(f"{section}.")}
        try:
            substitute(spec, own)
        except ValidationError as error:
            for loc, message in explain(error, type(spec)):
                given = " with ".join(f"{path} {value}" for path, value in own.items())
                yield f"{loc[-1]} {message}" if dotted(loc) in own else f"{given}: {message}"


_PRUNED = ("method", "training", "search")
"""Parts whose invalid fields are removed, so that the rest is still checked."""

_INVALID = object()
"""Marks a value of which nothing valid is left."""


def valid_parts(model: type[BaseModel], document: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of an invalid document that the rules between parts can be checked on, by field name.

    Invalid fields are removed from the parts in `_PRUNED` and from entries of `methods`; an entry without a valid
    method is None. Any other invalid part is left out.
    """
    parts: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        if name not in document:
            if not field.is_required():
                parts[name] = field.get_default(call_default_factory=True)
            continue
        if name == "methods" and isinstance(document[name], list):
            parts[name] = [_valid_entry(index, entry) for index, entry in enumerate(document[name])]
            continue
        part = _validate(annotated(field), document[name], prune=name in _PRUNED, reset_trials=name == "search")
        # A space whose ranges are all invalid must not be reported as an empty space.
        if part is not _INVALID and not (name == "search" and document[name].get("space") and not part.space):
            parts[name] = part
    return parts


def _validate(annotation: Any, value: Any, *, prune: bool = True, reset_trials: bool = False) -> Any:
    """`value` validated as `annotation`, with invalid fields removed if `prune`; `_INVALID` if nothing is left."""
    adapter: TypeAdapter[Any] = TypeAdapter(annotation)
    while value is not _INVALID:
        try:
            return adapter.validate_json(json.dumps(value))
        except ValidationError as error:
            first = error.errors()[0]
            loc = first["loc"][:-1] if first["type"] == "missing" else first["loc"]
            value = _without(value, loc) if prune else _INVALID
            if reset_trials and isinstance(value, dict):
                value["trials"] = 1  # may be the invalid value, and must not be compared with a reduced space
    return _INVALID


def _valid_entry(index: int, value: Any) -> MethodEntry | None:
    """One entry of `methods`. An invalid name is replaced by a unique one."""
    entry = _validate(MethodEntry, value)
    if not isinstance(entry, MethodEntry):
        return None
    name_removed = value.get("name") is not None and entry.name is None
    return entry.model_copy(update={"name": f"methods[{index}]"}) if name_removed else entry


def _without(value: Any, loc: tuple[int | str, ...]) -> Any:
    """`value` without the entry at `loc`. Elements of `loc` that are not keys (tags of unions) are skipped."""
    if not isinstance(value, dict):
        return _INVALID
    for depth, part in enumerate(loc):
        if part in value:
            inner = _without(value[part], loc[depth + 1 :])
            rest = {key: item for key, item in value.items() if key != part}
            return rest if inner is _INVALID else {**rest, part: inner}
    return _INVALID
