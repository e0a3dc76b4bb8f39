"""Invalid lists of methods are reported with path and line; one invalid method hides no other problem."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.sweep_files import load, problems

SEVERAL = """\
version: 1
name: several
dataset: {kind: digits_lt}
backbone: {kind: small_cnn}
stage1: {kind: ce}
methods:
  - vanilla
  - ce
  - {method: los, space: {method.smooth_factor: {uniform: [0.2, 0.98]}}}
  - name: los-cosine
    method: {kind: los, head: cosine}
    training: {epochs: 10}
    space:
      method.head.scale: {loguniform: [5, 60]}
search:
  trials: 4
  space:
    method.lr: {loguniform: [1e-4, 1e-1]}
"""

WRONG_LISTS = {
    "both": ("methods:\n", "method: ce\nmethods:\n", "s.yaml:7: methods: must not be given together with method; "),
    "neither": (
        SEVERAL[SEVERAL.index("methods:") : SEVERAL.index("search:")],
        "",
        "s.yaml:1: method: is required; ",
    ),
    "none": (
        SEVERAL[SEVERAL.index("methods:") : SEVERAL.index("search:")],
        "methods: []\n",
        "s.yaml:6: methods: must have at least 1 entry, got []",
    ),
    "no list": (
        SEVERAL[SEVERAL.index("methods:") : SEVERAL.index("search:")],
        "methods: {method: los}\n",
        "s.yaml:6: methods: must be a list",
    ),
    "one name twice": (
        "  - name: los-cosine\n    method",
        "  - method",
        "s.yaml:10: methods[3].name: 'los' is already the name of methods[2]; ",
    ),
    "bad name": ("los-cosine", "los/cosine", "s.yaml:10: methods[3].name: must be at most 24 letters, digits, dots, "),
    "unknown word": ("- ce\n", "- cee\n", "s.yaml:8: methods[1].method.kind: unknown kind 'cee'; did you mean 'ce'? "),
    "unknown key": (
        "{method: los, space:",
        "{method: los, spaec:",
        "s.yaml:9: methods[2].spaec: unknown key; did you mean 'space'? known: name, method, training, space",
    ),
    "no method": ("{method: los, ", "{", "s.yaml:9: methods[2].method: is required"),
    "wrong value in a part": (
        "head: cosine}",
        "head: {kind: cosine, scale: -1}}",
        "s.yaml:11: methods[3].method.head.scale: must be above 0, got -1",
    ),
    "parts that do not go together": (
        "head: cosine}",
        "head: cosine, constraint: maxnorm}",
        "s.yaml:11: methods[3].method: constraint maxnorm bounds the length",
    ),
    "wrong training": (
        "{epochs: 10}",
        "{epochs: 0}",
        "s.yaml:12: methods[3].training.epochs: must be at least 1, got 0",
    ),
    "unknown training": (
        "{epochs: 10}",
        "{epoch: 10}",
        "s.yaml:12: methods[3].training.epoch: unknown key; did you mean 'epochs'? known: epochs, ",
    ),
    "own range": (
        "0.98]",
        "1]",
        "s.yaml:9: methods[2].space.method.smooth_factor.uniform[1]: smooth_factor must be in [0, 1), got 1.0",
    ),
    "own path": (
        "{method.smooth_factor:",
        "{method.smoth_factor:",
        "s.yaml:9: methods[2].space.method.smoth_factor: is not a field that can be searched; did you mean "
        "'method.smooth_factor'? ",
    ),
    "own path of another method": (
        "method.head.scale:",
        "method.post_hoc.tau:",
        "s.yaml:14: methods[3].space.method.post_hoc.tau: cannot be searched because method.post_hoc is not given",
    ),
    "shared path that no method has": (
        "method.lr:",
        "method.learning_rate:",
        "s.yaml:18: search.space.method.learning_rate: is not a field that can be searched; ",
    ),
    "shared range, once for all": (
        "{loguniform: [1e-4, 1e-1]}",
        "{uniform: [0, 1e-1]}",
        "s.yaml:18: search.space.method.lr.uniform[0]: lr must be above 0, got 0.0",
    ),
}


@pytest.mark.parametrize("case", WRONG_LISTS)
def test_an_invalid_list_of_methods_is_refused_with_its_line(tmp_path: Path, case: str) -> None:
    before, after, expected = WRONG_LISTS[case]
    assert before in SEVERAL
    found = problems(tmp_path, SEVERAL.replace(before, after, 1))
    assert [problem for problem in found if problem.startswith(expected)], found
    assert len(found) == 1, found


def test_the_training_of_a_method_without_training_cannot_be_searched(tmp_path: Path) -> None:
    text = SEVERAL.replace("- vanilla", "- {method: vanilla, space: {training.epochs: {int: [1, 5]}}}")
    assert problems(tmp_path, text) == [
        "s.yaml:7: methods[0].space.training.epochs: has no effect: the method has no training"
    ]


def test_an_invalid_method_hides_no_problem_of_the_others(tmp_path: Path) -> None:
    text = SEVERAL.replace("- ce\n", "- {method: {kind: cee}}\n").replace("[5, 60]", "[-5, 60]").replace("0.98", "1.98")
    paths = [problem.split(": ")[1] for problem in problems(tmp_path, text)]
    assert paths == [
        "methods[1].method.kind",
        "methods[2].space.method.smooth_factor.uniform[1]",
        "methods[3].space.method.head.scale.loguniform",
    ]


def test_trials_may_exceed_the_grid_of_some_methods_but_not_of_all(tmp_path: Path) -> None:
    text = (
        SEVERAL[: SEVERAL.index("methods:")]
        + """\
methods:
  - {method: ce, space: {method.lr: {choice: [1, 2]}}}
  - {method: los, space: {method.lr: {choice: [1, 2, 3]}}}
  - vanilla
search: {algorithm: grid, trials: 3}
"""
    )
    assert load(tmp_path, text).search.trials == 3
    assert problems(tmp_path, text.replace("trials: 3", "trials: 4")) == [
        "s.yaml:10: search.trials: must be at most 3, the number of points of the largest grid, got 4"
    ]
