"""Hyperparameter sweeps over classifier re-training for long-tailed recognition.

`load` reads a sweep file, `run` runs it, `resume` continues an interrupted sweep, `compare` compares several, `report`
writes a report. `load_matrix`, `run_matrix` and `resume_matrix` do the same for a file with several sweeps. Callbacks
receive the events of a sweep, such as `TrialFinished`. Names are imported on first use, so that `import sweeps` does
not import torch.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from lt_train.core.imports import lazy_exports

if TYPE_CHECKING:
    from sweeps.analysis.comparison import SweepComparison, compare
    from sweeps.analysis.matrix_table import MatrixTable, matrix_table
    from sweeps.analysis.result import Result
    from sweeps.config.matrix import SweepMatrix, load_matrix
    from sweeps.config.spec import SweepSpec
    from sweeps.config.spec import load_sweep as load
    from sweeps.experiment.events import (
        Callback,
        Event,
        PackFailed,
        PackStarted,
        PhaseFinished,
        Preparing,
        RunFinished,
        SweepFinished,
        SweepStarted,
        SweepStopped,
        TrialFinished,
    )
    from sweeps.experiment.runner import resume, resume_matrix, run, run_matrix
    from sweeps.reporting.write import write_report as report

    __version__: str

__all__ = [
    "Callback",
    "Event",
    "MatrixTable",
    "PackFailed",
    "PackStarted",
    "PhaseFinished",
    "Preparing",
    "Result",
    "RunFinished",
    "SweepComparison",
    "SweepFinished",
    "SweepMatrix",
    "SweepSpec",
    "SweepStarted",
    "SweepStopped",
    "TrialFinished",
    "__version__",
    "compare",
    "load",
    "load_matrix",
    "matrix_table",
    "report",
    "resume",
    "resume_matrix",
    "run",
    "run_matrix",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "SweepComparison": "sweeps.analysis.comparison",
        "MatrixTable": "sweeps.analysis.matrix_table",
        "Result": "sweeps.analysis.result",
        "SweepMatrix": "sweeps.config.matrix",
        "SweepSpec": "sweeps.config.spec",
        "Callback": "sweeps.experiment.events",
        "Event": "sweeps.experiment.events",
        "PackFailed": "sweeps.experiment.events",
        "PackStarted": "sweeps.experiment.events",
        "PhaseFinished": "sweeps.experiment.events",
        "Preparing": "sweeps.experiment.events",
        "RunFinished": "sweeps.experiment.events",
        "SweepFinished": "sweeps.experiment.events",
        "SweepStarted": "sweeps.experiment.events",
        "SweepStopped": "sweeps.experiment.events",
        "TrialFinished": "sweeps.experiment.events",
        "compare": "sweeps.analysis.comparison",
        "load": "sweeps.config.spec",
        "load_matrix": "sweeps.config.matrix",
        "matrix_table": "sweeps.analysis.matrix_table",
        "report": "sweeps.reporting.write",
        "resume": "sweeps.experiment.runner",
        "resume_matrix": "sweeps.experiment.runner",
        "run": "sweeps.experiment.runner",
        "run_matrix": "sweeps.experiment.runner",
    },
    renamed={"load": "load_sweep", "report": "write_report"},
)

logging.getLogger(__name__).addHandler(logging.NullHandler())


def __dir__() -> list[str]:
    return sorted(__all__)
