"""Reports of a finished sweep, of several sweeps and of a matrix.

Each test runs a small sweep and checks the files that `lt-sweep report` wrote.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.reports import directory, figures, reported, rows, text

import sweeps
from lt_train.core.errors import UserError
from sweeps.analysis.load import read_sweep
from sweeps.config.spec import SweepSpec
from sweeps.reporting import search_figures
from sweeps.reporting.search_figures import MOST_LINES, parallel
from sweeps.reporting.sections import sweep_report
from sweeps.reporting.write import write
from sweeps.search.algorithms import importances

pytestmark = pytest.mark.slow

MakeSweep = Callable[..., SweepSpec]


def test_the_report_of_a_finished_sweep_agrees_with_its_result(small_sweep: MakeSweep) -> None:
    spec = small_sweep(selection={"seeds": 3, "finalists": 2}, search={"trials": 12, "proposal_batch": 4})
    result = sweeps.run(spec)
    written = write([directory(spec) / "result.json"])
    assert written.page == directory(spec) / "report" / "index.html"
    assert result.winner is not None
    numbers = rows(written.page.parent / "tables" / "winner.csv")
    assert float(numbers[0]["all"]) == pytest.approx(result.winner.mean.acc_all.value)
    assert float(numbers[0]["all low"]) == pytest.approx(result.winner.mean.by_split()[0].low)
    assert float(numbers[1]["all"]) == pytest.approx(result.winner.best_of.acc_all)
    gains = rows(written.page.parent / "tables" / "gains.csv")
    assert [row["winner minus"] for row in gains][:2] == ["vanilla", "ce"]
    for row, name in zip(gains, ("vanilla", "ce"), strict=False):
        gain = result.winner.gain[name]["acc_all"]
        assert float(row["all"]) == pytest.approx(gain.difference.value)
        assert float(row["p"]) == pytest.approx(gain.p_value, abs=1e-12)
    page = text(written)
    for said in (
        "Selected on val acc_all, last epoch, mean of 3 seeds; the best 2 trials ran again on new seeds",
        f"{100 * result.winner.mean.acc_all.value:.2f}",
        "On new seeds the winner reaches",
        "confirmed",
        "12 trials x 3 seeds of los; data arrays, 6 classes",
        "No run failed.",
    ):
        assert said in page, said
    assert figures(written) == {
        "class_accuracy",
        "loma",
        "logits",
        "one_image",
        "epochs",
        "history",
        "smooth_factor",
        "slices",
        "importance",
        "parallel",
    }
    every = rows(written.page.parent / "data" / "runs.csv")
    assert len(every) == 12 * 3 + 2 * 3 + 1 + 3
    assert {row["seed"] for row in every if row["phase"] == "finalist"} == {"3", "4", "5"}


def test_every_figure_has_a_file_with_its_data(small_sweep: MakeSweep) -> None:
    written = reported(small_sweep(search={"trials": 12}))
    (report,) = written.reports
    for figure in report.figures():
        data = rows(written.page.parent / "data" / f"{figure.name}.csv")
        points = sum(len(one.x) for panel in figure.panels for one in panel.series)
        lines = sum(len(panel.lines) for panel in figure.panels)
        assert len(data) == points + lines or figure.name == "parallel", figure.name
        assert f"data/{figure.name}.csv" in text(written)
    for table in report.tables():
        for ending in ("md", "tex", "csv"):
            assert (written.page.parent / "tables" / f"{table.name}.{ending}").stat().st_size


def test_several_methods_are_ranked_and_tied_as_in_the_result(small_sweep: MakeSweep) -> None:
    methods: list[Any] = [
        "vanilla",
        {"method": "los", "space": {"method.smooth_factor": {"uniform": [0.1, 0.95]}}},
        {"name": "los-again", "method": "los"},
        {"method": "tau_norm", "space": {"method.post_hoc.tau": {"uniform": [0, 2]}}},
    ]
    spec = small_sweep(method=None, methods=methods, selection={"finalists": 1, "seeds": 3}, search={"trials": 4})
    result = sweeps.run(spec)
    written = write([directory(spec)])
    table = rows(written.page.parent / "tables" / "methods.csv")
    assert [row["method"].split(",")[0] for row in table] == [row.method for row in result.methods]
    assert [row["verdict"] == "tied" for row in table[1:]] == [row.tied for row in result.methods[1:]]
    assert table[0]["verdict"] == "best"
    assert f"runner-up ({table[1]['method']})" in text(written)


def test_equal_methods_are_tied(small_sweep: MakeSweep) -> None:
    methods = [{"name": "one", "method": "los"}, {"name": "two", "method": "los"}]
    spec = small_sweep(method=None, methods=methods, search={"trials": 1, "space": {}})
    written = reported(spec)
    page = text(written)
    assert "one ranks first" in page
    assert "tied with runner-up (two, trial 0)" in page
    assert rows(written.page.parent / "tables" / "methods.csv")[1]["verdict"] == "tied"


def test_a_baseline_with_other_training_is_another_configuration(small_sweep: MakeSweep) -> None:
    brief = {"name": "brief", "method": "ce", "space": {"training.epochs": {"choice": [1]}}}
    spec = small_sweep(method=None, methods=[brief], search={"trials": 1, "space": {}}, baselines=["vanilla", "ce"])
    written = reported(spec)
    names = [row["method"] for row in rows(written.page.parent / "tables" / "methods.csv")]
    assert names == ["brief, trial 0", "vanilla (baseline)", "ce (baseline)"]
    assert "ce class_accuracy" in rows(written.page.parent / "data" / "per_class.csv")[0]


def test_thousands_of_trials_are_thinned_and_importance_is_computed_once(
    small_sweep: MakeSweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = small_sweep(selection={"seeds": 1}, search={"trials": 10})
    sweeps.run(spec)
    sweep = read_sweep(directory(spec))
    many = replace(sweep, every=sweep.every * 300)
    figure = parallel(many)
    assert figure is not None
    lines = figure.panels[0].series
    assert len(lines) <= MOST_LINES
    assert sum(one.name == "best tenth" for one in lines) >= MOST_LINES // 2
    calls: list[Any] = []
    monkeypatch.setattr(search_figures, "importances", lambda *args: calls.append(args) or importances(*args))
    assert "importance" in {one.name for one in sweep_report(sweep).figures()}
    assert len(calls) == 1


def test_the_caption_of_importance_names_a_sample(small_sweep: MakeSweep, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = small_sweep(selection={"seeds": 1}, search={"trials": 10})
    sweeps.run(spec)
    sweep = read_sweep(directory(spec))
    monkeypatch.setattr(search_figures, "importances", lambda *args: dict.fromkeys(("a", "b"), 0.5))
    for times, sample in ((1, ""), (300, "a random sample of 1,000 of 3,000 trials of los")):
        figure = search_figures.importance(replace(sweep, every=sweep.every * times))
        assert figure is not None
        assert ("random sample" in figure.caption) == bool(sample)
        assert sample in figure.caption


def test_several_sweeps_stand_side_by_side_and_share_figure_four(small_sweep: MakeSweep, tmp_path: Path) -> None:
    specs = [small_sweep(name=name) for name in ("here", "there")]
    for spec in specs:
        sweeps.run(spec)
    places = [directory(spec) for spec in specs]
    with pytest.raises(UserError, match="give one with --out"):
        write(places)
    with pytest.raises(UserError, match=r"given only once, got more than once: .*/here"):
        write([places[0], places[0]], tmp_path / "out")
    shutil.copytree(places[0], tmp_path / "copies" / "here")
    with pytest.raises(UserError, match="must have different names, got more than once: here"):
        write([places[0], tmp_path / "copies" / "here"], tmp_path / "out")
    written = write(places, tmp_path / "out")
    assert [report.name for report in written.reports] == ["here", "there"]
    assert [row["sweep"] for row in rows(tmp_path / "out" / "tables" / "overview.csv")] == ["here", "there"]
    assert (tmp_path / "out" / "data" / "there" / "runs.csv").is_file()
    (figure,) = [one for one in written.reports[0].figures() if one.name == "smooth_factor"]
    assert [one.name for one in figure.panels[0].series[1::2]] == ["here, IR 21.7", "there, IR 21.7"]
    ids = re.findall(r'\bid="([^"]+)"', written.page.read_text())
    assert len(ids) == len(set(ids))


def test_a_matrix_stands_for_its_sweeps_and_has_a_table_by_method(small_sweep: MakeSweep, tmp_path: Path) -> None:
    document = small_sweep(search={"trials": 1, "space": {"method.lr": {"loguniform": [1e-3, 1e-1]}}}).resolved()
    del document["method"], document["baselines"]
    document |= {"name": "fam", "methods": ["ce", "los"], "matrix": {"training.epochs": [1, 2]}}
    document["selection"]["extended_training"] = 3
    file = tmp_path / "fam.json"
    file.write_text(json.dumps(document))
    table = sweeps.run(sweeps.load_matrix(file))
    place = tmp_path / "runs" / "fam"
    written = write([place])
    assert written.page == place / "report" / "index.html"
    assert [report.name for report in written.reports] == ["fam-1", "fam-2"]
    for name in ("all", "few"):
        shown = rows(place / "report" / "tables" / f"fam_{name}.csv")
        assert [row["training.epochs"] for row in shown] == ["1", "2"]
        for row, there in zip(shown, table.rows, strict=True):
            for method in ("vanilla", "ce", "los"):
                assert float(row[method]) == getattr(there.cells[method].mean, f"acc_{name}").value
    assert "fam by training.epochs: all classes" in text(written)
    assert "winners trained 3x as long: " in text(written)
    shutil.rmtree(tmp_path / "runs" / "fam-2")
    written = write([place])
    assert [report.name for report in written.reports] == ["fam-1"]
    assert "fam-2: not started." in text(written)
    shutil.rmtree(tmp_path / "runs" / "fam-1")
    with pytest.raises(UserError, match="no sweep of matrix fam was started"):
        write([place])


def test_a_grid_of_lr_and_weight_decay_is_a_heat_map(small_sweep: MakeSweep) -> None:
    space = {"method.lr": {"choice": [0.01, 0.02]}, "method.weight_decay": {"choice": [0.0, 0.001, 0.01]}}
    written = reported(small_sweep(search={"trials": 6, "algorithm": "grid", "space": space}))
    (figure,) = [one for one in written.reports[0].figures() if one.name == "lr_weight_decay"]
    (cells,) = figure.panels[0].series
    assert (cells.mark, len(cells.x)) == ("cells", 6)
    assert figure.caption.startswith("One cell per pair of values")


def test_every_value_of_a_grid_is_on_the_line_of_figure_four(small_sweep: MakeSweep) -> None:
    grid = [round(0.08 * step, 2) for step in range(12)]
    search = {"trials": 12, "algorithm": "grid", "space": {"method.smooth_factor": {"choice": grid}}}
    written = reported(small_sweep(search=search))
    (figure,) = [one for one in written.reports[0].figures() if one.name == "smooth_factor"]
    trials, line = figure.panels[0].series
    assert list(line.x) == grid
    assert sorted(trials.y, key=float) == sorted(line.y, key=float)


def test_the_content_of_a_report_needs_no_matplotlib(small_sweep: MakeSweep, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = small_sweep(search={"trials": 2})
    sweeps.run(spec)
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    assert sweep_report(read_sweep(directory(spec))).verdict.headline.startswith("los ")
