"""`lt-sweep`: hyperparameter sweeps from the command line.

The commands are in `sweeps.cli.local` (files, and sweeps on this machine), `sweeps.cli.export` (their classifiers) and
`sweeps.cli.jobs` (running sweeps, here or on a cluster). They import what they need when they run, so that `--help`
imports neither torch nor Ray.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lt_train.cli.program import Version, run_program
from lt_train.cli.program import parse as parse_words
from sweeps.cli import export, jobs, local  # noqa: F401 (importing registers the commands)
from sweeps.cli.options import app


@app.callback()
def _prepare(version: Version = False) -> None:
    """Unpack what a cluster job carries in its environment: secrets in files, and small local files."""
    from sweeps.cluster.environment import load_secret_files, unpack_inline_files

    load_secret_files()
    unpack_inline_files()


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    return run_program(app, "lt-sweep", argv)


def parse(argv: Sequence[str]) -> dict[str, Any]:
    """The parameters that a command line gives to its command, which is not run.

    Raises:
        ValueError: the command line is invalid; the message is what `lt-sweep` prints.
    """
    return parse_words(app, "lt-sweep", argv)
