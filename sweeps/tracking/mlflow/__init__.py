"""Tracker `mlflow`: a parent run per sweep with a child run per trial, and the champion in the model registry."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from lt_train.core.errors import LongtailError
from lt_train.core.imports import require
from lt_train.core.registry import PATH
from sweeps.cluster.environment import holds_credentials
from sweeps.config.interfaces import TRACKERS, TrackedSweep, Tracker, TrackingSpec

__all__ = ["MlflowTracking"]


def _without_password(uri: str | None) -> str | None:
    if uri is not None and holds_credentials(uri):  # a message with "got" is shown without the value
        raise ValueError(
            "must not contain a password or token, got a URI with one; sweep files are copied into results, so set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead (for a database the variables of its "
            "client, such as PGPASSWORD), or submit with --secret-file"
        )
    return uri


@TRACKERS.register
class MlflowTracking(TrackingSpec):
    """MLflow, on a local SQLite store (default) or on a tracking server."""

    libraries: ClassVar[tuple[str, ...]] = ("mlflow",)
    own_files: ClassVar[str] = "mlflow"

    kind: Literal["mlflow"] = "mlflow"
    uri: Annotated[str | None, PATH, AfterValidator(_without_password)] = Field(
        default=None,
        pattern=r"^(sqlite:///|https?://|postgresql(\+\w+)?://|mysql(\+\w+)?://|mssql(\+\w+)?://|databricks)",
        description="tracking URI: sqlite:///FILE, http(s)://HOST, postgresql://...; null: sqlite:///<storage>/mlflow.db",
    )
    experiment: str | None = Field(default=None, description="experiment; null: the sweep's name")
    seed_runs: bool = Field(default=False, description="also log a run for every seed")
    champion: Literal["images", "features"] = Field(
        default="images",
        description="models of the winner that are logged; images: one with the backbone and one of the head alone; "
        "features: only that of the head, which is small",
    )

    def resolved_uri(self, storage: Path) -> str:
        """The tracking URI, with its default."""
        return self.uri or f"sqlite:///{storage / 'mlflow.db'}"

    def submission_problem(self) -> str:
        """A job has no working directory of its own."""
        uri = self.uri or ""
        if not uri.startswith("sqlite:///") or uri.startswith("sqlite:////"):
            return ""
        return (
            f"tracking.uri must not be a relative path for a submitted sweep, got {uri}; give the http:// address of a "
            "tracking server, or sqlite:////absolute/path on the cluster"
        )

    def for_sweep(self, name: str) -> MlflowTracking:
        """The same tracker, with the sweep's name as its experiment if none is given."""
        return self if self.experiment else self.model_copy(update={"experiment": name})

    def prepare(self, storage: Path) -> None:
        """See `TrackingSpec.prepare`."""
        from sweeps.tracking.mlflow.store import set_environment

        set_environment()

    def open(self, sweep: TrackedSweep, storage: Path) -> Tracker:
        """Create the sweep's parent run, or open an existing one again.

        Raises:
            UserError: MLflow is not installed.
            LongtailError: the server refuses the login or its access to the experiment.
        """
        require(*self.libraries)
        from mlflow.exceptions import MlflowException

        from sweeps.tracking.mlflow.tracker import MlflowTracker

        try:
            return MlflowTracker(self, sweep, storage)
        except MlflowException as error:
            if error.get_http_status_code() not in (401, 403):
                raise
            raise LongtailError(self._access_error(error.get_http_status_code(), sweep)) from error

    def serve(self, sweep: str, storage: Path, port: int) -> int:
        """Run MLflow's pages of a sweep; see `pages.serve`."""
        require(*self.libraries)
        from sweeps.tracking.mlflow.pages import serve

        return serve(self.resolved_uri(storage), self.experiment or sweep, sweep, port)

    def _access_error(self, status: int, sweep: TrackedSweep) -> str:
        user = os.environ.get("MLFLOW_TRACKING_USERNAME")
        if status == 403:
            experiment = self.experiment or sweep.name
            return (
                f"{self.uri} does not allow user {user} to write to experiment {experiment!r}; set tracking.experiment "
                "to another"
            )
        problem = "requires a login" if user is None else f"refuses the password of user {user}"
        return (
            f"{self.uri} {problem}; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (for a job, with --env "
            "and --secret-file)"
        )
