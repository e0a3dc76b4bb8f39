"""`mlflow`: a parent run for the sweep, a child for each trial. The only file that imports MLflow.

Runs are found again by tag (`lt.sweep_id`, `lt.key`), so every call may be repeated after a crash: a resumed sweep
re-attaches to its runs and doubles none. Metrics go in batches, one request a few hundred points.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from lt_train.core.errors import LongtailError, UserError
from sweeps.cluster.secret_files import holds_credentials
from sweeps.config.tracking import Champion, DatasetInfo, SweepStarted, Tracker, TrackingSpec, TrialFinished
from sweeps.tracking.exporting import digest_of, exportable
from sweeps.tracking.new_store import make_store, sqlite_file, unfinished
from sweeps.tracking.server import serve
from sweeps.tracking.source import code_tags
from sweeps.tracking.views import EXPERIMENT_NOTE, addresses, run_address, view_tags

__all__ = ["MlflowTracking"]

BATCH = 900
"""Metric points in one request; the server takes 1000."""

NOTE = "mlflow.note.content"
"""The tag that MLflow shows as the description of a run or an experiment."""


def _without_password(uri: str | None) -> str | None:
    if uri is not None and holds_credentials(uri):
        raise ValueError(
            "must hold no password or token, and got one: the file is copied into results; set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (for a database what its own client reads, such as "
            "PGPASSWORD), or give --secret-file to a job"
        )
    return uri


class MlflowTracking(TrackingSpec):
    """MLflow on SQLite (default) or on any tracking server."""

    kind: Literal["mlflow"] = "mlflow"
    uri: Annotated[str | None, AfterValidator(_without_password)] = Field(
        default=None,
        pattern=r"^(sqlite:///|https?://|postgresql(\+\w+)?://|mysql(\+\w+)?://|mssql(\+\w+)?://|databricks)",
        description="tracking URI: sqlite:///FILE, http(s)://HOST, postgresql://...; null: sqlite:///<storage>/mlflow.db",
    )
    experiment: str | None = Field(default=None, description="experiment; null: the sweep's name")
    seed_runs: bool = Field(default=False, description="also a grandchild run for every seed")
    champion: Literal["images", "features"] = Field(
        default="images",
        description="what the winner is logged as: images, a model with the backbone in it beside the head alone; "
        "features, the head alone, which is small",
    )

    def resolved_uri(self, storage: Path) -> str:
        """The tracking URI in force."""
        return self.uri or f"sqlite:///{storage / 'mlflow.db'}"

    def open(self, card: SweepStarted, storage: Path) -> Tracker:
        """Start the sweep's parent run or re-attach to it.

        Raises:
            LongtailError: the server does not let us, with whose login and what would change that.
        """
        from mlflow.exceptions import MlflowException

        try:
            return _MlflowTracker(self, card, storage)
        except MlflowException as error:
            if error.get_http_status_code() not in (401, 403):
                raise
            raise LongtailError(self._refused(error.get_http_status_code(), card)) from error

    def _refused(self, status: int, card: SweepStarted) -> str:
        user = os.environ.get("MLFLOW_TRACKING_USERNAME")
        if status == 403:
            experiment = self.experiment or card.name
            return (
                f"{self.uri} does not let {user} write experiment {experiment!r}; name another in tracking.experiment"
            )
        what = "wants a login, and got none" if user is None else f"refuses {user} with this password"
        return (
            f"{self.uri} {what}; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (of a job with --env and "
            "--secret-file)"
        )

    def serve(self, sweep: str, storage: Path, port: int) -> int:
        """Start MLflow's own server on the sweep's store, at localhost:`port`, until it is stopped; its exit code.

        A tracking server is not started twice: for an http address only the address of the runs table is printed.

        Raises:
            UserError: nothing was tracked yet, its store is gone, or the port is taken.
        """
        uri = self.resolved_uri(storage)
        store = sqlite_file(uri)
        if store is not None and not store[0].exists():  # looking makes nothing
            raise UserError(f"{store[0]} is not there; `lt-sweep resume` writes it anew from the sweep's ledger")
        local = f"http://127.0.0.1:{port}"
        pages = self._pages(uri, sweep, uri if uri.startswith("http") else local)
        if uri.startswith("http"):
            print("\n".join(pages))
            return 0
        command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--host", "127.0.0.1"]
        return serve([*command, "--port", str(port), "--workers", "1"], port, pages)

    def _pages(self, uri: str, sweep: str, server: str) -> list[str]:
        """Addresses of what is to be seen of the sweep, the runs table first, each with what it is."""
        client = _client(uri)
        experiment = client.get_experiment_by_name(self.experiment or sweep)
        if experiment is None:
            raise UserError(f"{uri} holds nothing of sweep {sweep} yet; `lt-sweep resume` shows it there")
        mine = f"tags.`lt.role` = 'sweep' and attributes.run_name = '{sweep}'"
        newest = client.search_runs([experiment.experiment_id], mine, max_results=1)
        sweep_id = newest[0].data.tags["lt.sweep_id"] if newest else ""
        places = addresses(server, experiment.experiment_id, sweep_id, experiment.tags)
        if newest:
            places["the sweep's run"] = run_address(server, experiment.experiment_id, newest[0].info.run_id)
        return [f"{address}   ({what})" for what, address in places.items()]


def _client(uri: str) -> Any:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    # A server that is away is tried again by the sweep itself, which looks first what is there: MLflow's own retries
    # send a request again whose answer was lost, and make two runs of one. Its flush_timeout is minutes, too, and blocks.
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    # A parent process's run must not become ours.
    os.environ.pop("MLFLOW_RUN_ID", None)
    import logging

    import mlflow

    # After the import, which sets levels of its own.
    for name in ("mlflow", "mlflow.store.db.utils", "mlflow.utils.environment", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)

    store = sqlite_file(uri)
    if store is None:
        return mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
    file, options = store
    make_store(file, lambda made: _ask(f"sqlite:///{made}{options}"))
    try:
        return _ask(uri)
    except Exception as error:  # of SQLAlchemy or of MLflow
        if (told := unfinished(error, file)) is None:
            raise
        raise LongtailError(told) from error


def _ask(uri: str) -> Any:
    """A client that has asked something: where there are no tables, MLflow makes them now."""
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
    client.search_experiments(max_results=1)
    return client


@dataclass(frozen=True)
class _Known:
    """A run of this sweep that MLflow has, whether all that belonged to it was written, and whether it has a note."""

    run_id: str
    ended: bool
    noted: bool


class _MlflowTracker:
    def __init__(self, spec: MlflowTracking, card: SweepStarted, storage: Path) -> None:
        self.spec, self.card = spec, card
        self.uri = spec.resolved_uri(storage)
        self.client = _client(self.uri)
        self.experiment = self._experiment(storage)
        self.known = self._known_runs()
        self.parent = self._parent()

    def log_trial(self, card: TrialFinished) -> None:
        run = self._log(card, self.parent, "trial")
        if self.spec.seed_runs:
            for of_seed in card.of_seeds():
                self._log(of_seed, run, "seed")

    def finish(self, metrics: Mapping[str, float], artifacts: Path, champion: Champion | None, note: str = "") -> None:
        now = time.time_ns() // 1_000_000
        self._batch(self.parent, dict(metrics), {}, {}, now, _note(note))
        self.client.log_artifacts(self.parent, str(artifacts))
        if champion is not None:
            self._register(champion)
        self.client.set_terminated(self.parent, "FINISHED", now)

    def interrupted(self) -> None:
        half_written = [run.run_id for run in self.known.values() if not run.ended and run.run_id != self.parent]
        for run_id in (*half_written, self.parent):
            self.client.set_terminated(run_id, "KILLED")

    def _experiment(self, storage: Path) -> str:
        name = self.spec.experiment or self.card.name
        found = self.client.get_experiment_by_name(name)
        tags = view_tags(self.card)
        if found is None or NOTE not in found.tags:  # a note that somebody wrote stays
            tags[NOTE] = EXPERIMENT_NOTE
        if found is not None:
            for key, value in tags.items():
                if found.tags.get(key) != value:
                    self.client.set_experiment_tag(found.experiment_id, key, value)
            return str(found.experiment_id)
        # Without a server to keep artifacts MLflow would put them under whatever directory this process runs in.
        local = self.uri.startswith("sqlite:")
        place = (storage.resolve() / "mlflow-artifacts").as_uri() if local else None
        return str(self.client.create_experiment(name, artifact_location=place, tags=tags))

    def _known_runs(self) -> dict[str, _Known]:
        """Runs of this sweep that exist already, by `lt.key`."""
        known: dict[str, _Known] = {}
        token = None
        while True:
            page = self.client.search_runs(
                [self.experiment], f"tags.`lt.sweep_id` = '{self.card.sweep_id}'", max_results=1000, page_token=token
            )
            known |= {
                run.data.tags["lt.key"]: _Known(
                    run.info.run_id, run.info.status in ("FINISHED", "FAILED"), NOTE in run.data.tags
                )
                for run in page
            }
            token = page.token
            if not token:
                return known

    def _parent(self) -> str:
        found = self.known.get("sweep")
        if found is not None:
            self.client.update_run(found.run_id, status="RUNNING")
            run_id = found.run_id
        else:
            run_id = self._create("sweep", self.card.name, "sweep", None, self.card.started_ms)
        # Points that are there already, with the same time, MLflow knows for the same; inputs, too.
        self._batch(run_id, {}, self.card.series, self.card.params, self.card.started_ms, _note(self.card.note))
        if self.card.data:
            self.client.log_inputs(run_id, [_dataset_input(part) for part in self.card.data])
        return run_id

    def _create(self, key: str, name: str, role: str, parent: str | None, start_ms: int) -> str:
        tags = {"lt.sweep_id": self.card.sweep_id, "lt.key": key, "lt.role": role, **code_tags()}
        if parent is not None:
            tags["mlflow.parentRunId"] = parent
        run = self.client.create_run(self.experiment, start_time=start_ms, tags=tags, run_name=name)
        self.known[key] = _Known(run.info.run_id, ended=False, noted=False)
        return self.known[key].run_id

    def _log(self, card: TrialFinished, parent: str, role: str) -> str:
        found = self.known.get(card.key)
        params = {**card.params, "phase": card.phase}
        if found is not None and found.ended:
            if card.note and not found.noted:  # by a version that wrote less of it
                there = self.client.get_run(found.run_id).data.params  # which MLflow lets nobody change
                new = {key: value for key, value in params.items() if key not in there}
                self._batch(found.run_id, {}, {}, new, card.finished_ms, _note(card.note))
            return found.run_id
        run_id = found.run_id if found else self._create(card.key, card.name, role, parent, card.finished_ms)
        tags = _note(card.note) | ({} if card.stopped is None else {"stopped_after_epoch": card.stopped})
        self._batch(run_id, card.metrics, card.series, params, card.finished_ms, tags)
        for name, text in card.tables.items():
            self.client.log_text(run_id, text, name)
        self.client.set_terminated(run_id, "FAILED" if card.failed else "FINISHED", card.finished_ms)
        self.known[card.key] = _Known(run_id, ended=True, noted=True)
        return run_id

    def _batch(
        self,
        run_id: str,
        metrics: Mapping[str, float],
        series: Mapping[str, list[tuple[int, float]]],
        params: Mapping[str, Any],
        at_ms: int,
        tags: Mapping[str, Any] | None = None,
    ) -> None:
        from mlflow.entities import Metric, Param, RunTag

        points = [Metric(key, value, at_ms, 0) for key, value in metrics.items()]
        points += [Metric(key, value, at_ms, step) for key, steps in series.items() for step, value in steps]
        names = [Param(key, str(value)[:6000]) for key, value in params.items()]
        marks = [RunTag(key, str(value)) for key, value in (tags or {}).items()]
        self.client.log_batch(run_id, metrics=points[:BATCH], params=names, tags=marks)
        for start in range(BATCH, len(points), BATCH):
            self.client.log_batch(run_id, metrics=points[start : start + BATCH])

    def _register(self, champion: Champion) -> None:
        """Log the winner as models, register them and move the aliases to them; once a winner.

        `champion-head` takes features. `champion` takes images where there are images, else it is the same: what
        was logged without its images, because they were not to be had, is logged with them once they are.
        """
        head_digest, digest = digest_of(champion, "features"), digest_of(champion, self.spec.champion)
        shown = self.client.get_run(self.parent).data.tags.get("lt.champion")
        if shown == digest:
            return
        images = champion.with_backbone() if self.spec.champion == "images" else None
        if images is None or not exportable(images):
            images, digest = None, head_digest
        if shown == digest:
            return
        # Not log_model's own registration, which prints, and writes to the process's registry instead of ours.
        if not self.client.search_registered_models(f"name = '{self.card.name}'"):
            self.client.create_registered_model(self.card.name, description=champion.about)
        else:
            self.client.update_registered_model(self.card.name, champion.about)
        takes, shape = "features `[N, D]`", (champion.feature_dim,)
        head = self._version("champion-head", champion.classifier, shape, "float32", champion, head_digest, takes)
        first = head
        if images is not None:
            takes = f"images, uint8 `[N, {', '.join(map(str, images.shape))}]`"
            first = self._version("champion", images.module, images.shape, "uint8", champion, digest, takes)
        self.client.set_registered_model_alias(self.card.name, "champion-head", head)
        self.client.set_registered_model_alias(self.card.name, "champion", first)
        self.client.set_tag(self.parent, "lt.champion", digest)

    def _version(
        self, name: str, module: Any, shape: tuple[int, ...], dtype: str, champion: Champion, digest: str, takes: str
    ) -> str:
        """Log a module as a model and register it, as far as no earlier try did; the number of its version."""
        import mlflow

        mine, tags = self.parent, {"lt.champion": digest, "lt.model": name}
        for version in self.client.search_model_versions(f"name = '{self.card.name}' and run_id = '{mine}'"):
            if tags.items() <= version.tags.items():
                return str(version.version)
        previous = mlflow.get_tracking_uri()
        mlflow.set_tracking_uri(self.uri)  # which MLflow asks for the model, whatever the client's is
        try:
            logged = self._uploaded(tags) or self._upload(name, module, shape, dtype, tags)
            about = f"Takes {takes}, returns logits `[N, K]`. {champion.about}"
            version = self.client.create_model_version(
                self.card.name, logged.model_uri, mine, {**tags, **code_tags()}, None, about, model_id=logged.model_id
            )
        finally:
            mlflow.set_tracking_uri(previous)
        return str(version.version)

    def _uploaded(self, tags: Mapping[str, str]) -> Any | None:
        """The model of this run with these tags; what is left of one whose upload failed is removed."""
        same = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
        ready = None
        for model in self.client.search_logged_models([self.experiment], same):
            if model.source_run_id == self.parent and model.status == "READY":
                ready = model
            elif model.source_run_id == self.parent:
                self.client.delete_logged_model(model.model_id)
        return ready

    def _upload(self, name: str, module: Any, shape: tuple[int, ...], dtype: str, tags: Mapping[str, str]) -> Any:
        import mlflow
        import numpy as np
        import torch
        from mlflow.models import infer_signature

        # Two rows: from one MLflow would conclude that a batch always has one. Zeros: no image leaves by this way.
        example = np.zeros((2, *shape), dtype)
        with torch.no_grad():
            signature = infer_signature(example, module.eval()(torch.from_numpy(example)).numpy())
        # Not in a run that is started: a notebook may have one of its own open, or another experiment.
        params = self.client.get_run(self.parent).data.params
        made = self.client.create_logged_model(self.experiment, name, self.parent, {**tags, **code_tags()}, params)
        return mlflow.pytorch.log_model(
            module,
            model_id=made.model_id,
            run_id=self.parent,
            signature=signature,
            input_example=example,
            # A traced graph: loading a pickled module would run whatever code is in it.
            serialization_format="pt2",
            # Given, because MLflow would otherwise start a process to find out, for many seconds.
            pip_requirements=[f"torch=={torch.__version__.split('+')[0]}"],
        )


def _note(text: str) -> dict[str, Any]:
    return {NOTE: text} if text else {}


def _dataset_input(part: DatasetInfo) -> Any:
    """A part of the data as MLflow's column Dataset shows it."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    *_, rows, dim = part.shape
    features = {"type": "tensor", "tensor-spec": {"dtype": "float32", "shape": [-1, dim]}}
    labels = {"type": "tensor", "tensor-spec": {"dtype": "int64", "shape": [-1]}}
    schema = {"mlflow_tensorspec": {"features": json.dumps([features]), "targets": json.dumps([labels])}}
    profile = {
        "rows": rows,
        "views": part.shape[0],
        "classes": len(part.class_counts),
        "class_counts": part.class_counts,
    }
    source = {"tags": {"mlflow.source.name": "longtail-sweeps", "dataset": json.dumps(part.source)}}
    dataset = Dataset(
        part.name, part.digest[:16], "code", json.dumps(source), schema=json.dumps(schema), profile=json.dumps(profile)
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", part.part)])
