"""For which sweeps the report shows the results of the paper."""

from __future__ import annotations

from typing import Any

import pytest

from sweeps.config.spec import SweepSpec, load_resolved
from sweeps.reporting.tables import TABLE1, TABLE4, printed


def spec(dataset: dict[str, Any], backbone: str, stage1: str | None = "ce") -> SweepSpec:
    where = {} if stage1 else {"checkpoint": "x.safetensors"}
    return load_resolved(
        {
            "version": 1,
            "name": "x",
            "dataset": {"root": "data", **dataset} if dataset["kind"] == "cifar100_lt" else dataset,
            "backbone": {"kind": backbone, **where},
            "stage1": stage1,
            "method": "los",
            "search": {"trials": 1, "space": {"method.lr": {"loguniform": [1e-4, 1e-1]}}},
        }
    )


def cifar(ratio: float, **fields: Any) -> dict[str, Any]:
    return {"kind": "cifar100_lt", "imbalance_ratio": ratio, **fields}


@pytest.mark.parametrize(("ratio", "los"), [(100, 54.9), (50, 58.8), (10, 69.7)])
def test_los_of_table_two_at_each_ratio(ratio: float, los: float) -> None:
    found = printed(spec(cifar(ratio), "resnet34"))
    assert found is not None
    assert found.rows["los"] == (los, None, None, None)
    assert "Backbone of the paper" not in found.where


def test_table_one_at_ratio_100_without_the_row_that_repeats_another() -> None:
    found = printed(spec(cifar(100), "resnet34"))
    assert found is not None
    assert found.rows["vanilla"] == (48.44, 78.74, 47.37, 14.33)
    assert found.rows["class_balanced"] == (53.31, 70.88, 50.25, 36.41)
    assert "resample" not in found.rows
    assert len(TABLE1) == 10


def test_table_four_by_recipe_for_its_own_backbone() -> None:
    found = printed(spec(cifar(100), "resnet32", "ldam_drw"))
    assert found is not None
    assert found.where.startswith("Table 4, row ldam_drw")
    assert {kind: row[0] for kind, row in found.rows.items()} == TABLE4["ldam_drw"]
    assert TABLE4["ldam_drw"]["los"] == 45.86


def test_another_backbone_is_named() -> None:
    found = printed(spec(cifar(50), "resnet32"))
    assert found is not None
    assert found.where.endswith("Backbone of the paper: resnet34, ours: resnet32")


@pytest.mark.parametrize("dataset", [cifar(20), cifar(100, n_max=400), {"kind": "digits_lt"}])
def test_other_data_has_no_results_in_the_paper(dataset: dict[str, Any]) -> None:
    assert printed(spec(dataset, "small_cnn" if dataset["kind"] == "digits_lt" else "resnet34")) is None
