"""Files with `matrix`: their sweeps, and how an invalid file is reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lt_train.core.errors import SpecError
from sweeps.config.matrix import SweepMatrix, load_file, load_matrix
from sweeps.config.spec import load_sweep, schema
from sweeps.config.yaml_source import parse_yaml

GOOD = """\
version: 1
name: fam
dataset: {kind: fashion_mnist_lt}
backbone: resnet32
method: los
stage1: {kind: ce, epochs: 3}
matrix:
  dataset.imbalance_ratio: [10, 50.5]
search: {trials: 2, space: {method.lr: {loguniform: [1e-3, 1]}}}
"""
MATRIX_KEY = "  dataset.imbalance_ratio: [10, 50.5]\n"


def load(tmp_path: Path, text: str) -> SweepMatrix:
    file = tmp_path / "fam.yaml"
    file.write_text(text)
    return load_matrix(file)


def problems(tmp_path: Path, text: str) -> list[str]:
    """The problems of an invalid file, each from its line number on."""
    with pytest.raises(SpecError) as refused:
        load(tmp_path, text)
    return [problem.removeprefix(f"{tmp_path / 'fam.yaml'}:") for problem in refused.value.problems]


def test_each_value_of_a_field_makes_a_sweep(tmp_path: Path) -> None:
    matrix = load(tmp_path, GOOD)
    assert (matrix.name, matrix.axis, list(matrix.members)) == ("fam", "dataset.imbalance_ratio", ["10", "50.5"])
    assert [spec.name for spec in matrix.sweeps] == ["fam-10", "fam-50.5"]
    assert [spec.dataset.imbalance_ratio for spec in matrix.sweeps] == [10, 50.5]  # type: ignore[attr-defined]
    alone = tmp_path / "alone.yaml"
    alone.write_text(GOOD.replace("matrix:\n" + MATRIX_KEY, "").replace("_lt}", "_lt, imbalance_ratio: 10}"))
    assert load_sweep(alone).fingerprint() == matrix.sweeps[0].fingerprint(), "each is an ordinary sweep"


def test_a_value_replaces_a_whole_section(tmp_path: Path) -> None:
    matrix = load(tmp_path, GOOD.replace(MATRIX_KEY, "  stage1:\n    - ce_drw\n    - {kind: ldam_drw, epochs: 7}\n"))
    assert [spec.name for spec in matrix.sweeps] == ["fam-ce_drw", "fam-ldam_drw"]
    assert [spec.stage1 and spec.stage1.epochs for spec in matrix.sweeps] == [200, 7]


def test_a_mapping_names_its_values(tmp_path: Path) -> None:
    matrix = load(tmp_path, GOOD.replace(MATRIX_KEY, "  stage1: {slow: {kind: ce, lr: 0.01}, fast: {kind: ce}}\n"))
    assert [(spec.name, spec.stage1 and spec.stage1.lr) for spec in matrix.sweeps] == [
        ("fam-slow", 0.01),
        ("fam-fast", 0.1),
    ]


def test_a_section_of_the_matrix_need_not_be_given_elsewhere(tmp_path: Path) -> None:
    text = GOOD.replace("stage1: {kind: ce, epochs: 3}\n", "").replace(MATRIX_KEY, "  stage1: [ce, ce_drw]\n")
    assert len(load(tmp_path, text).members) == 2
    no_features = GOOD.replace(MATRIX_KEY, "  features.views: [1, 2]\n")
    assert [spec.features.views for spec in load(tmp_path, no_features).sweeps] == [1, 2]


@pytest.mark.parametrize(
    ("axis", "expected"),
    [
        ("  3\n", ["7: matrix: must be a mapping with one key, a section or dotted field"]),
        ("  a: [1, 2]\n  b: [1, 2]\n", ["7: matrix: must be a mapping with one key"]),
        ("  training.epochs: [3]\n", ["8: matrix.training.epochs: must be a list of at least two values"]),
        ("  training.epochs: 3\n", ["8: matrix.training.epochs: must be a list of at least two values"]),
        (
            "  storage: [a, b]\n",
            ["8: matrix.storage: has no influence on results; all sweeps "],
        ),
        ("  stagee1: [ce, ce_drw]\n", ["8: matrix.stagee1: unknown key; did you mean 'stage1'?"]),
        ("  training.epoch: [1, 2]\n", ["8: matrix.training.epoch: unknown key; did you mean 'epochs'?"]),
        ("  training.epochs: [1, 0]\n", ["8: matrix.training.epochs[1]: must be at least 1, got 0"]),
        ("  stage1:\n  - ce\n  - {kind: ce_drw, beta: 1}\n", ["10: matrix.stage1[1].beta: must be in [0, 1), got 1"]),
        ("  stage1: [ce, ce]\n", ["8: matrix.stage1[1]: 'ce' is already the name of stage1[0]; use a mapping"]),
        (
            "  stage1: [{lr: 1}, ce]\n",
            ["8: matrix.stage1[0]: kind is required", "8: matrix.stage1[0]: must have a kind"],
        ),
        ("  training.epochs: {a b: 1, c: 2}\n", ["8: matrix.training.epochs.a b: gives the sweep the name 'fam-a b'"]),
    ],
)
def test_an_invalid_matrix_is_reported_with_its_line(tmp_path: Path, axis: str, expected: list[str]) -> None:
    found = problems(tmp_path, GOOD.replace(MATRIX_KEY, axis))
    assert len(found) == len(expected), found
    for beginning in expected:
        assert any(problem.startswith(beginning) for problem in found), (beginning, found)


def test_other_problems_are_reported_once_beside_it(tmp_path: Path) -> None:
    text = GOOD.replace("name: fam", "name: f m").replace("trials: 2", "trials: 0").replace("50.5", "0.5")
    assert [problem.partition(", got")[0] for problem in problems(tmp_path, text)] == [
        "2: name: must be at most 64 letters, digits, dots, dashes or underscores, the first a letter or digit",
        "8: matrix.dataset.imbalance_ratio[1]: must be at least 1",
        "9: search.trials: must be at least 1",
    ]
    assert len(problems(tmp_path, text.replace(MATRIX_KEY.replace("50.5", "0.5"), "  {}\n"))) == 3


def test_a_rule_between_parts_that_all_sweeps_break_is_reported_once(tmp_path: Path) -> None:
    text = GOOD.replace("resnet32", "{kind: resnet32, checkpoint: x.safetensors}")
    (problem,) = problems(tmp_path, text)
    assert problem.startswith("6: stage1: must not be given together with backbone.checkpoint")
    (problem,) = problems(tmp_path, text.replace(MATRIX_KEY, "  stage1: [ce, ce_drw]\n"))
    assert problem.startswith("8: matrix.stage1: must not be given together with backbone.checkpoint")


def test_a_file_of_the_other_form_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "fam.yaml"
    file.write_text(GOOD)
    with pytest.raises(SpecError, match=r"fam\.yaml:7: matrix: the file holds several sweeps, expected one"):
        load_sweep(file)
    file.write_text(GOOD.replace("matrix:\n" + MATRIX_KEY, ""))
    with pytest.raises(SpecError, match="matrix: is not given: the file holds one sweep"):
        load_matrix(file)
    assert load_file(file) == load_sweep(file)


@pytest.mark.parametrize(
    ("axis", "good"),
    [
        ("  stage1: [ce, {kind: ce_drw}]\n", True),
        ("  stage1: {a: ce, b: {kind: ce_drw}}\n", True),
        (MATRIX_KEY, True),
        ("  stage1: [ce]\n", False),
        ("  stage1: [ce, cee]\n", False),
        ("  storage: [a, b]\n", False),
        ("  stage1: [ce, ce_drw]\n  method: [ce, los]\n", False),
    ],
)
def test_the_schema_covers_matrices(axis: str, good: bool) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="not a dependency of this project")
    validator = jsonschema.Draft202012Validator(schema())

    def errors(text: str) -> list[Any]:
        return list(validator.iter_errors(json.loads(json.dumps(parse_yaml(text).document))))

    assert (not errors(GOOD.replace(MATRIX_KEY, axis))) is good
    without_method = GOOD.replace("method: los\n", "")
    assert errors(without_method.replace("matrix:\n" + MATRIX_KEY, ""))
    assert not errors(without_method.replace(MATRIX_KEY, "  method: [los, ce]\n"))
