"""Wrong sweep files: every problem at once, in words for people, with its line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import pytest
from torch import Tensor

from lt_train.errors import SpecError
from lt_train.losses.base import Loss
from lt_train.methods.base import TrainedMethod, TrainingSpec
from sweeps.contestants import contestants
from sweeps.rules import broken_rules
from sweeps.search.base import Uniform
from sweeps.sections import SearchSpec
from sweeps.spec import SweepSpec, load_sweep

GOOD = """\
version: 1
name: good
dataset: {kind: digits_lt}
backbone: {kind: small_cnn}
stage1: {kind: ce}
method: {kind: los}
search:
  trials: 4
  space:
    method.lr: {loguniform: [1e-4, 1e-1]}
    method.smooth_factor: {uniform: [0.2, 0.98]}
"""


def load(tmp_path: Path, text: str) -> SweepSpec:
    path = tmp_path / "s.yaml"
    path.write_text(text)
    return load_sweep(path)


def problems(tmp_path: Path, text: str) -> list[str]:
    """Every problem, without the directory of the file."""
    with pytest.raises(SpecError, match=r"s\.yaml:\d+: ") as caught:
        load(tmp_path, text)
    return [problem.removeprefix(f"{tmp_path}/") for problem in caught.value.problems]


REFUSALS = {
    "no longer than the winner": (
        "search:\n",
        "selection: {longer: 1}\nsearch:\n",
        "s.yaml:7: selection.longer: must be at least 2, got 1",
    ),
    "unknown key": ("stage1:", "stagee1:", "s.yaml:5: stagee1: unknown key; did you mean 'stage1'? known: version, "),
    "unknown key of a kind": (
        "{kind: los}",
        "{kind: los, smoth_factor: 0.9}",
        "s.yaml:6: method.smoth_factor: unknown key; did you mean 'smooth_factor'? known: kind, head, ",
    ),
    "unknown kind": (
        "{kind: los}",
        "{kind: loss}",
        "s.yaml:6: method.kind: unknown kind 'loss'; did you mean 'los'? known: ",
    ),
    "no kind": ("{kind: los}", "{lr: 0.1}", "s.yaml:6: method: kind is required, but not given; known: "),
    "wrong type": ("trials: 4", "trials: many", "s.yaml:8: search.trials: must be a whole number, got 'many'"),
    "not a mapping": ("{kind: digits_lt}", "[1]", "s.yaml:3: dataset: must be a mapping with the key kind, got [1]"),
    "out of range": ("trials: 4", "trials: 0", "s.yaml:8: search.trials: must be at least 1, got 0"),
    "missing": ("  trials: 4\n", "", "s.yaml:7: search.trials: is required, but not given"),
    "bad name": ("name: good", "name: a/b", "s.yaml:2: name: must be at most 64 letters, digits, dots, "),
    "learning rate 0": ("{kind: los}", "{kind: los, lr: 0}", "s.yaml:6: method.lr: must be above 0, got 0"),
    "infinite": ("{kind: los}", "{kind: los, lr: .inf}", "s.yaml:6: method.lr: must be a finite number, got "),
    "smooth factor 1.0": (
        "{kind: los}",
        "{kind: los, smooth_factor: 1.0}",
        "s.yaml:6: method.smooth_factor: must be in [0, 1), got 1.0",
    ),
    "searched smooth factor 1.0": (
        "0.98]",
        "1.0]",
        "s.yaml:11: search.space.method.smooth_factor.uniform[1]: smooth_factor must be in [0, 1), got 1.0",
    ),
    "searched learning rate 0": (
        "{loguniform: [1e-4, 1e-1]}",
        "{uniform: [0, 1e-1]}",
        "s.yaml:10: search.space.method.lr.uniform[0]: lr must be above 0, got 0",
    ),
    "logarithm of 0": (
        "1e-4",
        "0",
        "s.yaml:10: search.space.method.lr.loguniform: low must be above 0 on a logarithmic",
    ),
    "reversed range": (
        "[0.2, 0.98]",
        "[0.98, 0.2]",
        "s.yaml:11: search.space.method.smooth_factor.uniform: low must be below high, got [0.98, 0.2]",
    ),
    "three ends": (
        "[0.2, ",
        "[0.2, 0.4, ",
        "s.yaml:11: search.space.method.smooth_factor.uniform: must have 2 entries, ",
    ),
    "unknown dimension": (
        "{uniform:",
        "{unifrom:",
        "s.yaml:11: search.space.method.smooth_factor: unknown key 'unifrom'; did you mean 'uniform'? known: uniform, ",
    ),
    "two dimensions in one": (
        "{uniform:",
        "{choice: [0.1], uniform:",
        "s.yaml:11: search.space.method.smooth_factor: must be a mapping with one of the keys uniform, loguniform, ",
    ),
    "unknown path": (
        "method.smooth_factor:",
        "method.smooth:",
        "s.yaml:11: search.space.method.smooth: nothing to search by this name; did you mean 'method.smooth_factor'? ",
    ),
    "path without part": (
        "method.lr:",
        "lr:",
        "s.yaml:10: search.space.lr: nothing to search by this name; did you mean 'method.lr'? ",
    ),
    "searched kind": (
        "method.lr: {loguniform: [1e-4, 1e-1]}",
        "method.kind: {choice: [los, ce]}",
        "s.yaml:10: search.space.method.kind: a kind cannot be searched, since each has other fields; list several",
    ),
    "wrong choice": (
        "method.lr: {loguniform: [1e-4, 1e-1]}",
        "method.init: {choice: [warm, cold]}",
        "s.yaml:10: search.space.method.init.choice[1]: init must be 'warm' or 'fresh', got 'cold'",
    ),
    "choice of another type": (
        "{loguniform: [1e-4, 1e-1]}",
        "{choice: [0.1, fast]}",
        "s.yaml:10: search.space.method.lr.choice[1]: lr must be a number, got 'fast'",
    ),
    "decimals for a whole number": (
        "method.lr: {loguniform: [1e-4, 1e-1]}",
        "training.epochs: {uniform: [1, 9]}",
        "s.yaml:10: search.space.training.epochs: epochs is a whole number: use int or choice, got uniform",
    ),
    "whole numbers for decimals": (
        "{loguniform: [1e-4, 1e-1]}",
        "{int: [1, 9]}",
        "s.yaml:10: search.space.method.lr: lr is a number with decimals: use uniform, loguniform or choice, got int",
    ),
    "range for a word": (
        "method.lr:",
        "method.init:",
        "s.yaml:10: search.space.method.init: init is not a number: use choice, got loguniform",
    ),
    "grid over a range": (
        "  trials: 4",
        "  trials: 4\n  sampler: grid",
        "s.yaml:11: search.space.method.lr: a grid needs {choice: [...]} or {int: [low, high]}, got {loguniform: ...}",
    ),
    "lanes that are neither a number nor auto": (
        "search:",
        "resources: {lanes_per_pack: all}\nsearch:",
        "s.yaml:7: resources.lanes_per_pack: must be auto, or a whole number of at least 1, got 'all'",
    ),
    "no lane": (
        "search:",
        "resources: {lanes_per_pack: 0}\nsearch:",
        "s.yaml:7: resources.lanes_per_pack: must be auto, or a whole number of at least 1, got 0",
    ),
    "memory in another unit": (
        "search:",
        "resources: {memory_per_pack: 2GB}\nsearch:",
        "s.yaml:7: resources.memory_per_pack: must be a size such as 2GiB or 500MiB (KiB, MiB, GiB), or a number of "
        "bytes, got '2GB'",
    ),
    "unknown scheduler": (
        "  trials: 4",
        "  trials: 4\n  scheduler: halving",
        "s.yaml:9: search.scheduler.kind: unknown kind 'halving'; did you mean 'successive_halving'? known: ",
    ),
    "rungs that fall": (
        "  trials: 4",
        "  trials: 4\n  scheduler: {kind: successive_halving, rungs: [10, 5]}",
        "s.yaml:9: search.scheduler.rungs: rungs must ascend, each above the one before it, got [10, 5]",
    ),
    "rung 0": (
        "  trials: 4",
        "  trials: 4\n  scheduler: {kind: successive_halving, rungs: [0, 5]}",
        "s.yaml:9: search.scheduler.rungs[0]: must be at least 1, got 0",
    ),
    "factor 1": (
        "  trials: 4",
        "  trials: 4\n  scheduler: {kind: successive_halving, factor: 1}",
        "s.yaml:9: search.scheduler.factor: must be above 1, got 1",
    ),
    "rungs after the end": (
        "  trials: 4",
        "  trials: 4\n  scheduler:\n    kind: successive_halving\n    rungs: [20, 30]",
        "s.yaml:11: search.scheduler.rungs: must have at least one below training.epochs, which is 20, got [20, 30]",
    ),
    "runs of several lengths under a scheduler": (
        "  space:",
        "  scheduler: successive_halving\n  space:\n    training.epochs: {int: [10, 20]}",
        "s.yaml:11: search.space.training.epochs: cannot be searched with scheduler successive_halving, which compares "
        "trials that train in one pack, and those agree on it; list the values as several methods, or search without a "
        "scheduler",
    ),
    "nobody to compare with in a generation": (
        "  trials: 4",
        "  trials: 4\n  scheduler: successive_halving\n  generation: 1",
        "s.yaml:10: search.generation: must be at least 2 for scheduler successive_halving, which compares the trials "
        "of a generation, got 1",
    ),
    "nobody to compare with in a pack": (
        "search:",
        "resources: {lanes_per_pack: 9}\nsearch:\n  scheduler: successive_halving",
        "s.yaml:7: resources.lanes_per_pack: must be at least 10 for scheduler successive_halving, which compares the "
        "trials of a pack: two trials with 5 seeds each, got 9",
    ),
    "no backbone": (
        "backbone: {kind: small_cnn}\n",
        "",
        "s.yaml:1: backbone: is required: dataset digits_lt holds pictures",
    ),
    "backbone without weights": (
        "stage1: {kind: ce}\n",
        "",
        "s.yaml:4: backbone: has no weights; give backbone.checkpoint",
    ),
    "backbone trained twice": (
        "{kind: small_cnn}",
        "{kind: small_cnn, checkpoint: a.pt}",
        "s.yaml:5: stage1: would train a backbone that backbone.checkpoint has already; remove one of the two",
    ),
    "no validation set": (
        "{kind: digits_lt}",
        "{kind: digits_lt, val_per_class: 0}",
        "s.yaml:3: dataset.val_per_class: 0 leaves no validation set to select on; set it to at least 1, or set ",
    ),
    "duplicate key": ("name: good", "name: good\nname: bad", "s.yaml:3: duplicate key 'name', first given on line 2"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_wrong_file_is_refused_in_words_with_its_line(tmp_path: Path, case: str) -> None:
    before, after, expected = REFUSALS[case]
    assert before in GOOD
    found = problems(tmp_path, GOOD.replace(before, after, 1))
    assert any(problem.startswith(expected) for problem in found), found
    assert not any("Input should" in problem or "pydantic" in problem for problem in found)


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
        "s.yaml:12: search.space.method.head.scael: nothing to search by this name; did you mean 'method.head.scale'? ",
    ),
    "field of another kind of part": (
        "head: linear",
        "method.head.scale: {uniform: [5, 60]}",
        "s.yaml:12: search.space.method.head.scale: nothing to search by this name; ",
    ),
    "path into a part that is not there": (
        "head: linear",
        "method.post_hoc.tau: {uniform: [0, 2]}",
        "s.yaml:12: search.space.method.post_hoc.tau: nothing to search by this name, since method.post_hoc is not "
        "given; ",
    ),
    "kind of a part": (
        "head: cosine",
        "method.head.kind: {choice: [cosine, linear]}",
        "s.yaml:12: search.space.method.head.kind: a kind cannot be searched, since each has other fields; list ",
    ),
    "whole part": (
        "head: cosine",
        "method.head: {choice: [cosine, linear]}",
        "s.yaml:12: search.space.method.head: method.head is no single number or word; search what is in it, or list ",
    ),
    "range for a word in a part": (
        "constraint: maxnorm",
        "method.constraint.every: {uniform: [0, 1]}",
        "s.yaml:12: search.space.method.constraint.every: every is not a number: use choice, got uniform",
    ),
    "choice that does not go with the parts": (
        "head: lws",
        "method.init: {choice: [warm, fresh]}",
        "s.yaml:12: search.space.method.init.choice[1]: init fresh: head lws re-scales a trained classifier; init ",
    ),
}


@pytest.mark.parametrize("case", MISPLACED)
def test_what_is_wrong_in_a_part_is_told_with_its_path_and_line(tmp_path: Path, case: str) -> None:
    method, dimension, expected = MISPLACED[case]
    found = problems(tmp_path, GOOD.replace("{kind: los}", f"{{kind: los, {method}}}") + f"    {dimension}\n")
    assert [problem for problem in found if problem.startswith(expected)], found
    assert len(found) == 1


class Between(TrainedMethod):
    """Two numbers that are sound alone and not together."""

    kind: Literal["between"] = "between"
    low: float = 0.2
    high: float = 0.8

    def loss(self, lanes: Mapping[str, Tensor], class_counts: Tensor) -> Loss:
        raise NotImplementedError

    def _senseless(self) -> Iterator[str]:
        if self.low >= self.high:
            yield f"low must be below high, got {self.low} and {self.high}"


def test_ends_that_are_sound_alone_and_not_together_are_told_before_a_search_meets_them() -> None:
    space = {"method.low": Uniform(uniform=[0.1, 0.7]), "method.high": Uniform(uniform=[0.5, 0.9])}
    search = SearchSpec(trials=1, space=space)
    parts = {"method": Between(), "methods": None, "search": search, "training": TrainingSpec()}
    (found,) = broken_rules(parts)
    assert found.loc == ("search", "space", "method.high", "uniform", 0)
    assert found.message == "low 0.7 with high 0.5: low must be below high, got 0.7 and 0.5"
    with pytest.raises(SpecError, match=r"trial .* of between: .*low must be below high, got 0\.7 and 0\.5"):
        contestants(Between(), None, TrainingSpec(), search)[0].with_values({"method.low": 0.7, "method.high": 0.5})


def test_an_empty_space_is_refused(tmp_path: Path) -> None:
    text = GOOD[: GOOD.index("  space:")] + "  space: {}\n"
    assert problems(tmp_path, text) == ["s.yaml:9: search.space: must have at least 1 entry, got {}"]


def test_more_trials_than_a_grid_has_points_are_refused(tmp_path: Path) -> None:
    text = GOOD[: GOOD.index("  trials:")] + "  sampler: grid\n  trials: 3\n  space: {method.lr: {choice: [1, 2]}}\n"
    expected = "s.yaml:9: search.trials: must be at most 2, the number of points of the grid, got 3"
    assert problems(tmp_path, text) == [expected]
    assert load(tmp_path, text.replace("trials: 3", "trials: 2")).search.trials == 2


def test_all_problems_are_told_at_once_in_the_order_of_lines(tmp_path: Path) -> None:
    text = """\
version: 2
name: x
dataset: {kind: digits_tl}
backbon: {kind: small_cnn}
stage1: {kind: ce, lr: -1}
method: {kind: los, lr: fast}
training: {epochs: 2.5}
search:
  sampler: tpee
  trials: 0
  space:
    method.smooth_factor: {uniform: [0.2, 1.0]}
    method.momentum:
      uniform:
        - 0.1
        - 1
    training.batch_size: {int: [8, 4]}
    method.kind: {choice: [los, ce]}
selection: {on: tset}
baselines: [vanila, {kind: ce, lr: 0}]
storage: ""
"""
    told = [problem.removeprefix("s.yaml:").split(": ")[:2] for problem in problems(tmp_path, text)]
    assert told == [
        ["1", "version"],
        ["3", "dataset.kind"],
        ["4", "backbon"],
        ["5", "stage1.lr"],
        ["6", "method.lr"],
        ["7", "training.epochs"],
        ["9", "search.sampler.kind"],
        ["10", "search.trials"],
        ["12", "search.space.method.smooth_factor.uniform[1]"],
        ["16", "search.space.method.momentum.uniform[1]"],
        ["17", "search.space.training.batch_size.int"],
        ["18", "search.space.method.kind"],
        ["19", "selection.on"],
        ["20", "baselines[0].kind"],
        ["20", "baselines[1].lr"],
        ["21", "storage"],
    ]


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
search: {sampler: grid, trials: 3}
"""
    )
    assert load(tmp_path, text).search.trials == 3
    assert problems(tmp_path, text.replace("trials: 3", "trials: 4")) == [
        "s.yaml:10: search.trials: must be at most 3, the number of points of the largest grid, got 4"
    ]
