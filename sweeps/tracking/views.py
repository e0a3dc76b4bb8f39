"""Views of MLflow's runs page: which runs, columns, order and charts a person sees first.

MLflow keeps what its button `Share view` shares as a tag of the experiment, and shows it under an address that names
the tag; so a view is there for everybody, on a tracking server too, where other settings of the page live in one
browser. Tried with MLflow 3.17; one that does not know a part of a view leaves it out. Knows no MLflow and no sweep.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlencode

from sweeps.config.tracking import RunsView, SweepStarted

__all__ = ["EXPERIMENT_NOTE", "addresses", "run_address", "view_tags"]

EXPERIMENT_NOTE = (
    "Sweeps of longtail-sweeps: a run for each, with its trials below it. Views, at the top right of Runs, are the "
    "runs of each sweep with the columns that matter, best first, and charts of what was searched; `lt-sweep ui` opens "
    "them."
)

TAG = "mlflow.sharedViewState."
WORK = "?workflowType=machine_learning"
"""What tells MLflow to show the pages of a training; else it opens those for agents."""

NAME_WIDTH = 300
MOST_SCATTERS = 9


def view_tags(card: SweepStarted) -> dict[str, str]:
    """The tags of a sweep's experiment that hold its two views: runs by rank, and trials below the sweep's run."""
    if card.view is None:
        return {}
    ranked = _state(card, card.view, f"metrics.`{card.view.rank}`")
    ranked["searchFilter"] += " and params.phase != 'longer'"  # what ran longer competes with nobody
    below = _state(card, card.view, "attributes.start_time")  # in another order MLflow nests nothing
    named = {"": f"{card.name}: best first", "-nested": f"{card.name}: trials below the sweep"}
    return {
        TAG + _key(card.sweep_id) + suffix: json.dumps(
            {"name": name, "createdAt": card.started_ms, "updatedAt": card.started_ms, "state": _packed(state)}
        )
        for (suffix, name), state in zip(named.items(), (ranked, below), strict=True)
    }


def addresses(server: str, experiment: str, sweep_id: str, tags: Iterable[str]) -> dict[str, str]:
    """Where the pages of a sweep are, by what is seen there, the runs table first.

    Args:
        server: its address.
        experiment: its number.
        sweep_id: of the sweep.
        tags: that the experiment has; a sweep of before there were views has the table alone.
    """
    page = f"{server.rstrip('/')}/#/experiments/{experiment}/runs{WORK}"
    if TAG + _key(sweep_id) not in tags:
        return {"runs": page}
    key = _key(sweep_id)
    return {
        "runs, best first": f"{page}&{urlencode({'viewStateShareKey': key})}",
        "charts of what was searched": f"{page}&{urlencode({'viewStateShareKey': key, 'compareRunsMode': 'CHART'})}",
        "trials below the sweep's run": f"{page}&{urlencode({'viewStateShareKey': f'{key}-nested'})}",
    }


def run_address(server: str, experiment: str, run: str) -> str:
    """Where the page of a run is."""
    return f"{server.rstrip('/')}/#/experiments/{experiment}/runs/{run}{WORK}"


def _key(sweep_id: str) -> str:
    return f"lt-{hashlib.sha256(sweep_id.encode()).hexdigest()[:16]}"


def _packed(state: dict[str, Any]) -> str:
    """As MLflow packs it: a tag holds 5000 characters."""
    return "deflate;" + base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()


def _state(card: SweepStarted, view: RunsView, order: str) -> dict[str, Any]:
    params = [f"params.`{name}`" for name in ("method", "phase")]
    metrics = [f"metrics.`{name}`" for name in view.metrics]
    searched = [f"params.`{name}`" for name in view.searched]
    columns = [*params, *metrics, *searched]
    name = "attributes.`Run Name`"
    return {
        "searchFilter": f"tags.`lt.sweep_id` = '{card.sweep_id}' and tags.`lt.role` != 'seed'",
        "orderByKey": order,
        "orderByAsc": False,
        "selectedColumns": columns,
        "columnOrder": [name, "runDateAndNestInfo", *columns],
        "columnWidths": {name: NAME_WIDTH},
        "runsHiddenMode": "SHOW_ALL",  # else charts show the first ten
        "compareRunCharts": [*_parallels(view), *_scatters(view)],
        "compareRunSections": [
            _section("lt-parallel", "Searched parameters", columns=1, cardHeight=420),
            _section("lt-scatter", f"Each parameter against {view.rank}", columns=2, cardHeight=360),
        ],
        "isAccordionReordered": True,
    }


def _section(uuid: str, name: str, **looks: int) -> dict[str, Any]:
    return {"uuid": uuid, "name": name, "display": True, "isReordered": True, "deleted": False, **looks}


def _parallels(view: RunsView) -> list[dict[str, Any]]:
    """A chart for each set of parameters that methods are searched in: a run without one of them is in no chart."""
    sets = dict.fromkeys(tuple(names) for names in view.searched_by.values() if names)
    return [
        _card(
            "PARALLEL",
            f"lt-parallel-{number}",
            "lt-parallel",
            selectedParams=list(names),
            selectedMetrics=[*(name for name in view.charted if name != view.rank), view.rank],  # coloured by the last
            showAllRuns=True,
        )
        for number, names in enumerate(sets)
    ]


def _scatters(view: RunsView) -> list[dict[str, Any]]:
    names = list(dict.fromkeys(name for names in view.searched_by.values() for name in names))
    return [
        _card(
            "SCATTER",
            f"lt-scatter-{number}",
            "lt-scatter",
            xaxis={"key": name, "type": "PARAM"},
            yaxis={"key": view.rank, "type": "METRIC"},
        )
        for number, name in enumerate(names[:MOST_SCATTERS])
    ]


def _card(kind: str, uuid: str, section: str, **parts: Any) -> dict[str, Any]:
    return {"type": kind, "uuid": uuid, "metricSectionId": section, "deleted": False, "isGenerated": False, **parts}
