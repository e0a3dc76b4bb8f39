"""`open_sweep`: a sweep or a matrix on disk, for scripts and notebooks."""

from __future__ import annotations

import functools
import html
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import pandas as pd

from lt_train.core.errors import UserError
from sweeps.analysis.comparison import SweepComparison, compare
from sweeps.analysis.frames import classes_frame, curves_frame, runs_frame, trials_frame
from sweeps.analysis.labels import trial_label
from sweeps.analysis.load import Sweep as Snapshot
from sweeps.analysis.load import TrialRuns, read_sweep
from sweeps.analysis.matrix_table import MatrixTable, matrix_table
from sweeps.analysis.result import Accuracies, Result
from sweeps.analysis.summary import summarise
from sweeps.api.plots import Plots
from sweeps.api.study import to_optuna
from sweeps.config.matrix import SweepMatrix
from sweeps.config.spec import SweepSpec
from sweeps.experiment.runner import Sweepable, to_spec
from sweeps.reporting.export import export_model, predict, trained_head, trial_named, winner_state_dict
from sweeps.reporting.write import report as write_report
from sweeps.store.directory import load_matrix_directory
from sweeps.store.layout import is_matrix, is_sweep, leases
from sweeps.store.lease import lease_owner

if TYPE_CHECKING:
    from optuna.storages import BaseStorage
    from optuna.study import Study
    from torch import Tensor, nn

    from lt_train.methods.base import MethodSpec, TrainingSpec

__all__ = ["OpenMatrix", "OpenSweep", "Winner", "open_sweep"]


@overload
def open_sweep(sweep: SweepSpec | Mapping[str, Any]) -> OpenSweep: ...
@overload
def open_sweep(sweep: SweepMatrix) -> OpenMatrix: ...
@overload
def open_sweep(sweep: str | os.PathLike[str]) -> OpenSweep | Any: ...  # type checkers cannot know what a path holds
def open_sweep(sweep: Sweepable) -> OpenSweep | OpenMatrix:
    """Open a sweep that is finished, running or interrupted. Nothing is trained, and a running sweep is not disturbed.

    Args:
        sweep: its directory, its sweep file, the name of a bundled file such as `demo`, its spec, or a mapping in the
            form of a sweep file.

    Returns:
        The sweep as it is now; for a matrix, an `OpenMatrix` of the sweeps that were started.

    Raises:
        UserError: there is no such sweep, or it was not started.
        LongtailError: its ledger is damaged; the message names the lines.
    """
    if isinstance(sweep, str | os.PathLike):
        path = Path(sweep).expanduser()
        if is_matrix(path):
            return _open_matrix(load_matrix_directory(path))
        if path.is_dir() or (path.suffix not in (".yaml", ".yml") and (path.name != str(path) or path.exists())):
            return _open(path)
    spec = to_spec(sweep).with_absolute_paths(Path.cwd())
    if isinstance(spec, SweepMatrix):
        return _open_matrix(spec)
    path = Path(spec.storage) / spec.name
    if not is_sweep(path):
        raise UserError(f"{path} does not exist: the sweep {spec.name} was not started; start it with sweeps.run")
    return _open(path)


def _open(path: Path) -> OpenSweep:
    place = path.parent if path.name == "result.json" else path
    # Before the ledger is read: a driver that ends meanwhile leaves a finished sweep.
    has_driver = lease_owner(leases(place.parent), place.name) is not None
    return OpenSweep(read_sweep(path), has_driver=has_driver)


class OpenSweep:
    """A sweep on disk as it was when it was opened; `refresh` reads it again.

    It may be given wherever the path of a sweep is expected. DataFrames are computed once and are yours to change: each
    access returns a copy.
    """

    def __init__(self, snapshot: Snapshot, *, has_driver: bool) -> None:
        self._snapshot, self._has_driver = snapshot, has_driver

    @property
    def path(self) -> Path:
        """Its directory."""
        return self._snapshot.path

    @property
    def name(self) -> str:
        """Its name."""
        return self.spec.name

    @property
    def spec(self) -> SweepSpec:
        """Its specification, with every default written out."""
        return self._snapshot.spec

    @property
    def state(self) -> Literal["finished", "running", "interrupted"]:
        """`finished` if every run is recorded, `running` while a driver works on it, otherwise `interrupted`."""
        if self._snapshot.state == "finished":
            return "finished"
        return "running" if self._has_driver else "interrupted"

    @functools.cached_property
    def result(self) -> Result:
        """The result as a typed document, that of `result.json`; of an unfinished sweep, the results so far."""
        return summarise(self._snapshot)

    @property
    def trials(self) -> pd.DataFrame:
        """One row per trial of all phases; columns as in `sweeps.analysis.frames.trials_frame`."""
        return self._trials.copy()

    @functools.cached_property
    def _trials(self) -> pd.DataFrame:
        return trials_frame(self._snapshot)

    @property
    def runs(self) -> pd.DataFrame:
        """One row per run, a trial with one seed; columns as in `sweeps.analysis.frames.runs_frame`."""
        return self._runs.copy()

    @functools.cached_property
    def _runs(self) -> pd.DataFrame:
        return runs_frame(self._snapshot)

    @property
    def per_class(self) -> pd.DataFrame:
        """One row per class of the best trial of each method and of each baseline, means over seeds on test.

        Columns as in `sweeps.analysis.frames.classes_frame`.
        """
        return self._per_class.copy()

    @functools.cached_property
    def _per_class(self) -> pd.DataFrame:
        return classes_frame(self._snapshot, [*self._snapshot.methods, *self._snapshot.finished_baselines.values()])

    def curves(self, trial: str | None = None) -> pd.DataFrame:
        """Loss and accuracies after every epoch of each run of a trial.

        Args:
            trial: its name, as in the column `trial` of `trials`; None for the winner.

        Returns:
            Columns `seed`, `epoch` (from 1), `loss`, `acc_all`, ... and, with a validation set, `val_acc_all`, ...

        Raises:
            UserError: there is no such trial, or it failed.
        """
        return curves_frame(self._trial(trial))

    def _trial(self, name: str | None) -> TrialRuns:
        found = self._snapshot.winner if name is None else trial_named(self._snapshot, name)
        if found is None:
            raise UserError(f"{self.path} has no complete trial")
        if found.failed:
            raise UserError(f"trial {found.trial.name} failed: {found.failure}")
        return found

    @property
    def winner(self) -> Winner | None:
        """The selected trial; of an unfinished sweep, the best so far. None if no trial is complete."""
        return None if self._snapshot.winner is None else Winner(self._snapshot, self._snapshot.winner)

    @property
    def plot(self) -> Plots:
        """Plots of the sweep as matplotlib figures."""
        return Plots(self._snapshot)

    def compare(self, *others: str | os.PathLike[str]) -> SweepComparison:
        """Compare other sweeps with this one; see `sweeps.compare`.

        Args:
            others: open sweeps, or directories.
        """
        return compare(self, *others)

    def report(self, out: str | os.PathLike[str] | None = None) -> Path:
        """Write the HTML report and return its page; see `sweeps.report`."""
        return write_report(self, out=out)

    def to_optuna(self, method: str | None = None, storage: str | BaseStorage | None = None) -> Study:
        """All trials of the search of one method as an Optuna study, for `optuna.visualization` and optuna-dashboard.

        Values are objectives to maximise, as fractions of 1. Failed and early stopped trials have the states FAIL and
        PRUNED; accuracies, seeds and the reason of a failure are user attributes; accuracies after each epoch, means
        over seeds, are intermediate values.

        Args:
            method: its name, as in the column `method` of `trials`; may be left out if the sweep searches one method.
            storage: where the study is created, as for `optuna.create_study`; None for memory. optuna-dashboard needs
                one, for example `sqlite:///study.db`.

        Raises:
            UserError: the method is unknown, or the sweep searches several and none is given; or the storage has a
                study of this name.
        """
        return to_optuna(self._snapshot, method, storage)

    def refresh(self) -> OpenSweep:
        """The sweep as it is now."""
        return _open(self.path)

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        tried, winner = len(self._snapshot.searched), self._snapshot.winner
        best = "no complete trial" if winner is None else f"best: {trial_label(winner)}"
        return f"<Sweep {self.name}: {self.state}, {tried} of {self._snapshot.planned_trials} trials, {best}>"

    def _repr_html_(self) -> str:
        table = self.result.to_frame()
        shown = table[[name for name in table.columns if not name.endswith(("_low", "_high"))]]
        rows = shown.to_html(index=False, na_rep="", float_format="{:.4g}".format)
        return f"<p>{html.escape(repr(self)[1:-1])}</p>{rows}"


class Winner:
    """The selected trial of a sweep, with the head of its best seed."""

    def __init__(self, snapshot: Snapshot, trial: TrialRuns) -> None:
        self._snapshot, self._trial = snapshot, trial

    @property
    def trial(self) -> str:
        """Its name, as in the column `trial` of `OpenSweep.trials`."""
        return self._trial.trial.name

    @property
    def method(self) -> MethodSpec:
        """The method with its searched values."""
        return self._trial.trial.method

    @property
    def training(self) -> TrainingSpec:
        """The training with its searched values."""
        return self._trial.trial.training

    @property
    def params(self) -> Mapping[str, Any]:
        """The searched values by dotted path."""
        return dict(self._trial.trial.params)

    @property
    def seed(self) -> int:
        """The seed whose head is kept: the best by the selection metric."""
        return self._snapshot.best_seed(self._trial).seed

    @property
    def accuracy(self) -> Accuracies:
        """Accuracies on test, means over seeds with their 95% intervals, as fractions of 1."""
        return Accuracies.of(self._trial.values, self._trial.scores)

    def classifier(self) -> nn.Module:
        """The trained classifier: a torch module from features `[..., D]` to logits `[..., K]`.

        Raises:
            LongtailError: the head is missing or damaged; the message names its file.
        """
        return trained_head(self._snapshot, self._trial).classifier

    def state_dict(self) -> dict[str, Tensor]:
        """The weights of the whole model with this head, for `load_state_dict` of your own module.

        The names are those of the model that the backbone's factory creates; see docs/export.md.

        Raises:
            UserError: the head is not linear, or the model's classifier cannot hold it.
            LongtailError: the head or the checkpoint of the backbone is missing or damaged.
        """
        return winner_state_dict(self._snapshot, self._trial)

    def export(
        self,
        format: str,
        out: str | os.PathLike[str] | None = None,
        *,
        force: bool = False,
    ) -> Path:
        """Write the trained classifier with a model card beside it, and return its file.

        Args:
            format: `state_dict`, `safetensors`, `pt2` or `onnx`.
            out: directory to write to; None: `export/<format>` in the sweep's directory.
            force: replace an earlier export.

        Raises:
            UserError: unknown format, the directory is not empty, or the format cannot hold the head.
            LongtailError: the head or the checkpoint of the backbone is missing or damaged.
        """
        place = None if out is None else Path(out)
        return export_model(self._snapshot, place, format=format, trial=self._trial, force=force)

    def predict(self, folder: str | os.PathLike[str], *, top: int | None = None) -> pd.DataFrame:
        """Classes and probabilities of the images of a folder, one row per image, in the order of their paths.

        Args:
            folder: is searched with its subfolders.
            top: show the best classes only, with their probabilities; None: a column per class.

        Raises:
            UserError: the sweep has no backbone, or the folder has no images.
            DataError: an image cannot be read, and the dataset does not skip such images.
        """
        return predict(self._snapshot, Path(folder), trial=self._trial, top=top)

    def __repr__(self) -> str:
        values = ", ".join(f"{path}={value!r}" for path, value in self.params.items())
        return f"<Winner {self.trial}, seed {self.seed}: {values}>"


class OpenMatrix:
    """The sweeps of a matrix on disk, as they were when the matrix was opened.

    Attributes:
        spec: the matrix.
        sweeps: the sweeps that were started, by the name of their value.
    """

    def __init__(self, spec: SweepMatrix, sweeps: Mapping[str, OpenSweep]) -> None:
        self.spec, self.sweeps = spec, dict(sweeps)

    @property
    def name(self) -> str:
        """Its name."""
        return self.spec.name

    @property
    def path(self) -> Path:
        """Its directory."""
        return Path(self.spec.storage) / self.name

    @functools.cached_property
    def table(self) -> MatrixTable:
        """The results side by side; a sweep without one has a row with the reason."""
        return matrix_table(self.spec)

    @property
    def trials(self) -> pd.DataFrame:
        """The trials of all sweeps; the first column `value` is that of the matrix. See `OpenSweep.trials`."""
        return self._together({value: sweep.trials for value, sweep in self.sweeps.items()})

    @property
    def runs(self) -> pd.DataFrame:
        """The runs of all sweeps; the first column `value` is that of the matrix. See `OpenSweep.runs`."""
        return self._together({value: sweep.runs for value, sweep in self.sweeps.items()})

    @property
    def per_class(self) -> pd.DataFrame:
        """The classes of all sweeps; the first column `value` is that of the matrix. See `OpenSweep.per_class`."""
        return self._together({value: sweep.per_class for value, sweep in self.sweeps.items()})

    def compare(self) -> SweepComparison:
        """Compare the sweeps with the first of them; see `sweeps.compare`."""
        return compare(self)

    def refresh(self) -> OpenMatrix:
        """The sweeps as they are now."""
        return _open_matrix(self.spec)

    def report(self, out: str | os.PathLike[str] | None = None) -> Path:
        """Write the HTML report of all sweeps and return its page; see `sweeps.report`."""
        return write_report(self, out=out)

    def _together(self, frames: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
        return pd.concat(frames, names=["value"]).reset_index(level=0).reset_index(drop=True)

    def __getitem__(self, value: str) -> OpenSweep:
        if value not in self.sweeps:
            raise UserError(f"value must be one of {', '.join(self.sweeps)}, which were started, got {value!r}")
        return self.sweeps[value]

    def __fspath__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        states = ", ".join(
            f"{value}: {self.sweeps[value].state if value in self.sweeps else 'not started'}"
            for value in self.spec.members
        )
        return f"<Matrix {self.name} by {self.spec.axis}: {states}>"


def _open_matrix(matrix: SweepMatrix) -> OpenMatrix:
    paths = {value: Path(spec.storage) / spec.name for value, spec in matrix.members.items()}
    found = {value: _open(path) for value, path in paths.items() if is_sweep(path)}
    if not found:
        raise UserError(f"no sweep of the matrix {matrix.name} was started; start them with sweeps.run")
    return OpenMatrix(matrix, found)
