"""What must hold between the parts of a sweep file: the rules that no single field can state.

Touch this to add such a rule. Each takes the parts by name and yields a problem with the path of the line to mend. A
part that is itself wrong is absent from the mapping and its rules stay silent, so that all independent problems of a
file are told at once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar, get_args, get_type_hints

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from lt_train.datasets.base import DatasetSpec, FeatureData
from lt_train.explain import Problem, explain, offer
from sweeps.search.base import Dimension, Range
from sweeps.sections import SearchSpec

__all__ = ["SEARCHABLE", "broken_rules", "substitute"]

SEARCHABLE = ("method", "training")
"""Parts whose fields may be searched."""

Parts = Mapping[str, Any]
PartT = TypeVar("PartT", bound=BaseModel)


def broken_rules(parts: Parts) -> Iterator[Problem]:
    """Every rule that the valid parts of a sweep file break."""
    yield from _backbone_problems(parts)
    yield from _selection_problems(parts)
    if "search" in parts:
        yield from _space_problems(parts)
        yield from _sampler_problems(parts["search"])


def substitute(part: PartT, values: Mapping[str, Any]) -> PartT:
    """`part` with some fields changed, validated as if the file said so.

    Raises:
        ValidationError: `part` does not allow a value.
    """
    return type(part).model_validate_json(json.dumps({**part.model_dump(mode="json"), **values}))


def _backbone_problems(parts: Parts) -> Iterator[Problem]:
    if not {"dataset", "backbone", "stage1"} <= set(parts):
        return
    dataset, backbone, stage1 = parts["dataset"], parts["backbone"], parts["stage1"]
    if backbone is None:
        if not _may_bring_features(dataset):
            yield Problem(("backbone",), f"is required: dataset {dataset.kind} holds pictures, not features")
        elif stage1 is not None:
            yield Problem(("stage1",), "has no backbone to train; name one in backbone, or remove stage1")
        return
    if backbone.checkpoint is None and stage1 is None:
        yield Problem(
            ("backbone",), "has no weights; give backbone.checkpoint to load them, or stage1 to train them first"
        )
    elif backbone.checkpoint is not None and stage1 is not None:
        yield Problem(("stage1",), "would train a backbone that backbone.checkpoint has already; remove one of the two")


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


def _sampler_problems(search: SearchSpec) -> Iterator[Problem]:
    refused = list(search.sampler.check(search.space))
    for path, message in refused:
        yield Problem(("search", "space", path), message)
    size = None if refused else search.sampler.size(search.space)
    if size is not None and search.trials > size:
        yield Problem(
            ("search", "trials"), f"must be at most {size}, the number of points of the grid, got {search.trials}"
        )


def _space_problems(parts: Parts) -> Iterator[Problem]:
    fields = {
        f"{section}.{name}": field
        for section in SEARCHABLE
        if section in parts
        for name, field in type(parts[section]).model_fields.items()
        if name != "kind"
    }
    for path, dimension in parts["search"].space.items():
        loc = ("search", "space", path)
        section, _, name = path.partition(".")
        if name == "kind":
            yield Problem(loc, "a kind cannot be searched, since each has other fields; write one sweep for each")
        elif section in SEARCHABLE and section not in parts:
            continue
        elif path not in fields:
            yield Problem(loc, f"nothing to search by this name{offer(path if name else f'method.{path}', fields)}")
        else:
            unfit = _unfit(name, fields[path], dimension)
            if unfit:
                yield Problem(loc, unfit)
            else:
                yield from _probe_problems(loc, parts[section], name, dimension)


def _unfit(name: str, field: FieldInfo, dimension: Dimension) -> str:
    """Why a range cannot stand for a field of another type; empty if it can. Choices are tried one by one instead."""
    if not isinstance(dimension, Range):
        return ""
    types = (field.annotation, *get_args(field.annotation))
    if dimension.number in types:
        return ""
    if float in types:
        return f"{name} is a number with decimals: use uniform, loguniform or choice, got {dimension.key}"
    if int in types:
        return f"{name} is a whole number: use int or choice, got {dimension.key}"
    return f"{name} is not a number: use choice, got {dimension.key}"


def _probe_problems(loc: tuple[str, ...], part: BaseModel, name: str, dimension: Dimension) -> Iterator[Problem]:
    for index, value in dimension.probes():
        try:
            substitute(part, {name: value})
        except ValidationError as error:
            for problem in explain(error, type(part)):
                yield Problem((*loc, dimension.key, index), f"{name} {problem.message}")
