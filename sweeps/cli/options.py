"""The root command of `lt-sweep`, and options that several of its commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lt_train.cli.program import Program, group
from sweeps.experiment.signals import interrupt

_ORDER = (
    *("demo", "validate", "plan", "run", "resume", "status", "stop"),
    *("table", "report", "compare", "export", "predict", "ui", "kinds", "schema", "submit", "list", "logs"),
)
"""The commands: running sweeps, their results, reference, clusters."""


class LtSweep(Program):
    """The root command of `lt-sweep`."""

    interrupted = "interrupted; finished runs are kept, and the same command continues"
    on_sigterm = staticmethod(interrupt)

    def list_commands(self, ctx: Any) -> list[str]:
        """The commands in the order in which a newcomer needs them."""
        return sorted(super().list_commands(ctx), key=_ORDER.index)


app = group(LtSweep, "Run hyperparameter sweeps over classifier re-training for long-tailed recognition.")

Spec = Annotated[Path, typer.Argument(metavar="SPEC", help="Sweep file, or the name of a bundled one such as demo.")]
Specs = Annotated[
    list[Path], typer.Argument(metavar="SPEC", help="Sweep files, or names of bundled ones such as demo.")
]
Results = Annotated[
    list[Path],
    typer.Argument(metavar="RUN", help="Directories of sweeps or of a matrix."),
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Start over. Earlier results are moved to NAME.previous-N.")]
Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="URL",
        help="Job API of a Ray cluster, such as http://127.0.0.1:8265. Default: RAY_API_SERVER_ADDRESS.",
    ),
]
Target = Annotated[
    str,
    typer.Argument(
        metavar="TARGET", help="Directory of a sweep or a matrix; with --address, the name of a sweep or id of a job."
    ),
]
Env = Annotated[
    list[str] | None,
    typer.Option(
        "--env",
        metavar="NAME=VALUE",
        help="Set an environment variable of the job. Everyone who can list jobs can read it. May be repeated.",
    ),
]
SecretFile = Annotated[
    list[str] | None,
    typer.Option(
        "--secret-file",
        metavar="NAME=/PATH",
        help="Set NAME to the content of this file on the cluster. Only the path is sent. May be repeated.",
    ),
]
ShipCode = Annotated[
    bool, typer.Option("--ship-code", help="Upload lt_train and sweeps of this machine instead of using the cluster's.")
]
Image = Annotated[
    str | None,
    typer.Option(
        "--image",
        metavar="URI",
        help="Container image, with this project installed, for driver and workers. Podman runs it; the storage "
        "directory must be mounted into it.",
    ),
]
Cpus = Annotated[
    float | None, typer.Option("--cpus", metavar="N", help="CPUs of the driver. Default: 0, on the head node.")
]
Gpus = Annotated[
    float | None, typer.Option("--gpus", metavar="N", help="GPUs of the driver, for stage 1 and feature extraction.")
]
