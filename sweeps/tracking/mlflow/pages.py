"""MLflow's pages of a sweep: its store, views of its runs table, their URLs, and a local server.

MLflow creates its tables with about a thousand statements outside any transaction, and cannot repair a store whose
creation was killed. A new SQLite store is therefore created under a temporary name and then renamed.

MLflow stores a view that was shared with its button `Share view` as a tag of the experiment, and opens it by a URL that
names the tag. Such a view is available to everyone, on a tracking server too; other page settings are stored in one
browser. Tested with MLflow 3.17; versions that do not support a part of a view ignore it.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from lt_train.core.errors import LongtailError, UserError
from lt_train.core.io import sync, writing
from sweeps.config.interfaces import RunsView, SweepStarted

__all__ = ["EXPERIMENT_NOTE", "create_store", "open_client", "serve", "sqlite_file", "sweep_urls", "view_tags"]


ABANDONED_SECONDS = 3600.0
"""Age after which a store under a temporary name is considered abandoned by a killed process."""


def open_client(uri: str) -> Any:
    """An `mlflow.MlflowClient`; creates a SQLite store that does not exist.

    Raises:
        LongtailError: the SQLite store is incomplete.
        StorageError: the disk is full or not writable.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    # MLflow's own retries repeat requests whose answer was lost, which creates runs twice, and block for minutes.
    # `BackgroundTracker` retries instead, after looking up what exists.
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    # Do not write to the run of a parent process.
    os.environ.pop("MLFLOW_RUN_ID", None)

    import mlflow

    # After the import, which sets levels.
    for name in ("mlflow", "mlflow.store.db.utils", "mlflow.utils.environment", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)

    store = sqlite_file(uri)
    if store is None:
        return mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
    file, options = store
    create_store(file, lambda temporary: _connect(f"sqlite:///{temporary}{options}"))
    try:
        return _connect(uri)
    except Exception as error:  # of SQLAlchemy or of MLflow
        if not _is_incomplete(error):
            raise
        raise LongtailError(
            f"the MLflow store {file} is incomplete: a process was killed while MLflow created or upgraded its tables. "
            f"Move it away (mv {file} {file}.broken) and run `lt-sweep resume` on each sweep in it: that writes the "
            "sweeps to a new store from their ledgers and trains nothing"
        ) from error


def _connect(uri: str) -> Any:
    """A client that has made one request, at which MLflow creates missing tables."""
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
    client.search_experiments(max_results=1)
    return client


def _is_incomplete(error: Exception) -> bool:
    """Whether an error means that the tables of a store were created in part."""
    texts = ("already exists", "duplicate column name", "out-of-date database schema")
    return any(text in str(error) for text in texts)


def sqlite_file(uri: str) -> tuple[Path, str] | None:
    """The file and the options, such as `?timeout=30`, of a SQLite URI.

    None for other URIs, and for names with a meaning in SQLite (`file:...`, `:memory:`).
    """
    name, mark, options = uri.removeprefix("sqlite:///").partition("?")
    if not uri.startswith("sqlite:///") or name in ("", ":memory:") or name.startswith("file:"):
        return None
    return Path(name), mark + options


def create_store(file: Path, create: Callable[[Path], object]) -> None:
    """Create a store with `create`, unless `file` exists. Of several concurrent calls, the first one's store stays.

    Raises:
        StorageError: the disk is full or not writable.
    """
    _remove_abandoned(file)
    if file.exists():
        return
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        directory = Path(tempfile.mkdtemp(prefix=f".{file.name}.", suffix=".tmp", dir=file.parent))
        try:
            temporary = directory / file.name
            create(temporary)
            sync(temporary)
            _rename(temporary, file)
            sync(file.parent)
        finally:
            shutil.rmtree(directory, ignore_errors=True)


def _remove_abandoned(file: Path) -> None:
    """Remove temporary stores of killed processes."""
    for directory in file.parent.glob(f".{file.name}.*.tmp"):
        with contextlib.suppress(OSError):  # another process may remove it, too
            if time.time() - directory.stat().st_mtime > ABANDONED_SECONDS:
                shutil.rmtree(directory)


def _rename(temporary: Path, file: Path) -> None:
    """Rename a store, without replacing one that another process has created meanwhile."""
    try:
        os.link(temporary, file)
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links; there, two concurrent calls are not detected
        if not file.exists():
            temporary.rename(file)


EXPERIMENT_NOTE = (
    "Sweeps of longtail-sweeps: one run per sweep, with one nested run per trial. The views at the top right of Runs "
    "show the runs of each sweep, best first, and charts of the searched parameters; `lt-sweep ui` prints their URLs."
)

TAG = "mlflow.sharedViewState."
WORKFLOW = "?workflowType=machine_learning"
"""Selects MLflow's pages for model training; its default are those for agents."""

NAME_WIDTH = 300
MAX_SCATTERS = 9

GRACE = 10.0
"""Seconds that a stopped server may take to end."""


def view_tags(sweep: SweepStarted) -> dict[str, str]:
    """The experiment tags of a sweep's two views: all runs by rank, and trials nested below the sweep's run."""
    if sweep.view is None:
        return {}
    ranked = _state(sweep, sweep.view, f"metrics.`{sweep.view.rank}`")
    ranked["searchFilter"] += " and params.phase != 'extended'"  # extended training is not ranked
    nested = _state(sweep, sweep.view, "attributes.start_time")  # MLflow nests runs in this order only
    names = {"": f"{sweep.name}: best first", "-nested": f"{sweep.name}: trials below the sweep"}
    return {
        TAG + _key(sweep.sweep_id) + suffix: json.dumps(
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
    page = f"{server.rstrip('/')}/#/experiments/{experiment}/runs{WORKFLOW}"
    key = _key(sweep_id)
    if TAG + key not in tags:
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
        urls["the sweep's run"] = f"{server.rstrip('/')}/#/experiments/{experiment.experiment_id}/runs/{run}{WORKFLOW}"
    return urls


def _key(sweep_id: str) -> str:
    return f"lt-{hashlib.sha256(sweep_id.encode()).hexdigest()[:16]}"


def _compressed(state: dict[str, Any]) -> str:
    """A view in MLflow's compressed form; a tag is limited to 5000 characters."""
    return "deflate;" + base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()


def _state(sweep: SweepStarted, view: RunsView, order: str) -> dict[str, Any]:
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
        server.wait(GRACE)
    with contextlib.suppress(ProcessLookupError):  # all have ended
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()
