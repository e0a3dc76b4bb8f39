"""Views of MLflow's runs table, in the format of its button `Share view`."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Callable
from typing import Any

import pytest

from sweeps.config.interfaces import RunsView, TrackedSweep
from sweeps.config.spec import SweepSpec
from sweeps.tracking.content import runs_view
from sweeps.tracking.mlflow.pages import sweep_urls, view_tags

MakeSweep = Callable[..., SweepSpec]
SPACE = {"method.smooth_factor": {"uniform": [0.1, 0.9]}, "method.lr": {"loguniform": [1e-3, 1e-1]}}


def states(spec: SweepSpec, has_val: bool = True) -> list[dict[str, Any]]:
    tags = view_tags(TrackedSweep("some id", spec.name, {}, 7, view=runs_view(spec, has_val)))
    packed = [json.loads(value)["state"].removeprefix("deflate;") for value in tags.values()]
    return [json.loads(zlib.decompress(base64.b64decode(text))) for text in packed]


@pytest.mark.parametrize(
    ("selection", "rank"),
    [
        ({"metric": "acc_few", "on": "val"}, "val_acc_few"),
        ({"metric": "acc_all", "on": "test"}, "acc_all"),
        ({"metric": "acc_all", "on": "val", "objective": "best"}, "objective"),
    ],
)
def test_trials_are_ranked_by_the_selection_metric(selection: Any, rank: str, small_sweep: MakeSweep):
    ranked, nested = states(small_sweep(selection=selection))
    assert ranked["orderByKey"] == f"metrics.`{rank}`"
    assert not ranked["orderByAsc"]
    assert ranked["selectedColumns"][2] == f"metrics.`{rank}`"
    assert len(ranked["selectedColumns"]) == len(set(ranked["selectedColumns"]))
    assert nested["orderByKey"] == "attributes.start_time", "MLflow nests runs in this order only"


def test_without_val_there_are_no_columns_of_val(small_sweep: MakeSweep):
    ranked, _ = states(small_sweep(selection={"on": "test"}), has_val=False)
    assert not [name for name in ranked["selectedColumns"] if "val_" in name]


def test_a_logarithmic_search_is_charted_by_its_logarithm(small_sweep: MakeSweep):
    ranked, _ = states(small_sweep(search={"trials": 2, "space": SPACE}))
    (parallel,) = [chart for chart in ranked["compareRunCharts"] if chart["type"] == "PARALLEL"]
    assert parallel["selectedParams"] == ["smooth_factor", "log10_lr"]
    assert "params.`lr`" in ranked["selectedColumns"]


def test_a_view_with_many_parameters_fits_into_a_tag():
    many = [f"head.some_long_name_{number}" for number in range(60)]
    sweep = TrackedSweep("id", "x", {}, 1, view=RunsView("acc_all", ["acc_all"], many, ["acc_few"], {"los": many}))
    assert max(len(value) for value in view_tags(sweep).values()) < 5000


def test_a_sweep_without_views_has_the_url_of_its_table():
    urls = sweep_urls("https://mlflow.example/", "3", "some id", tags=["mlflow.note.content"])
    assert urls == {"runs": "https://mlflow.example/#/experiments/3/runs?workflowType=machine_learning"}
