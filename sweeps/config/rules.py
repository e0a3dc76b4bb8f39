"""What must hold between the parts of a sweep file: the rules that no single field can state.

Touch this to add such a rule. Each takes the parts by name and yields a problem with the path of the line to mend. A
part that is itself wrong is absent from the mapping and its rules stay silent, so that all independent problems of a
file are told at once.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, get_args, get_type_hints

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from lt_train.core.validation import Problem, dotted, explain, offer
from lt_train.datasets.base import DatasetSpec, FeatureData
from lt_train.methods.base import TrainingSpec
from sweeps.config.methods import Candidate, candidates
from sweeps.config.sections import SearchSpec
from sweeps.config.space import searchable, substitute, types_of, why_not
from sweeps.search.base import Dimension, Range

__all__ = ["broken_rules"]

MOST_COMBINATIONS = 2000
"""How many combinations of searched values are tried against a method's own rules before a sweep starts."""


Parts = Mapping[str, Any]
Loc = tuple[int | str, ...]


def broken_rules(parts: Parts) -> Iterator[Problem]:
    """Every rule that the valid parts of a sweep file break."""
    yield from _backbone_problems(parts)
    yield from _worker_problems(parts)
    yield from _selection_problems(parts)
    yield from _method_problems(parts)
    if "search" in parts:
        searched = _searched(parts)
        yield from _space_problems(parts, searched)
        yield from _sampler_problems(parts["search"], searched)
        yield from _scheduler_problems(parts, searched)


def _backbone_problems(parts: Parts) -> Iterator[Problem]:
    if not {"dataset", "backbone", "stage1"} <= set(parts):
        return
    dataset, backbone, stage1 = parts["dataset"], parts["backbone"], parts["stage1"]
    if backbone is None:
        if not _may_bring_features(dataset):
            yield Problem(("backbone",), f"is required: dataset {dataset.kind} holds images, not features")
        elif stage1 is not None:
            yield Problem(("stage1",), "has no backbone to train; name one in backbone, or remove stage1")
        return
    if backbone.checkpoint is None and stage1 is None:
        yield Problem(
            ("backbone",), "has no weights; give backbone.checkpoint to load them, or stage1 to train them first"
        )
    elif backbone.checkpoint is not None and stage1 is not None:
        yield Problem(("stage1",), "would train a backbone that backbone.checkpoint has already; remove one of the two")


def _worker_problems(parts: Parts) -> Iterator[Problem]:
    if not {"backend", "resources"} <= set(parts):
        return
    backend = parts["backend"]
    for field in ("stage1_workers", "extract_workers"):
        workers = getattr(parts["resources"], field)
        if workers > 1 and not backend.has_workers:
            yield Problem(
                ("resources", field),
                f"must be 1 with backend {backend.kind}, which is this process alone, got {workers}; set backend: ray",
            )


def _may_bring_features(dataset: DatasetSpec) -> bool:
    """Whether a dataset kind can do without a backbone, as the return type of its `load` says."""
    returned = get_type_hints(type(dataset).load)["return"]
    return FeatureData in (returned, *get_args(returned))


def _selection_problems(parts: Parts) -> Iterator[Problem]:
    if not {"dataset", "selection"} <= set(parts):
        return
    if parts["selection"].on == "val" and getattr(parts["dataset"], "val_per_class", None) == 0:
        yield Problem(
            ("dataset", "val_per_class"),
            "0 leaves no validation set to select on; set it to at least 1, or set selection.on to test",
        )


def _method_problems(parts: Parts) -> Iterator[Problem]:
    if not {"method", "methods"} <= set(parts):
        return
    if parts["methods"] is None:
        if parts["method"] is None:
            yield Problem(("method",), "is required, but not given; or list several in methods")
        elif "search" in parts and not parts["search"].space:
            yield Problem(("search", "space"), "must have at least 1 entry, got {}")
        return
    if parts["method"] is not None:
        yield Problem(("methods",), "stands beside method; give one method, or list all of them in methods")
    known: dict[str, int] = {}
    for index, entry in enumerate(parts["methods"]):
        if entry is None:
            continue
        first = known.setdefault(entry.called(), index)
        if first != index:
            yield Problem(
                ("methods", index, "name"),
                f"{entry.called()!r} is the name of methods[{first}] already; give each a name of its own",
            )


def _sampler_problems(search: SearchSpec, searched: Sequence[_Searched]) -> Iterator[Problem]:
    refused = {
        one.locs[path]: message for one in searched for path, message in search.algorithm.check(one.candidate.space)
    }
    for loc, message in refused.items():
        yield Problem(loc, message)
    spaces = [] if refused else [one.candidate.space for one in searched if one.candidate.space]
    sizes = [search.algorithm.size(space) for space in spaces]
    finite = [size for size in sizes if size is not None]
    if sizes and len(finite) == len(sizes) and search.trials > max(finite):
        whose = "the grid" if len(finite) == 1 else "the largest grid"
        yield Problem(
            ("search", "trials"), f"must be at most {max(finite)}, the number of points of {whose}, got {search.trials}"
        )


def _scheduler_problems(parts: Parts, searched: Sequence[_Searched]) -> Iterator[Problem]:
    """A scheduler compares trials of one pack at the same epochs: there must be some, and runs of one length."""
    search = parts["search"]
    trained = [one for one in searched if one.candidate.method.trains]
    scheduled = [one for one in trained if search.early_stopping.halving(one.candidate.training) is not None]
    if not scheduled:
        for field, message in search.early_stopping.check(trained[0].candidate.training) if trained else ():
            yield Problem(("search", "early_stopping", field), message)
        return
    kind = f"scheduler {search.early_stopping.kind}"
    for loc in dict.fromkeys(one.locs[path] for one in scheduled for path in one.static()):
        yield Problem(
            loc,
            f"cannot be searched with {kind}, which compares trials that train in one pack, and those agree on it; "
            "list the values as several methods, or search without a scheduler",
        )
    if search.proposal_batch < 2:
        yield Problem(
            ("search", "proposal_batch"),
            f"must be at least 2 for {kind}, which compares the trials of a proposal batch, got {search.proposal_batch}",
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
    """A candidate and where the file says what is searched for it, by path."""

    candidate: Candidate
    locs: dict[str, Loc]

    def static(self) -> list[str]:
        """The paths searched that the runs of one pack must agree on."""
        lanes = {f"method.{path}" for path in self.candidate.method.lane_values()}
        return [path for path in self.candidate.space if path not in lanes]


def _searched(parts: Parts) -> list[_Searched]:
    """The candidates whose part of the file is sound enough to judge what is searched for them."""
    training = parts.get("training", TrainingSpec())
    shared: dict[str, Loc] = {path: ("search", "space", path) for path in parts["search"].space}
    if parts.get("methods") is None:
        return [_Searched(one, shared) for one in candidates(parts.get("method"), None, training, parts["search"])]
    sound = {index: entry for index, entry in enumerate(parts["methods"]) if entry is not None}
    everyone = candidates(None, list(sound.values()), training, parts["search"])
    return [
        _Searched(one, shared | {path: ("methods", index, "space", path) for path in entry.space})
        for one, (index, entry) in zip(everyone, sound.items(), strict=True)
    ]


def _space_problems(parts: Parts, searched: Sequence[_Searched]) -> Iterator[Problem]:
    """What is wrong with the searched ranges; one that is wrong for several methods is told once."""
    told: dict[Problem, None] = {}
    fields = {path: None for one in searched for path in one.candidate.fields()}
    everyone_judged = all(entry is not None for entry in parts.get("methods") or [])
    for path in parts["search"].space if searched and everyone_judged else ():
        if path not in fields:
            told[Problem(("search", "space", path), _unknown(path, searched, fields))] = None
    for one in searched:
        own = one.candidate.fields()
        for path in one.candidate.space:
            if path not in own and one.locs[path][0] == "methods":
                told[Problem(one.locs[path], _unknown(path, [one], own))] = None
        told |= dict.fromkeys(_range_problems(one))
    yield from told


def _unknown(path: str, searched: Sequence[_Searched], fields: Iterable[str]) -> str:
    """What is wrong with a path that names no field of any of these candidates."""
    section, _, rest = path.partition(".")
    if rest.rpartition(".")[2] == "kind":
        return "a kind cannot be searched, since each has other fields; list several in methods instead"
    if section == "training" and rest in searchable(searched[0].candidate.training):
        return "changes nothing: a method that trains nothing has no training"
    if section == "method":
        for one in searched:
            if reason := why_not(one.candidate.method, rest, "method"):
                return reason + offer(path, fields)
    return f"nothing to search by this name{offer(path if rest else f'method.{path}', fields)}"


def _range_problems(one: _Searched) -> Iterator[Problem]:
    """Ranges that a candidate's fields do not allow: of a wrong type, or with ends it refuses, alone or together."""
    fields = one.candidate.fields()
    fit: dict[str, Dimension] = {}
    for path, dimension in one.candidate.space.items():
        if path not in fields:
            continue
        if incompatibility := _unfit(path, fields[path], dimension):
            yield Problem(one.locs[path], incompatibility)
        else:
            fit[path] = dimension
    yield from _probe_problems(one, fit)


def _unfit(path: str, field: FieldInfo, dimension: Dimension) -> str:
    """Why a range cannot stand for a field of another type; empty if it can. Choices are tried one by one instead."""
    if not isinstance(dimension, Range):
        return ""
    types, name = types_of(field), path.rpartition(".")[2]
    if dimension.number in types:
        return ""
    if float in types:
        return f"{name} is a number with decimals: use uniform, loguniform or choice, got {dimension.key}"
    if int in types:
        return f"{name} is a whole number: use int or choice, got {dimension.key}"
    return f"{name} is not a number: use choice, got {dimension.key}"


def _probe_problems(one: _Searched, space: Mapping[str, Dimension]) -> Iterator[Problem]:
    """Try the ends of ranges and all choices: each alone, then those that are allowed alone together.

    A combination is told at the line of the dimension that comes last.
    """
    refused: set[frozenset[tuple[str, int]]] = set()
    for probes in itertools.islice(_combinations(space), MOST_COMBINATIONS):
        places = frozenset((path, index) for path, index, _ in probes)
        if any(smaller <= places for smaller in refused):
            continue
        for problem in _refusal(one.candidate, {path: value for path, _, value in probes}):
            refused.add(places)
            path, index, _ = probes[-1]
            yield Problem((*one.locs[path], space[path].key, index), problem)


def _combinations(space: Mapping[str, Dimension]) -> Iterator[list[tuple[str, int, Any]]]:
    """`(path, index, value)` of one probe each of one dimension, then of two, and so on."""
    for count in range(1, len(space) + 1):
        for chosen in itertools.combinations(space.items(), count):
            for probes in itertools.product(*(dimension.probes() for _, dimension in chosen)):
                yield [(path, index, value) for (path, _), (index, value) in zip(chosen, probes, strict=True)]


def _refusal(candidate: Candidate, values: Mapping[str, Any]) -> Iterator[str]:
    """Why a candidate does not allow these values; nothing where it does."""
    for section, spec in (("method", candidate.method), ("training", candidate.training)):
        own = {path.partition(".")[2]: value for path, value in values.items() if path.startswith(f"{section}.")}
        try:
            substitute(spec, own)
        except ValidationError as error:
            for loc, message in explain(error, type(spec)):
                at_fault = dotted(loc) in own
                yield f"{loc[-1]} {message}" if at_fault else f"{_settings(own)}: {message}"


def _settings(values: Mapping[str, Any]) -> str:
    return " with ".join(f"{path} {value}" for path, value in values.items())
