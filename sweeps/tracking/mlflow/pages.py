"""MLflow's pages of a sweep: views of its runs table, their URLs, and a local server.

MLflow stores a view that was shared with its button `Share view` as a tag of the experiment, and opens it by a URL that
names the tag. Such a view is available to everyone, on a tracking server too; other page settings are stored in one
browser. Tested with MLflow 3.17; versions that do not support a part of a view ignore it.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import zlib
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import urlencode

from lt_train.core.errors import LongtailError, UserError
from sweeps.config.interfaces import RunsView, TrackedSweep
from sweeps.tracking.mlflow.store import open_client, sqlite_file

__all__ = ["EXPERIMENT_NOTE", "serve", "sweep_urls", "view_tags"]


EXPERIMENT_NOTE = (
    "Sweeps of longtail-sweeps: one run per sweep, with one nested run per trial. The views at the top right of Runs "
    "show the runs of each sweep, best first, and charts of the searched parameters; `lt-sweep ui` prints their URLs."
)

VIEW_TAG = "mlflow.sharedViewState."
WORKFLOW_QUERY = "?workflowType=machine_learning"
"""Selects MLflow's pages for model training; its default are those for agents."""

NAME_WIDTH = 300
MAX_SCATTERS = 9

SERVER_STOP_SECONDS = 10.0
"""Seconds that a stopped server may take to end."""


def view_tags(sweep: TrackedSweep) -> dict[str, str]:
    """The experiment tags of a sweep's two views: all runs by rank, and trials nested below the sweep's run."""
    if sweep.view is None:
        return {}
    ranked = _state(sweep, sweep.view, f"metrics.`{sweep.view.rank}`")
    ranked["searchFilter"] += " and params.phase != 'extended'"  # extended training is not ranked
    nested = _state(sweep, sweep.view, "attributes.start_time")  # MLflow nests runs in this order only
    names = {"": f"{sweep.name}: best first", "-nested": f"{sweep.name}: trials below the sweep"}
    return {
        VIEW_TAG + _key(sweep.sweep_id) + suffix: json.dumps(
            {"name": name, "createdAt": sweep.started_ms, "updatedAt": sweep.started_ms, "state": _compressed(state)}
        )
        for (suffix, name), state in zip(names.items(), (ranked, nested), strict=True)
    }


def sweep_urls(server: str, experiment: str, sweep_id: str, tags: Iterable[str]) -> dict[str, str]:
    """URLs of a sweep's pages by description, the runs table first.

    Args:
        server: URL of the server.
        experiment: id of the experiment.
        sweep_id: id of the sweep.
        tags: keys of the experiment's tags. Without the sweep's views, only the runs table has a URL.
    """
    page = f"{server.rstrip('/')}/#/experiments/{experiment}/runs{WORKFLOW_QUERY}"
    key = _key(sweep_id)
    if VIEW_TAG + key not in tags:
        return {"runs": page}
    return {
        "runs, best first": f"{page}&{urlencode({'viewStateShareKey': key})}",
        "charts of searched parameters": f"{page}&{urlencode({'viewStateShareKey': key, 'compareRunsMode': 'CHART'})}",
        "trials below the sweep's run": f"{page}&{urlencode({'viewStateShareKey': f'{key}-nested'})}",
    }


def serve(uri: str, experiment: str, sweep: str, port: int) -> int:
    """Print the URLs of a sweep's pages, and run MLflow's server on its store until it is stopped.

    For an http URI, whose server is running already, only prints the URLs.

    Args:
        uri: tracking URI.
        experiment: name of the experiment.
        sweep: name of the sweep.
        port: port of the server, on localhost.

    Returns:
        The server's exit code.

    Raises:
        UserError: the store is missing or has no such sweep, or the port is in use.
        LongtailError: the server failed; the message has the end of its output.
    """
    store = sqlite_file(uri)
    if store is not None and not store[0].exists():  # opening a client would create it
        raise UserError(f"{store[0]} does not exist; `lt-sweep resume` creates it from the sweep's ledger")
    is_server = uri.startswith("http")
    urls = _page_urls(uri, experiment, sweep, uri if is_server else f"http://127.0.0.1:{port}")
    lines = [f"{url}   ({description})" for description, url in urls.items()]
    if is_server:
        print("\n".join(lines))
        return 0
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--host", "127.0.0.1"]
    return _run_server([*command, "--port", str(port), "--workers", "1"], port, lines)


def _page_urls(uri: str, experiment_name: str, sweep: str, server: str) -> dict[str, str]:
    client = open_client(uri)
    experiment = client.get_experiment_by_name(experiment_name)
    if experiment is None:
        raise UserError(f"{uri} does not contain sweep {sweep} yet; `lt-sweep resume` writes it there")
    query = f"tags.`lt.role` = 'sweep' and attributes.run_name = '{sweep}'"
    newest = client.search_runs([experiment.experiment_id], query, max_results=1)
    sweep_id = newest[0].data.tags["lt.sweep_id"] if newest else ""
    urls = sweep_urls(server, experiment.experiment_id, sweep_id, experiment.tags)
    if newest:
        run = newest[0].info.run_id
        urls["the sweep's run"] = (
            f"{server.rstrip('/')}/#/experiments/{experiment.experiment_id}/runs/{run}{WORKFLOW_QUERY}"
        )
    return urls


def _key(sweep_id: str) -> str:
    return f"lt-{hashlib.sha256(sweep_id.encode()).hexdigest()[:16]}"


def _compressed(state: dict[str, Any]) -> str:
    """A view in MLflow's compressed form; a tag is limited to 5000 characters."""
    return "deflate;" + base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()


def _state(sweep: TrackedSweep, view: RunsView, order: str) -> dict[str, Any]:
    params = [f"params.`{name}`" for name in ("method", "phase")]
    metrics = [f"metrics.`{name}`" for name in view.metrics]
    searched = [f"params.`{name}`" for name in view.searched]
    columns = [*params, *metrics, *searched]
    name = "attributes.`Run Name`"
    return {
        "searchFilter": f"tags.`lt.sweep_id` = '{sweep.sweep_id}' and tags.`lt.role` != 'seed'",
        "orderByKey": order,
        "orderByAsc": False,
        "selectedColumns": columns,
        "columnOrder": [name, "runDateAndNestInfo", *columns],
        "columnWidths": {name: NAME_WIDTH},
        "runsHiddenMode": "SHOW_ALL",  # by default, charts show ten runs
        "compareRunCharts": [*_parallels(view), *_scatters(view)],
        "compareRunSections": [
            _section("lt-parallel", "Searched parameters", columns=1, cardHeight=420),
            _section("lt-scatter", f"Each parameter against {view.rank}", columns=2, cardHeight=360),
        ],
        "isAccordionReordered": True,
    }


def _section(uuid: str, name: str, **style: int) -> dict[str, Any]:
    return {"uuid": uuid, "name": name, "display": True, "isReordered": True, "deleted": False, **style}


def _parallels(view: RunsView) -> list[dict[str, Any]]:
    """One chart for every distinct set of searched parameters: a chart omits runs that lack one of its parameters."""
    sets = dict.fromkeys(tuple(names) for names in view.searched_by.values() if names)
    return [
        _chart(
            "PARALLEL",
            f"lt-parallel-{number}",
            "lt-parallel",
            selectedParams=list(names),
            # The last metric sets the colour.
            selectedMetrics=[*(name for name in view.charted if name != view.rank), view.rank],
            showAllRuns=True,
        )
        for number, names in enumerate(sets)
    ]


def _scatters(view: RunsView) -> list[dict[str, Any]]:
    names = list(dict.fromkeys(name for names in view.searched_by.values() for name in names))
    return [
        _chart(
            "SCATTER",
            f"lt-scatter-{number}",
            "lt-scatter",
            xaxis={"key": name, "type": "PARAM"},
            yaxis={"key": view.rank, "type": "METRIC"},
        )
        for number, name in enumerate(names[:MAX_SCATTERS])
    ]


def _chart(kind: str, uuid: str, section: str, **parts: Any) -> dict[str, Any]:
    return {"type": kind, "uuid": uuid, "metricSectionId": section, "deleted": False, "isGenerated": False, **parts}


def _run_server(command: Sequence[str], port: int, lines: Sequence[str]) -> int:
    """Run a server until it ends or this process is stopped; prints `lines` once it answers. Returns its exit code."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise UserError(f"cannot use port {port} ({error.strerror}); choose another with --port") from None
    with tempfile.TemporaryFile("w+") as log:
        # In its own process group, so that its workers end with it and Ctrl-C reaches only this process.
        server = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            if _answers(server, port):
                print("\n".join([*lines, "(Ctrl-C stops the server)"]), flush=True)
            if server.wait():
                log.seek(0)
                raise LongtailError(f"MLflow's server failed with exit code {server.returncode}:\n{log.read()[-2000:]}")
            return 0
        finally:
            _stop(server)


def _answers(server: subprocess.Popen[bytes], port: int) -> bool:
    """Wait until the server answers; False if it has ended."""
    while server.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1):
                return True
        except OSError:
            time.sleep(0.2)
    return False


def _stop(server: subprocess.Popen[bytes]) -> None:
    """Stop the server and its workers; kill those that do not end in time."""
    server.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        server.wait(SERVER_STOP_SECONDS)
    with contextlib.suppress(ProcessLookupError):  # all have ended
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()
