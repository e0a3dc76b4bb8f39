"""Uses the public API as a script of a user does. `tools/check_install.py` checks its types; nothing runs it."""

import numpy as np

import lt_train
import sweeps
from lt_train import methods


def show(event: sweeps.Event) -> None:
    if isinstance(event, sweeps.TrialFinished):
        print(event.runs.trial.name, event.runs.objective)


spec = sweeps.SweepSpec(
    name="mine",
    dataset="digits_lt",
    backbone="small_cnn",
    stage1="ce",
    method=methods.LOS(lr=1e-3),
    search={"trials": 24, "space": {"method.smooth_factor": {"uniform": [0.5, 0.99]}}},
)
result = sweeps.run(spec, backend="inline", callbacks=[show])
assert result.winner is not None
accuracy: float = result.winner.mean.acc_all.value if result.winner.mean.acc_all else 0.0
sweep = sweeps.open_sweep("runs/mine")
best = sweep.trials.nlargest(5, "objective")
sweep.plot.smooth_factor().savefig("figure.pdf")
if sweep.winner is not None:
    names: dict[str, object] = dict(sweep.winner.params)
difference = sweeps.compare("runs/mine", sweep).pairs[0].winners
table = sweeps.run(sweeps.load_matrix("table.yaml"))
rows: list[str] = [row.sweep for row in table.rows]
seconds: float = sweeps.plan(spec).seconds
problems: list[str] = sweeps.validate("mine.yaml")
bank = lt_train.bank_from_arrays(**np.load("features.npz"))
fits = lt_train.fit(bank, [methods.CE(), methods.LOS(smooth_factor=0.9)], seeds=5)
print(fits[0].scores()["acc_all"], fits.to_frame().columns, accuracy, names, rows, seconds, problems, difference)
