"""Tracker `wandb`: a run per sweep and per trial in Weights & Biases, and the champion as an artifact."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from lt_train.core.errors import LongtailError, UserError, first_line
from lt_train.core.imports import require
from sweeps.config.interfaces import TRACKERS, TrackedSweep, Tracker, TrackingSpec
from sweeps.tracking.null import NullTracking

__all__ = ["WandbTracking"]

PROJECT = "longtail-sweeps"
"""The project if neither the sweep file nor the environment names one."""

NAME = r"^[^/\\#?%:]{1,128}$"
"""Names of projects and entities that W&B allows."""

LOGIN = "set WANDB_API_KEY (for a job, with --secret-file), run `wandb login`, or set tracking.mode to offline"

REFUSED = re.compile(r"error 40[13]\b")


@TRACKERS.register
class WandbTracking(TrackingSpec):
    """Weights & Biases, online or in files that `wandb sync` uploads later."""

    libraries: ClassVar[tuple[str, ...]] = ("wandb",)
    own_files: ClassVar[str] = "wandb"

    kind: Literal["wandb"] = "wandb"
    project: str | None = Field(
        default=None,
        pattern=NAME,
        description="a project: 1 to 128 characters without / \\ # ? % or a colon; null: WANDB_PROJECT, or "
        "longtail-sweeps if it is not set",
    )
    entity: str | None = Field(
        default=None,
        pattern=NAME,
        description="a user or team, named like a project; null: WANDB_ENTITY, or the default of the API key",
    )
    mode: Literal["online", "offline"] | None = Field(
        default=None,
        description="offline: write to <storage>/wandb only, for `wandb sync`; null: WANDB_MODE or `wandb offline`, "
        "else online",
    )
    seed_runs: bool = Field(default=False, description="also log a run for every seed")
    champion: Literal["images", "features"] = Field(
        default="images",
        description="models of the winner that are logged; images: one with the backbone and one of the head alone; "
        "features: only that of the head, which is small",
    )

    def prepare(self, storage: Path) -> None:
        """See `TrackingSpec.prepare`."""
        for name, value in {
            "WANDB_SILENT": "true",  # also: no prompt for an API key
            "WANDB_ERROR_REPORTING": "false",
            "WANDB_DATA_DIR": str(storage.resolve() / "wandb" / "data"),
            "WANDB_CACHE_DIR": str(storage.resolve() / "wandb" / "cache"),
        }.items():
            os.environ.setdefault(name, value)
        # Of a run or a W&B sweep that this process was started by.
        for name in ("WANDB_RUN_ID", "WANDB_RESUME", "WANDB_SWEEP_ID", "WANDB_LAUNCH"):
            os.environ.pop(name, None)

    def open(self, sweep: TrackedSweep, storage: Path) -> Tracker:
        """Create the sweep's run, or open an existing one again.

        Raises:
            UserError: wandb is not installed, there is no login, or WANDB_MODE has another value.
            LongtailError: the server cannot be reached, or refuses the login or the project.
        """
        require(*self.libraries)
        import wandb

        from sweeps.tracking.wandb.tracker import WandbTracker

        settings = wandb.setup().settings  # of the environment and of `wandb login`, `wandb offline`
        mode = self.mode or {"run": "online", "dryrun": "offline"}.get(settings.mode, settings.mode)
        if mode == "disabled":
            return NullTracking().open(sweep, storage)
        if mode not in ("online", "offline"):
            raise UserError(f"WANDB_MODE must be online, offline or disabled, got {mode}; set it or tracking.mode")
        project = self.project or settings.project or PROJECT
        target = {"mode": mode, "project": project, "entity": self.entity or settings.entity}
        try:
            return WandbTracker(self, sweep, storage.resolve(), target)
        except wandb.errors.UsageError as error:
            raise UserError(f"Weights & Biases: {first_line(error)}; {LOGIN}") from error
        except wandb.errors.CommError as error:
            refused = isinstance(error, wandb.errors.AuthenticationError) or REFUSED.search(str(error))
            problem = f"refuses the login, or access to project {project}" if refused else "cannot be reached"
            advice = f"; {LOGIN}" if refused else ""
            raise LongtailError(f"{settings.base_url} {problem} ({first_line(error)}){advice}") from error
