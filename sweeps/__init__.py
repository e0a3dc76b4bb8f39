"""Hyperparameter sweeps over classifier re-training for long-tailed recognition.

    result = sweeps.run("mine.yaml")          # or a SweepSpec, or a dict in the form of the file
    sweep = sweeps.open_sweep("runs/mine")    # finished, running or interrupted
    sweep.trials, sweep.winner, sweep.plot.smooth_factor()

    load_sweep, SweepSpec     one sweep, from a file or built in Python
    load_matrix, SweepMatrix  several sweeps in one file
    validate, plan            problems of a sweep file; trials, memory and time, without training
    run, resume               run a sweep or matrix; return Result or MatrixTable
    Callback                  receives the events Preparing, SweepStarted, PackStarted, PackFailed, RunFinished,
                              TrialFinished, PhaseFinished, SweepFinished, SweepStopped
    open_sweep                tables, plots and the winner: OpenSweep; of a matrix: OpenMatrix
    compare, report           several sweeps as SweepComparison; the HTML report

Names are imported on first use. `sweeps.testing` checks search algorithms, trackers and backends of your own;
`lt_train` trains single classifiers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lt_train.core.imports import lazy_exports

if TYPE_CHECKING:
    __version__: str
    from sweeps.analysis.comparison import SweepComparison as SweepComparison
    from sweeps.analysis.comparison import compare as compare
    from sweeps.analysis.matrix_table import MatrixTable as MatrixTable
    from sweeps.analysis.result import Plan as Plan
    from sweeps.analysis.result import Result as Result
    from sweeps.api.before import plan as plan
    from sweeps.api.before import validate as validate
    from sweeps.api.sweep import OpenMatrix as OpenMatrix
    from sweeps.api.sweep import OpenSweep as OpenSweep
    from sweeps.api.sweep import open_sweep as open_sweep
    from sweeps.config.matrix import SweepMatrix as SweepMatrix
    from sweeps.config.matrix import load_matrix as load_matrix
    from sweeps.config.spec import SweepSpec as SweepSpec
    from sweeps.config.spec import load_sweep as load_sweep
    from sweeps.experiment.events import Callback as Callback
    from sweeps.experiment.events import Event as Event
    from sweeps.experiment.events import PackFailed as PackFailed
    from sweeps.experiment.events import PackStarted as PackStarted
    from sweeps.experiment.events import PhaseFinished as PhaseFinished
    from sweeps.experiment.events import Preparing as Preparing
    from sweeps.experiment.events import RunFinished as RunFinished
    from sweeps.experiment.events import SweepFinished as SweepFinished
    from sweeps.experiment.events import SweepStarted as SweepStarted
    from sweeps.experiment.events import SweepStopped as SweepStopped
    from sweeps.experiment.events import TrialFinished as TrialFinished
    from sweeps.experiment.runner import resume as resume
    from sweeps.experiment.runner import run as run
    from sweeps.reporting.write import report as report

_PUBLIC = {
    "Callback": "sweeps.experiment.events",
    "Event": "sweeps.experiment.events",
    "MatrixTable": "sweeps.analysis.matrix_table",
    "OpenMatrix": "sweeps.api.sweep",
    "OpenSweep": "sweeps.api.sweep",
    "PackFailed": "sweeps.experiment.events",
    "PackStarted": "sweeps.experiment.events",
    "PhaseFinished": "sweeps.experiment.events",
    "Plan": "sweeps.analysis.result",
    "Preparing": "sweeps.experiment.events",
    "Result": "sweeps.analysis.result",
    "RunFinished": "sweeps.experiment.events",
    "SweepComparison": "sweeps.analysis.comparison",
    "SweepFinished": "sweeps.experiment.events",
    "SweepMatrix": "sweeps.config.matrix",
    "SweepSpec": "sweeps.config.spec",
    "SweepStarted": "sweeps.experiment.events",
    "SweepStopped": "sweeps.experiment.events",
    "TrialFinished": "sweeps.experiment.events",
    "compare": "sweeps.analysis.comparison",
    "load_matrix": "sweeps.config.matrix",
    "load_sweep": "sweeps.config.spec",
    "open_sweep": "sweeps.api.sweep",
    "plan": "sweeps.api.before",
    "report": "sweeps.reporting.write",
    "resume": "sweeps.experiment.runner",
    "run": "sweeps.experiment.runner",
    "validate": "sweeps.api.before",
}

__getattr__ = lazy_exports(__name__, _PUBLIC)


def __dir__() -> list[str]:
    return sorted(_PUBLIC)
