"""Figures and Optuna studies of a sweep."""

import importlib
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from matplotlib.figure import Figure
from optuna.trial import TrialState

import sweeps
from lt_train.core.errors import UserError
from sweeps.config.spec import SweepSpec, load_resolved

pytestmark = pytest.mark.slow

PLOTS = [
    "class_accuracy",
    "epochs",
    "history",
    "importance",
    "logits",
    "loma",
    "lr_weight_decay",
    "one_image",
    "parallel",
    "slices",
    "smooth_factor",
]


@pytest.fixture(scope="module")
def sweep(features_file: Path, tmp_path_factory: pytest.TempPathFactory) -> sweeps.OpenSweep:
    document = {
        "name": "plots",
        "dataset": {"kind": "arrays", "path": str(features_file)},
        "method": "los",
        "training": {"epochs": 4},
        "search": {
            "trials": 30,
            "algorithm": "random",
            "early_stopping": {"kind": "successive_halving", "rungs": [2]},
            "space": {
                "method.smooth_factor": {"uniform": [0.0, 0.95]},
                "method.lr": {"choice": [0.001, 0.01, 0.1, 1e38]},
                "method.weight_decay": {"loguniform": [1e-6, 1e-2]},
            },
        },
        "selection": {"seeds": 2, "extended_training": None},
        "backend": "inline",
        "tracking": "none",
        "storage": str(tmp_path_factory.mktemp("runs")),
    }
    sweeps.run(document)
    return sweeps.open_sweep(load_resolved(document))


@pytest.mark.parametrize("name", PLOTS)
def test_every_plot_is_a_figure_that_can_be_changed(sweep: sweeps.OpenSweep, name: str, tmp_path: Path) -> None:
    assert PLOTS == sorted(name for name in dir(sweep.plot) if not name.startswith("_"))
    figure = getattr(sweep.plot, name)()
    assert isinstance(figure, Figure)
    axes = figure.axes[0]
    assert axes.has_data()
    axes.set_title("mine")
    figure.savefig(tmp_path / "figure.pdf")
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_a_plot_without_content_says_what_it_needs(small_sweep: Callable[..., SweepSpec]) -> None:
    spec = small_sweep(search={"space": {"method.lr": {"choice": [0.01]}}})
    sweeps.run(spec)
    with pytest.raises(UserError, match=r"needs two trials that searched method\.smooth_factor"):
        sweeps.open_sweep(spec).plot.smooth_factor()


def test_the_study_has_all_trials(sweep: sweeps.OpenSweep) -> None:
    study, trials = sweep.to_optuna(), sweep.trials.query("phase == 'search'")
    states = {"finished": TrialState.COMPLETE, "stopped": TrialState.PRUNED, "failed": TrialState.FAIL}
    assert set(trials.status) == set(states)
    assert [one.state for one in study.trials] == [states[status] for status in trials.status]
    for one, row in zip(study.trials, trials.to_dict("records"), strict=True):
        assert one.params == {path: row[path] for path in sweep.spec.search.space}
        assert one.user_attrs["trial"] == row["trial"]
        if row["status"] == "failed":
            assert "diverged" in one.user_attrs["failure"]
            continue
        assert one.value == row["objective"]
        assert one.user_attrs["acc_few"] == pytest.approx(row["acc_few"])
        curve = sweep.curves(row["trial"]).groupby("epoch").val_acc_all.mean()
        assert one.intermediate_values == pytest.approx(curve.to_dict(), abs=1e-6)
    complete = trials[trials.status == "finished"]
    assert study.best_trial.user_attrs["trial"] == complete.trial[complete.objective.idxmax()]


VISUALIZATIONS = [
    "plot_contour",
    "plot_edf",
    "plot_intermediate_values",
    "plot_optimization_history",
    "plot_parallel_coordinate",
    "plot_param_importances",
    "plot_rank",
    "plot_slice",
    "plot_timeline",
]


@pytest.mark.parametrize("name", VISUALIZATIONS)
@pytest.mark.filterwarnings("ignore")  # some are marked as experimental
def test_the_plots_of_optuna_work(sweep: sweeps.OpenSweep, name: str) -> None:
    plots = importlib.import_module("optuna.visualization")
    figure = getattr(plots, name)(sweep.to_optuna())
    assert figure.data


def test_a_study_can_be_stored(sweep: sweeps.OpenSweep, tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    sweep.to_optuna(storage=storage)
    study = optuna.load_study(study_name="plots", storage=storage)
    assert len(study.trials) == 30
    evaluators = (
        optuna.importance.FanovaImportanceEvaluator(seed=0),
        optuna.importance.MeanDecreaseImpurityImportanceEvaluator(),
    )
    for evaluator in evaluators:
        assert set(optuna.importance.get_param_importances(study, evaluator=evaluator)) == set(sweep.spec.search.space)
    with pytest.raises(UserError, match="has a study plots already"):
        sweep.to_optuna(storage=storage)
    with pytest.raises(UserError, match="method must be one of los"):
        sweep.to_optuna("ce")
