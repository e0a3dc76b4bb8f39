"""Invalid parts of a method, and invalid ranges in them, are reported with path and line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import pytest
from support.sweep_files import GOOD, problems
from torch import Tensor

from lt_train.core.errors import SpecError
from lt_train.losses import Loss
from lt_train.methods.base import TrainedMethod, TrainingSpec
from sweeps.config.methods import candidates
from sweeps.config.rules import broken_rules
from sweeps.config.sections import SearchSpec
from sweeps.search.base import Uniform

MISPLACED = {
    "unknown key of a part": (
        "head: {kind: cosine, scael: 5}",
        "",
        "s.yaml:6: method.head.scael: unknown key; did you mean 'scale'? known: kind, scale, squash",
    ),
    "unknown kind of a part": (
        "sampler: class_balansed",
        "",
        "s.yaml:6: method.sampler.kind: unknown kind 'class_balansed'; did you mean 'class_balanced'? known: ",
    ),
    "part out of range": (
        "constraint: {kind: maxnorm, fraction: 0}",
        "",
        "s.yaml:6: method.constraint.fraction: must be above 0, got 0",
    ),
    "parts that do not go together": (
        "head: cosine, constraint: maxnorm",
        "",
        "s.yaml:6: method: constraint maxnorm bounds the length of trained weight rows, and head cosine has none; use ",
    ),
    "searched part out of range": (
        "head: cosine",
        "method.head.scale: {uniform: [0, 60]}",
        "s.yaml:12: search.space.method.head.scale.uniform[0]: scale must be above 0, got 0.0",
    ),
    "misspelt path into a part": (
        "head: cosine",
        "method.head.scael: {uniform: [5, 60]}",
        "s.yaml:12: search.space.method.head.scael: is not a field that can be searched; did you mean 'method.head",
    ),
    "field of another kind of part": (
        "head: linear",
        "method.head.scale: {uniform: [5, 60]}",
        "s.yaml:12: search.space.method.head.scale: is not a field that can be searched; ",
    ),
    "path into a part that is not given": (
        "head: linear",
        "method.post_hoc.tau: {uniform: [0, 2]}",
        "s.yaml:12: search.space.method.post_hoc.tau: cannot be searched because method.post_hoc is not given; ",
    ),
    "kind of a part": (
        "head: cosine",
        "method.head.kind: {choice: [cosine, linear]}",
        "s.yaml:12: search.space.method.head.kind: a kind cannot be searched, because each kind has different ",
    ),
    "whole part": (
        "head: cosine",
        "method.head: {choice: [cosine, linear]}",
        "s.yaml:12: search.space.method.head: method.head is not a single number or word; search its fields, or list ",
    ),
    "range for a word in a part": (
        "constraint: maxnorm",
        "method.constraint.every: {uniform: [0, 1]}",
        "s.yaml:12: search.space.method.constraint.every: every is not a number: use choice, got uniform",
    ),
    "choice that does not go with the parts": (
        "head: lws",
        "method.init: {choice: [checkpoint, random]}",
        "s.yaml:12: search.space.method.init.choice[1]: init random: head lws re-scales a trained classifier; init ",
    ),
}


@pytest.mark.parametrize("case", MISPLACED)
def test_an_invalid_part_is_reported_with_path_and_line(tmp_path: Path, case: str) -> None:
    method, dimension, expected = MISPLACED[case]
    found = problems(tmp_path, GOOD.replace("{kind: los}", f"{{kind: los, {method}}}") + f"    {dimension}\n")
    assert [problem for problem in found if problem.startswith(expected)], found
    assert len(found) == 1


class Between(TrainedMethod):
    """Two numbers that are valid alone and not in combination."""

    kind: Literal["between"] = "between"
    low: float = 0.2
    high: float = 0.8

    def loss(self, lanes: Mapping[str, Tensor], class_counts: Tensor) -> Loss:
        raise NotImplementedError

    def validate_combination(self) -> Iterator[str]:
        if self.low >= self.high:
            yield f"low must be below high, got {self.low} and {self.high}"


def test_bounds_that_are_valid_alone_and_not_in_combination_are_reported_before_a_search() -> None:
    space = {"method.low": Uniform(uniform=[0.1, 0.7]), "method.high": Uniform(uniform=[0.5, 0.9])}
    search = SearchSpec(trials=1, space=space)
    parts = {"method": Between(), "methods": None, "search": search, "training": TrainingSpec()}
    (found,) = broken_rules(parts)
    assert found.loc == ("search", "space", "method.high", "uniform", 0)
    assert found.message == "low 0.7 with high 0.5: low must be below high, got 0.7 and 0.5"
    with pytest.raises(SpecError, match=r"trial .* of between: .*low must be below high, got 0\.7 and 0\.5"):
        candidates(Between(), None, TrainingSpec(), search)[0].with_values({"method.low": 0.7, "method.high": 0.5})
