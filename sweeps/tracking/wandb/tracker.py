"""The runs and artifacts of one sweep in Weights & Biases.

The id of a run follows from the sweep's id and the run's key, so a repeated call writes to the same run. W&B ignores
history at steps that a run has already, and stores equal artifacts once.

wandb writes every run to a directory of its own, `<storage>/wandb/<mode>-<time>-<id>`, also online. Once a run is
written completely, that directory receives the file `longtail-sweeps.json`, and directories of earlier attempts at the
same run are removed. A run that has such a directory is not written again. Offline, wandb's process may write the last
records a moment later; it outlives a killed driver for that long.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lt_train.core.io import atomic_directory, parse_json, remove
from sweeps.analysis.image_classifier import exported_graph
from sweeps.config.interfaces import Champion, TrackedSweep, TrackedTrial
from sweeps.tracking.content import champion_digest, exported

if TYPE_CHECKING:
    import pandas as pd

    from sweeps.tracking.wandb import WandbTracking

__all__ = ["WandbTracker", "run_id"]

COMPLETE = "longtail-sweeps.json"
"""File that marks the directory of a completely written run; it names the project that the run was written to."""

TIMEOUT = 20.0
"""Seconds that wandb waits for the server when a run starts, and for uploads when it ends."""

NAME_LENGTH = 128
"""W&B's limit for names of runs."""

_open_parents: dict[str, Any] = {}
"""Runs of sweeps that are open in this process, by id. `BackgroundTracker` drops a tracker after a failed call; the one
that it opens next has to finish the run first, because wandb does not open a run twice.
"""


def run_id(sweep: TrackedSweep, key: str) -> str:
    """The id of a run: 32 hex digits."""
    return hashlib.sha256(f"{sweep.sweep_id} {key}".encode()).hexdigest()[:32]


class WandbTracker:
    """An open connection for one sweep; see `sweeps.config.interfaces.Tracker`.

    Args:
        spec: the tracker's fields.
        sweep: the sweep.
        storage: absolute path of the storage.
        target: `mode`, `project` and `entity`; an entity of None is the default of the API key.
    """

    def __init__(self, spec: WandbTracking, sweep: TrackedSweep, storage: Path, target: Mapping[str, Any]) -> None:
        self.spec, self.sweep, self.target = spec, sweep, dict(target)
        self.files = storage / "wandb"
        self.complete = self._complete_runs()
        self.parent_id = run_id(sweep, "sweep")
        self.parent = self._open_parent()

    def log_trial(self, trial: TrackedTrial) -> None:
        """See `Tracker.log_trial`."""
        self._write(trial, trial.phase)
        if self.spec.seed_runs:
            for seed in trial.seed_trials():
                self._write(seed, "seed", {"trial": trial.key})

    def finish(self, metrics: Mapping[str, float], artifacts: Path, champion: Champion | None, note: str = "") -> None:
        """See `Tracker.finish`. A call after the end opens the sweep's run again, as a resume does."""
        if not self._parent_is_open():
            self.parent = self._open_parent()
        self.parent.summary.update(dict(metrics))
        self.parent.notes = note
        if champion is not None:
            files = self._models(champion)
            self._upload("champion", "model", files, champion.about, ["champion"])
        self._upload("result", "result", artifacts, "Tables, figures, the sweep file and result.json.", [])
        self._end(self.parent, 0)
        self._mark_complete(self.parent)

    def interrupted(self) -> None:
        """See `Tracker.interrupted`."""
        if self._parent_is_open():
            self.parent.mark_preempting()
            self._end(self.parent, 1)

    def _open_parent(self) -> Any:
        """The sweep's run, created or opened again, with what is known when a sweep starts."""
        if self.parent_id in _open_parents:
            with contextlib.suppress(Exception):  # it failed before
                _open_parents.pop(self.parent_id).finish(exit_code=1)
        data = {part.part: asdict(part) for part in self.sweep.data}
        config = dict(self.sweep.params) | ({"data": data} if data else {})
        parent = self._start(self.parent_id, self.sweep.name, "sweep", config, self.sweep.note)
        _open_parents[self.parent_id] = parent
        _log(parent, self.sweep.series)
        return parent

    def _parent_is_open(self) -> bool:
        return _open_parents.get(self.parent_id) is self.parent

    def _start(self, run: str, name: str, job_type: str, config: Mapping[str, Any], note: str) -> Any:
        import wandb

        settings = wandb.Settings(
            root_dir=str(self.files.parent),
            program="longtail-sweeps",
            reinit="create_new",  # the runs of a sweep are open beside each other, and beside runs of the user
            console="off",
            silent=True,
            symlink=False,
            disable_code=True,
            save_code=False,
            disable_git=True,
            disable_job_creation=True,
            label_disable=True,
            x_disable_meta=True,
            host="",  # else part of offline files, from which `wandb sync` sends it
            x_disable_machine_info=True,
            x_disable_stats=True,
            x_save_requirements=False,
            init_timeout=TIMEOUT,
            finish_timeout=TIMEOUT,
            finish_timeout_raises=True,
        )
        try:
            return wandb.init(
                **self.target,
                id=run,
                resume="allow" if self.target["mode"] == "online" else None,
                name=name[:NAME_LENGTH],
                group=f"{self.sweep.name}-{self.sweep.sweep_id[:8]}",
                job_type=job_type,
                config=dict(config),
                notes=note or None,
                settings=settings,
            )
        except Exception:
            _reset()
            raise

    def _write(self, trial: TrackedTrial, job_type: str, more: Mapping[str, Any] | None = None) -> None:
        """Write a run, unless that was done before."""
        run_key = run_id(self.sweep, trial.key)
        if run_key in self.complete:
            return
        config = {**trial.params, "phase": trial.phase, "key": trial.key, **(more or {})}
        with self._finishing(self._start(run_key, trial.name, job_type, config, trial.note)) as run:
            _log(run, trial.series, trial.tables)
            stopped = {} if trial.stopped is None else {"stopped_after_epoch": trial.stopped}
            run.summary.update({**trial.metrics, **stopped})
            self._end(run, int(trial.failed))
        self._mark_complete(run)

    @contextlib.contextmanager
    def _finishing(self, run: Any) -> Iterator[Any]:
        """Finish the run if the block fails, so that it can be opened again."""
        try:
            yield run
        except BaseException:
            with contextlib.suppress(Exception):
                run.finish(exit_code=1)
            raise

    def _end(self, run: Any, exit_code: int) -> None:
        """Finish a run; returns when everything is uploaded.

        Raises:
            TimeoutError: not everything could be uploaded.
        """
        _open_parents.pop(run.id, None)
        run.finish(exit_code=exit_code)

    def _directories(self, run: str = "*") -> list[Path]:
        """The directories of a run, or of all runs, in no particular order: names do not sort by time."""
        return [file.parent for file in self.files.glob(f"*run-*/run-{run}.wandb")]

    def _complete_runs(self) -> set[str]:
        """Ids of the runs that were written completely to this project."""
        found = set()
        for directory in self._directories():
            with contextlib.suppress(OSError, ValueError):
                if parse_json((directory / COMPLETE).read_bytes()) == self.target:
                    found |= {file.stem.removeprefix("run-") for file in directory.glob("run-*.wandb")}
        return found

    def _mark_complete(self, run: Any) -> None:
        directory = Path(run.dir).parent
        (directory / COMPLETE).write_text(json.dumps(self.target))
        self.complete.add(run.id)
        for one in self._directories(run.id):
            if one != directory:
                remove(one)

    def _models(self, champion: Champion) -> Path:
        """A directory with the models, `head.pt2` and, if it can be exported, `images.pt2`.

        It is kept: two exports of the same model differ in some bytes, which W&B would store as two versions.
        """
        import torch

        images = champion.with_backbone() if self.spec.champion == "images" else None
        graph = None if images is None else exported(images)
        directory = self.files / "champions" / champion_digest(champion, "features" if graph is None else "images")
        if not directory.exists():
            features = torch.randn(3, champion.feature_dim, generator=torch.Generator().manual_seed(0))
            head = exported_graph(champion.classifier.eval(), torch.zeros(2, champion.feature_dim), features)
            directory.parent.mkdir(parents=True, exist_ok=True)
            with atomic_directory(directory) as temporary:
                torch.export.save(head, temporary / "head.pt2")
                if graph is not None:
                    torch.export.save(graph, temporary / "images.pt2")
        return directory

    def _upload(self, name: str, type: str, directory: Path, about: str, aliases: list[str]) -> None:
        import wandb

        artifact = wandb.Artifact(f"{self.sweep.name}-{name}", type, about)
        for file in sorted(path for path in directory.rglob("*") if path.is_file()):  # not by add_dir, which prints
            artifact.add_file(str(file), name=str(file.relative_to(directory)), skip_cache=True)
        logged = self.parent.log_artifact(artifact, aliases=["latest", *aliases])
        if self.target["mode"] == "online":
            logged.wait(timeout=max(TIMEOUT, self.spec.flush_timeout))


def _reset() -> None:
    """Stop wandb's process, which would refuse to start a run again whose start failed, unless the user has a run.

    It waits for open runs, at most `TIMEOUT`.
    """
    import wandb

    if wandb.run is None:
        _open_parents.clear()
        with contextlib.suppress(Exception, SystemExit):  # SystemExit: the process ended with an error
            wandb.teardown(exit_code=1)


def _log(
    run: Any, series: Mapping[str, list[tuple[int, float]]], tables: Mapping[str, pd.DataFrame] | None = None
) -> None:
    """Log series as history, one row per step, and tables in the last row."""
    import wandb

    rows: dict[int, dict[str, Any]] = {}
    for key, points in series.items():
        run.define_metric(key, summary="none")  # the summary holds the metrics of the sweep instead
        for step, value in points:
            rows.setdefault(step, {})[key] = value
    for name, table in (tables or {}).items():
        rows.setdefault(max(rows, default=0), {})[name] = wandb.Table(dataframe=table)
    for step, row in sorted(rows.items()):
        run.log(row, step=step)
