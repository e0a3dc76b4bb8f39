"""The runs and models of one sweep in MLflow.

Runs are found by their tags `lt.sweep_id` and `lt.key`, so that every call may be repeated after a crash: a resumed
sweep writes to its existing runs. Metrics are sent in batches of some hundred points per request.
"""

from __future__ import annotations

import functools
import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lt_train.core.clock import now_ms
from sweeps.config.interfaces import Champion, DatasetInfo, TrackedSweep, TrackedTrial
from sweeps.tracking.content import champion_digest, exported
from sweeps.tracking.mlflow.pages import EXPERIMENT_NOTE, view_tags
from sweeps.tracking.mlflow.store import open_client

if TYPE_CHECKING:
    from sweeps.tracking.mlflow import MlflowTracking

__all__ = ["MlflowTracker"]

BATCH = 900
"""Metric points per request; the server's limit is 1000."""

NOTE = "mlflow.note.content"
"""The tag that MLflow shows as the description of a run or an experiment."""

PACKAGE = "longtail-sweeps"


@dataclass(frozen=True)
class _KnownRun:
    """A run that exists in MLflow, and whether it was written completely."""

    run_id: str
    ended: bool


class MlflowTracker:
    """An open connection for one sweep; see `sweeps.config.interfaces.Tracker`."""

    def __init__(self, spec: MlflowTracking, sweep: TrackedSweep, storage: Path) -> None:
        self.spec, self.sweep = spec, sweep
        self.uri = spec.resolved_uri(storage)
        self.client = open_client(self.uri)
        self.experiment = self._experiment(storage)
        self.known = self._known_runs()
        self.parent = self._parent()

    def log_trial(self, trial: TrackedTrial) -> None:
        """See `Tracker.log_trial`."""
        run = self._log(trial, self.parent, "trial")
        if self.spec.seed_runs:
            for seed in trial.seed_trials():
                self._log(seed, run, "seed")

    def finish(self, metrics: Mapping[str, float], artifacts: Path, champion: Champion | None, note: str = "") -> None:
        """See `Tracker.finish`."""
        now = now_ms()
        loading = "" if champion is None else f"\n{_loading(self.sweep.name)}"
        shown = self.client.get_run(self.parent).data.metrics
        changed = {key: value for key, value in metrics.items() if shown.get(key) != value}  # a repeated call adds none
        self._batch(self.parent, changed, {}, {}, now, _note(note + loading))
        self.client.log_artifacts(self.parent, str(artifacts))
        if champion is not None:
            self._register(champion)
        self.client.set_terminated(self.parent, "FINISHED", now)

    def interrupted(self) -> None:
        """See `Tracker.interrupted`."""
        half_written = [run.run_id for run in self.known.values() if not run.ended and run.run_id != self.parent]
        for run_id in (*half_written, self.parent):
            self.client.set_terminated(run_id, "KILLED")

    def _experiment(self, storage: Path) -> str:
        name = self.spec.experiment or self.sweep.name
        found = self.client.get_experiment_by_name(name)
        tags = view_tags(self.sweep)
        if found is None or NOTE not in found.tags:  # do not replace a user's description
            tags[NOTE] = EXPERIMENT_NOTE
        if found is not None:
            for key, value in tags.items():
                if found.tags.get(key) != value:
                    self.client.set_experiment_tag(found.experiment_id, key, value)
            return str(found.experiment_id)
        # Without a server, MLflow would store artifacts in the working directory.
        local = self.uri.startswith("sqlite:")
        place = (storage.resolve() / "mlflow-artifacts").as_uri() if local else None
        return str(self.client.create_experiment(name, artifact_location=place, tags=tags))

    def _known_runs(self) -> dict[str, _KnownRun]:
        """Existing runs of this sweep, by `lt.key`."""
        known: dict[str, _KnownRun] = {}
        token = None
        while True:
            page = self.client.search_runs(
                [self.experiment], f"tags.`lt.sweep_id` = '{self.sweep.sweep_id}'", max_results=1000, page_token=token
            )
            known |= {
                run.data.tags["lt.key"]: _KnownRun(run.info.run_id, run.info.status in ("FINISHED", "FAILED"))
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
            run_id = self._create("sweep", self.sweep.name, "sweep", None, self.sweep.started_ms)
        # MLflow ignores points with the same value and time, and inputs that it has already.
        self._batch(run_id, {}, self.sweep.series, self.sweep.params, self.sweep.started_ms, _note(self.sweep.note))
        if self.sweep.data:
            self.client.log_inputs(run_id, [_dataset_input(part) for part in self.sweep.data])
        return run_id

    def _create(self, key: str, name: str, role: str, parent: str | None, start_ms: int) -> str:
        tags = {"lt.sweep_id": self.sweep.sweep_id, "lt.key": key, "lt.role": role, **_code_tags()}
        if parent is not None:
            tags["mlflow.parentRunId"] = parent
        run = self.client.create_run(self.experiment, start_time=start_ms, tags=tags, run_name=name)
        self.known[key] = _KnownRun(run.info.run_id, ended=False)
        return self.known[key].run_id

    def _log(self, trial: TrackedTrial, parent: str, role: str) -> str:
        found = self.known.get(trial.key)
        params = {**trial.params, **trial.logarithms, "phase": trial.phase}
        if found is not None and found.ended:
            return found.run_id
        run_id = found.run_id if found else self._create(trial.key, trial.name, role, parent, trial.finished_ms)
        tags = _note(trial.note) | ({} if trial.stopped is None else {"stopped_after_epoch": trial.stopped})
        self._batch(run_id, trial.metrics, trial.series, params, trial.finished_ms, tags)
        for name, table in trial.tables.items():
            self.client.log_text(run_id, table.to_csv(index=False), f"{name}.csv")
        self.client.set_terminated(run_id, "FAILED" if trial.failed else "FINISHED", trial.finished_ms)
        self.known[trial.key] = _KnownRun(run_id, ended=True)
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
        """Log the winner as models, register them and move the aliases to them, unless that was done before.

        The alias `champion-head` names the model from features. `champion` names the model from images if it could be
        built, else the same as `champion-head`; a later call replaces it once the model from images can be built.
        """
        head_digest, digest = champion_digest(champion, "features"), champion_digest(champion, self.spec.champion)
        logged = self.client.get_run(self.parent).data.tags.get("lt.champion")
        if logged == digest:
            return
        images = champion.with_backbone() if self.spec.champion == "images" else None
        if images is None or exported(images) is None:
            images, digest = None, head_digest
        if logged == digest:
            return
        champion = replace(champion, about=f"{champion.about}\n{_loading(self.sweep.name)}")
        # Not by log_model, which prints, and which registers in the process's registry instead of this one.
        if not self.client.search_registered_models(f"name = '{self.sweep.name}'"):
            self.client.create_registered_model(self.sweep.name, description=champion.about)
        else:
            self.client.update_registered_model(self.sweep.name, champion.about)
        takes, shape = "features `[N, D]`", (champion.feature_dim,)
        head = self._version("champion-head", champion.classifier, shape, "float32", champion, head_digest, takes)
        best = head
        if images is not None:
            takes = f"images, uint8 `[N, {', '.join(map(str, images.shape))}]`"
            best = self._version("champion", images.module, images.shape, "uint8", champion, digest, takes)
        self.client.set_registered_model_alias(self.sweep.name, "champion-head", head)
        self.client.set_registered_model_alias(self.sweep.name, "champion", best)
        self.client.set_tag(self.parent, "lt.champion", digest)

    def _version(
        self, name: str, module: Any, shape: tuple[int, ...], dtype: str, champion: Champion, digest: str, takes: str
    ) -> str:
        """Log a module as a model and register it, unless an earlier call did; returns its version number."""
        import mlflow

        tags = {"lt.champion": digest, "lt.model": name}
        for found in self.client.search_model_versions(f"name = '{self.sweep.name}' and run_id = '{self.parent}'"):
            if tags.items() <= found.tags.items():
                return str(found.version)
        previous = mlflow.get_tracking_uri()
        mlflow.set_tracking_uri(self.uri)  # MLflow looks the model up here, not at the client's URI
        try:
            logged = self._uploaded(tags) or self._upload(name, module, shape, dtype, tags)
            about = f"Takes {takes}, returns logits `[N, K]`. {champion.about}"
            created = self.client.create_model_version(
                self.sweep.name,
                logged.model_uri,
                self.parent,
                {**tags, **_code_tags()},
                None,
                about,
                model_id=logged.model_id,
            )
        finally:
            mlflow.set_tracking_uri(previous)
        return str(created.version)

    def _uploaded(self, tags: Mapping[str, str]) -> Any | None:
        """This run's model with these tags; models whose upload failed are deleted."""
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

        # Two rows: from one, MLflow infers a fixed batch size of 1. Zeros: the example contains no real image.
        example = np.zeros((2, *shape), dtype)
        with torch.no_grad():
            signature = infer_signature(example, module.eval()(torch.from_numpy(example)).numpy())
        # Without starting a run: a notebook may have a run of its own open, or another experiment set.
        params = self.client.get_run(self.parent).data.params
        model = self.client.create_logged_model(self.experiment, name, self.parent, {**tags, **_code_tags()}, params)
        return mlflow.pytorch.log_model(
            module,
            model_id=model.model_id,
            run_id=self.parent,
            signature=signature,
            input_example=example,
            # An exported graph: loading a pickled module could run any code.
            serialization_format="pt2",
            # Explicit: to infer them, MLflow would start a process that takes many seconds.
            pip_requirements=[f"torch=={torch.__version__.split('+')[0]}"],
        )


def _loading(sweep: str) -> str:
    return (
        "```python\n"
        f'model = mlflow.pyfunc.load_model("models:/{sweep}@champion")\n'
        "model.predict(inputs)  # logits [N, K]; model.metadata.signature describes the inputs\n"
        "```\n\n"
        "`@champion` takes the inputs of the dataset: images (uint8, `[N, H, W, C]`) if it has images. "
        "`@champion-head` takes features `[N, D]`.\n"
    )


def _note(text: str) -> dict[str, Any]:
    return {NOTE: text} if text else {}


def _dataset_input(part: DatasetInfo) -> Any:
    """A part of the data, for MLflow's column Dataset."""
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


@functools.cache
def _code_tags() -> dict[str, str]:
    """Tags of this package's version and, in a clone of its repository, of the commit."""
    try:
        name = f"{PACKAGE} {version(PACKAGE)}"
    except PackageNotFoundError:  # not installed, but run from its sources
        name = PACKAGE
    tags = {"mlflow.source.name": name, "mlflow.source.type": "LOCAL"}
    root = Path(__file__).parents[3]
    if (root / ".git").exists():
        command = ["git", "-C", str(root), "rev-parse", "HEAD"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return tags
        if done.returncode == 0:
            tags["mlflow.source.git.commit"] = done.stdout.strip()
    return tags
