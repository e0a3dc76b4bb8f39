"""Wrong lists of methods: told with path and line, and one wrong method hides nothing of the others."""

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
    "both": ("methods:\n", "method: ce\nmethods:\n", "s.yaml:7: methods: stands beside method; give one method, or "),
    "neither": (
        SEVERAL[SEVERAL.index("methods:") : SEVERAL.index("search:")],
        "",
        "s.yaml:1: method: is required, but not given; or list several in methods",
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
        "s.yaml:10: methods[3].name: 'los' is the name of methods[2] already; give each a name of its own",
    ),
    "bad name": ("los-cosine", "los/cosine", "s.yaml:10: methods[3].name: must be at most 24 letters, digits, dots, "),
    "unknown word": ("- ce\n", "- cee\n", "s.yaml:8: methods[1].method.kind: unknown kind 'cee'; did you mean 'ce'? "),
    "unknown key": (
        "{method: los, space:",
        "{method: los, spaec:",
        "s.yaml:9: methods[2].spaec: unknown key; did you mean 'space'? known: name, method, training, space",
    ),
    "no method": ("{method: los, ", "{", "s.yaml:9: methods[2].method: is required, but not given"),
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
        "s.yaml:9: methods[2].space.method.smoth_factor: nothing to search by this name; did you mean "
        "'method.smooth_factor'? ",
    ),
    "own path of another method": (
        "method.head.scale:",
        "method.post_hoc.tau:",
        "s.yaml:14: methods[3].space.method.post_hoc.tau: nothing to search by this name, since method.post_hoc ",
    ),
    "shared path that nobody has": (
        "method.lr:",
        "method.learning_rate:",
        "s.yaml:18: search.space.method.learning_rate: nothing to search by this name; ",
    ),
    "shared range, once for all": (
        "{loguniform: [1e-4, 1e-1]}",
        "{uniform: [0, 1e-1]}",
        "s.yaml:18: search.space.method.lr.uniform[0]: lr must be above 0, got 0.0",
    ),
}


@pytest.mark.parametrize("case", WRONG_LISTS)
def test_a_wrong_list_of_methods_is_refused_in_words_with_its_line(tmp_path: Path, case: str) -> None:
    before, after, expected = WRONG_LISTS[case]
    assert before in SEVERAL
    found = problems(tmp_path, SEVERAL.replace(before, after, 1))
    assert [problem for problem in found if problem.startswith(expected)], found
    assert len(found) == 1, found


def test_training_of_a_method_that_trains_nothing_cannot_be_searched(tmp_path: Path) -> None:
    text = SEVERAL.replace("- vanilla", "- {method: vanilla, space: {training.epochs: {int: [1, 5]}}}")
    assert problems(tmp_path, text) == [
        "s.yaml:7: methods[0].space.training.epochs: changes nothing: a method that trains nothing has no training"
    ]


def test_a_wrong_method_hides_nothing_of_the_others(tmp_path: Path) -> None:
    text = SEVERAL.replace("- ce\n", "- {method: {kind: cee}}\n").replace("[5, 60]", "[-5, 60]").replace("0.98", "1.98")
    told = [problem.split(": ")[1] for problem in problems(tmp_path, text)]
    assert told == [
        "methods[1].method.kind",
        "methods[2].space.method.smooth_factor.uniform[1]",
        "methods[3].space.method.head.scale.loguniform",
    ]


def test_a_grid_may_be_smaller_than_the_trials_for_some_but_not_for_all(tmp_path: Path) -> None:
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
