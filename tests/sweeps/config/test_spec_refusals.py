"""Invalid sweep files: every problem is reported at once, with its line."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.sweep_files import GOOD, load, problems

REFUSALS = {
    "extended training that is not longer": (
        "search:\n",
        "selection: {extended_training: 1}\nsearch:\n",
        "s.yaml:7: selection.extended_training: must be at least 2, got 1",
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
    "no kind": ("{kind: los}", "{lr: 0.1}", "s.yaml:6: method: kind is required; known: "),
    "wrong type": ("trials: 4", "trials: many", "s.yaml:8: search.trials: must be a whole number, got 'many'"),
    "not a mapping": ("{kind: digits_lt}", "[1]", "s.yaml:3: dataset: must be a mapping with the key kind, got [1]"),
    "out of range": ("trials: 4", "trials: 0", "s.yaml:8: search.trials: must be at least 1, got 0"),
    "missing": ("  trials: 4\n", "", "s.yaml:7: search.trials: is required"),
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
        "s.yaml:11: search.space.method.smooth: is not a field that can be searched; did you mean 'method.smooth",
    ),
    "path without part": (
        "method.lr:",
        "lr:",
        "s.yaml:10: search.space.lr: is not a field that can be searched; did you mean 'method.lr'? ",
    ),
    "searched kind": (
        "method.lr: {loguniform: [1e-4, 1e-1]}",
        "method.kind: {choice: [los, ce]}",
        "s.yaml:10: search.space.method.kind: a kind cannot be searched, because each kind has different fields; ",
    ),
    "wrong choice": (
        "method.lr: {loguniform: [1e-4, 1e-1]}",
        "method.init: {choice: [checkpoint, cold]}",
        "s.yaml:10: search.space.method.init.choice[1]: init must be 'checkpoint' or 'random', got 'cold'",
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
        "s.yaml:10: search.space.method.lr: lr is a decimal number: use uniform, loguniform or choice, got int",
    ),
    "range for a word": (
        "method.lr:",
        "method.init:",
        "s.yaml:10: search.space.method.init: init is not a number: use choice, got loguniform",
    ),
    "grid over a range": (
        "  trials: 4",
        "  trials: 4\n  algorithm: grid",
        "s.yaml:11: search.space.method.lr: a grid needs {choice: [...]} or {int: [low, high]}, got {loguniform: ...}",
    ),
    "lanes that are neither a number nor auto": (
        "search:",
        "resources: {lanes_per_pack: all}\nsearch:",
        "s.yaml:7: resources.lanes_per_pack: must be auto or a whole number of at least 1, got 'all'",
    ),
    "no lane": (
        "search:",
        "resources: {lanes_per_pack: 0}\nsearch:",
        "s.yaml:7: resources.lanes_per_pack: must be auto or a whole number of at least 1, got 0",
    ),
    "memory in another unit": (
        "search:",
        "resources: {memory_per_pack: 2GB}\nsearch:",
        "s.yaml:7: resources.memory_per_pack: must be a size such as 2GiB or 500MiB (KiB, MiB, GiB), or a number of "
        "bytes, got '2GB'",
    ),
    "unknown early stopping rule": (
        "  trials: 4",
        "  trials: 4\n  early_stopping: halving",
        "s.yaml:9: search.early_stopping.kind: unknown kind 'halving'; did you mean 'successive_halving'? known: ",
    ),
    "rungs that fall": (
        "  trials: 4",
        "  trials: 4\n  early_stopping: {kind: successive_halving, rungs: [10, 5]}",
        "s.yaml:9: search.early_stopping.rungs: rungs must be in ascending order, got [10, 5]",
    ),
    "rung 0": (
        "  trials: 4",
        "  trials: 4\n  early_stopping: {kind: successive_halving, rungs: [0, 5]}",
        "s.yaml:9: search.early_stopping.rungs[0]: must be at least 1, got 0",
    ),
    "factor 1": (
        "  trials: 4",
        "  trials: 4\n  early_stopping: {kind: successive_halving, factor: 1}",
        "s.yaml:9: search.early_stopping.factor: must be above 1, got 1",
    ),
    "rungs after the end": (
        "  trials: 4",
        "  trials: 4\n  early_stopping:\n    kind: successive_halving\n    rungs: [20, 30]",
        "s.yaml:11: search.early_stopping.rungs: must have at least one below training.epochs, which is 20, ",
    ),
    "runs of several lengths with early stopping": (
        "  space:",
        "  early_stopping: successive_halving\n  space:\n    training.epochs: {int: [10, 20]}",
        "s.yaml:11: search.space.training.epochs: cannot be searched with early stopping successive_halving",
    ),
    "nothing to compare with in a proposal batch": (
        "  trials: 4",
        "  trials: 4\n  early_stopping: successive_halving\n  proposal_batch: 1",
        "s.yaml:10: search.proposal_batch: must be at least 2 for early stopping successive_halving",
    ),
    "nothing to compare with in a pack": (
        "search:",
        "resources: {lanes_per_pack: 9}\nsearch:\n  early_stopping: successive_halving",
        "s.yaml:7: resources.lanes_per_pack: must be at least 10 for early stopping successive_halving",
    ),
    "no backbone": (
        "backbone: {kind: small_cnn}\n",
        "",
        "s.yaml:1: backbone: is required, because dataset digits_lt contains images",
    ),
    "backbone without weights": (
        "stage1: {kind: ce}\n",
        "",
        "s.yaml:4: backbone: has no weights; set backbone.checkpoint",
    ),
    "backbone trained twice": (
        "{kind: small_cnn}",
        "{kind: small_cnn, checkpoint: a.pt}",
        "s.yaml:5: stage1: must not be given together with backbone.checkpoint",
    ),
    "no validation set": (
        "{kind: digits_lt}",
        "{kind: digits_lt, val_per_class: 0}",
        "s.yaml:3: dataset.val_per_class: 0 leaves no validation set for selection; set it to at least 1, or set ",
    ),
    "duplicate key": ("name: good", "name: good\nname: bad", "s.yaml:3: duplicate key 'name', first given on line 2"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_an_invalid_file_is_refused_with_its_line(tmp_path: Path, case: str) -> None:
    before, after, expected = REFUSALS[case]
    assert before in GOOD
    found = problems(tmp_path, GOOD.replace(before, after, 1))
    assert any(problem.startswith(expected) for problem in found), found
    assert not any("Input should" in problem or "pydantic" in problem for problem in found)


def test_an_empty_space_is_refused(tmp_path: Path) -> None:
    text = GOOD[: GOOD.index("  space:")] + "  space: {}\n"
    assert problems(tmp_path, text) == ["s.yaml:9: search.space: must have at least 1 entry, got {}"]


def test_more_trials_than_a_grid_has_points_are_refused(tmp_path: Path) -> None:
    text = GOOD[: GOOD.index("  trials:")] + "  algorithm: grid\n  trials: 3\n  space: {method.lr: {choice: [1, 2]}}\n"
    expected = "s.yaml:9: search.trials: must be at most 2, the number of points of the grid, got 3"
    assert problems(tmp_path, text) == [expected]
    assert load(tmp_path, text.replace("trials: 3", "trials: 2")).search.trials == 2


def test_all_problems_are_reported_at_once_in_the_order_of_lines(tmp_path: Path) -> None:
    text = """\
version: 2
name: x
dataset: {kind: digits_tl}
backbon: {kind: small_cnn}
stage1: {kind: ce, lr: -1}
method: {kind: los, lr: fast}
training: {epochs: 2.5}
search:
  algorithm: tpee
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
    found = [problem.removeprefix("s.yaml:").split(": ")[:2] for problem in problems(tmp_path, text)]
    assert found == [
        ["1", "version"],
        ["3", "dataset.kind"],
        ["4", "backbon"],
        ["5", "stage1.lr"],
        ["6", "method.lr"],
        ["7", "training.epochs"],
        ["9", "search.algorithm.kind"],
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
