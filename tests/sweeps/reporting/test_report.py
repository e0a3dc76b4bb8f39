"""Reports of sweeps as they come: finished, unfinished, failed, of one seed, of one trial, of few or very many classes.

Each test runs a small real sweep and reads facts off the files that `lt-sweep report` wrote.
"""

from __future__ import annotations

import csv
import html
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.features import write_features

import sweeps
from lt_train.errors import UserError
from sweeps.cli import main
from sweeps.reporting import value_figures
from sweeps.reporting.class_figures import MOST_CLASSES
from sweeps.reporting.composing import compose
from sweeps.reporting.reading import read_sweep
from sweeps.reporting.value_figures import MOST_LINES, parallel
from sweeps.reporting.writing import Written, write
from sweeps.search.importance import importances
from sweeps.spec import SweepSpec

MakeSweep = Callable[..., SweepSpec]

NO_MARK_UP = re.compile(r"<style>.*?</style>|<svg.*?</svg>|<[^>]+>", re.DOTALL)


def directory(spec: SweepSpec) -> Path:
    return Path(spec.storage) / spec.name


def reported(spec: SweepSpec, out: Path | None = None) -> Written:
    sweeps.run(spec)
    return write([directory(spec)], out)


def text(written: Written) -> str:
    """What a reader reads."""
    return " ".join(html.unescape(NO_MARK_UP.sub(" ", written.page.read_text())).split())


def rows(file: Path) -> list[dict[str, str]]:
    with file.open() as stream:
        return list(csv.DictReader(stream))


def figures(written: Written) -> set[str]:
    return {figure.name for report in written.reports for figure in report.figures()}


def cut_short(spec: SweepSpec, lines: int) -> None:
    """Leave of a finished sweep what a kill would have left after so many lines of its ledger."""
    place = directory(spec)
    (place / "result.json").unlink()
    shutil.rmtree(place / "artifacts")
    kept = (place / "ledger.jsonl").read_bytes().splitlines(keepends=True)[:lines]
    (place / "ledger.jsonl").write_bytes(b"".join(kept) + b'{"term":1,"pack":"cut of')


def test_a_whole_sweep_says_what_its_result_says(small_sweep: MakeSweep) -> None:
    spec = small_sweep(selection={"seeds": 3, "finalists": 2}, search={"trials": 12, "generation": 4})
    result = sweeps.run(spec)
    written = write([directory(spec) / "result.json"])
    assert written.page == directory(spec) / "report" / "index.html"
    assert result.winner is not None
    numbers = rows(written.page.parent / "tables" / "winner.csv")
    assert float(numbers[0]["all"]) == pytest.approx(result.winner.mean.acc_all)
    assert result.winner.ci95.acc_all is not None
    assert float(numbers[0]["all low"]) == pytest.approx(result.winner.ci95.acc_all[0])
    assert float(numbers[1]["all"]) == pytest.approx(result.winner.best_of.acc_all)
    gains = rows(written.page.parent / "tables" / "gains.csv")
    assert [row["winner minus"] for row in gains][:2] == ["vanilla", "ce"]
    for row, name in zip(gains, ("vanilla", "ce"), strict=False):
        gain = result.winner.gain[name]["acc_all"]
        assert float(row["all"]) == pytest.approx(gain.mean)
        assert float(row["p"]) == pytest.approx(gain.p_value, abs=1e-12)
    page = text(written)
    for said in (
        "Selected on val acc_all, last epoch, mean of 3 seeds; the best 2 ran again on fresh seeds",
        f"{100 * result.winner.mean.acc_all:.2f}",
        "On fresh seeds the winner has",
        "survive",
        "12 trials x 3 seeds of los; data arrays, 6 classes",
        "No run failed.",
    ):
        assert said in page, said
    assert figures(written) == {
        "class_accuracy",
        "loma",
        "logits",
        "one_picture",
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


def test_every_figure_lies_beside_the_page_with_the_numbers_it_was_drawn_from(small_sweep: MakeSweep) -> None:
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


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_an_unfinished_sweep_shows_what_it_has_and_takes_no_lease(
    small_sweep: MakeSweep, sampler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = small_sweep(selection={"finalists": 2}, search={"trials": 8, "sampler": sampler})
    result = sweeps.run(spec)
    before = {trial.number: trial.objective for trial in result.trials}
    cut_short(spec, 4)
    left = {file: file.read_bytes() for file in directory(spec).rglob("*") if file.is_file()}
    monkeypatch.setattr("sweeps.lease.held", None)
    sweep = read_sweep(directory(spec))
    assert sweep.state == "unfinished"
    assert 0 < len(sweep.searched) < 8
    assert {one.trial.number: one.objective for one in sweep.searched}.items() <= before.items()
    written = write([directory(spec)])
    page = text(written)
    assert "leads so far" in page
    assert "The leader" in page
    everything = [file.read_text() for file in written.page.parent.rglob("*") if file.is_file()]
    assert not any(re.search(r"[Ww]inner(?!\.(md|tex|csv)|})", NO_MARK_UP.sub(" ", one)) for one in everything)
    assert f"Unfinished: {len(sweep.searched)} of 8 trials are done." in page
    assert "other seeds" in page  # baselines ran on the fresh seeds of finalists, which did not run yet
    assert {file: file.read_bytes() for file in left} == left
    sweeps.resume(directory(spec))
    again = text(write([directory(spec)]))
    assert "Unfinished" not in again
    assert "leads so far" not in again


def test_a_sweep_of_which_nothing_is_finished_has_a_page_that_says_so(small_sweep: MakeSweep) -> None:
    spec = small_sweep()
    sweeps.run(spec)
    cut_short(spec, 1)
    page = text(write([directory(spec)]))
    assert "Nothing to show yet." in page
    assert "Nothing is finished yet" in page


def test_failed_runs_are_listed_with_the_reason_and_do_not_win(small_sweep: MakeSweep) -> None:
    space = {"method.lr": {"choice": [0.01, 0.02, 1e37, 1e38]}}
    spec = small_sweep(search={"trials": 4, "sampler": "grid", "space": space})
    written = reported(spec)
    page = text(written)
    failures = rows(written.page.parent / "tables" / "failures.csv")
    assert {row["setting"] for row in failures} == {"los, trial 2", "los, trial 3"}
    assert all("diverged" in row["why"] and row["seeds"] == "2 of 2" for row in failures)
    assert "4 trials (2 failed) x 2 seeds" in page
    assert "2 settings failed and cannot win" in page
    assert "No run failed." not in page
    (history,) = [figure for figure in written.reports[0].figures() if figure.name == "history"]
    assert [len(one.x) for one in history.panels[0].series if one.name == "failed"] == [2]


def test_a_sweep_whose_trials_all_failed_has_no_winner_and_says_why(small_sweep: MakeSweep) -> None:
    spec = small_sweep(search={"trials": 2, "space": {"method.lr": {"loguniform": [1e37, 1e38]}}})
    page = text(reported(spec))
    assert "No winner: every trial, or every finalist, failed or was stopped." in page
    assert "diverged" in page


def test_one_seed_has_no_interval_no_test_and_no_best_of(small_sweep: MakeSweep) -> None:
    written = reported(small_sweep(selection={"seeds": 1}))
    page = text(written)
    assert "One seed: no interval and no test" in page
    assert "±" not in " ".join(row["winner minus"] for row in rows(written.page.parent / "tables" / "gains.csv"))
    assert "best of 1" not in " ".join(row["%"] for row in rows(written.page.parent / "tables" / "winner.csv"))
    assert {row["p"] for row in rows(written.page.parent / "tables" / "gains.csv")} == {""}


def test_one_trial_is_not_called_the_best_of_many(small_sweep: MakeSweep) -> None:
    written = reported(small_sweep(search={"trials": 1}))
    page = text(written)
    assert "One setting was tried, so nothing was chosen among trials." in page
    assert "runner-up" not in page
    assert {"parallel", "slices", "importance", "smooth_factor"} & figures(written) == set()


@pytest.mark.parametrize("seeds", [1, 3])
def test_what_is_worse_than_a_baseline_does_not_win(small_sweep: MakeSweep, seeds: int) -> None:
    space = {"method.lr": {"loguniform": [30.0, 60.0]}}
    written = reported(small_sweep(search={"trials": 1, "space": space}, selection={"seeds": seeds}))
    headline = written.reports[0].verdict.headline
    assert headline.startswith("los is the best that was searched, and worse than vanilla and ce: ")
    assert "wins" not in headline


def test_nothing_searched_is_said(small_sweep: MakeSweep) -> None:
    page = text(reported(small_sweep(method=None, methods=["los"], search={"trials": 3, "space": {}})))
    assert "nothing was searched" in page
    assert "there is no importance to tell" in page


def test_no_few_classes_are_a_dash_and_never_zero(small_sweep: MakeSweep, tmp_path: Path) -> None:
    features = write_features(tmp_path / "x.npz", (150, 90, 40, 25))
    written = reported(small_sweep(dataset={"path": str(features)}))
    assert "No few classes in this dataset" in text(written)
    assert {row["few"] for row in rows(written.page.parent / "tables" / "winner.csv")} == {""}
    assert re.search(r"\| winner, best of 2 \| [\d.]+ \| [\d.]+ \| [\d.]+ \| - \|", markdown(written, "winner"))
    (logits,) = [one for one in written.reports[0].figures() if one.name == "logits"]
    assert any("medium classes" in panel.title for panel in logits.panels)


def markdown(written: Written, name: str) -> str:
    return (written.page.parent / "tables" / f"{name}.md").read_text()


def test_two_classes(small_sweep: MakeSweep, tmp_path: Path) -> None:
    features = write_features(tmp_path / "x.npz", (120, 10))
    written = reported(small_sweep(dataset={"path": str(features)}))
    assert "2 classes" in text(written)
    (loma,) = [one for one in written.reports[0].figures() if one.name == "loma"]
    assert [list(one.x) for one in loma.panels[0].series] == [[0.0, 1.0]] * 3


def test_eight_thousand_classes_are_grouped_and_the_page_stays_small(small_sweep: MakeSweep, tmp_path: Path) -> None:
    counts = tuple(max(1, int(4 * 0.9995**k)) for k in range(8142))
    features = write_features(tmp_path / "x.npz", counts, test=1, val=0)
    spec = small_sweep(
        dataset={"path": str(features)},
        training={"epochs": 1, "batch_size": 1024},
        search={"trials": 2},
        selection={"on": "test", "seeds": 2},
        baselines=["vanilla"],
    )
    written = reported(spec)
    page = text(written)
    assert "8142 classes" in page
    assert "Selected on the test set, as the paper does: these accuracies flatter the winner." in page
    assert written.page.stat().st_size < 5 * 2**20
    assert len(rows(written.page.parent / "data" / "per_class.csv")) == 8142
    for figure in written.reports[0].figures():
        assert all(len(one.x) <= MOST_CLASSES for panel in figure.panels for one in panel.series), figure.name


def test_several_methods_are_ranked_as_in_the_result_and_ties_are_called_ties(small_sweep: MakeSweep) -> None:
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
    assert [row["is"] == "tied" for row in table[1:]] == [row.tied for row in result.methods[1:]]
    assert table[0]["is"] == "first"
    assert f"runner-up ({table[1]['method']})" in text(written)


def test_a_setting_against_itself_is_a_tie(small_sweep: MakeSweep) -> None:
    methods = [{"name": "one", "method": "los"}, {"name": "two", "method": "los"}]
    spec = small_sweep(method=None, methods=methods, search={"trials": 1, "space": {}})
    written = reported(spec)
    page = text(written)
    assert "one is first" in page
    assert "tied with runner-up (two, trial 0)" in page
    assert rows(written.page.parent / "tables" / "methods.csv")[1]["is"] == "tied"


def test_stopped_trials_are_shown_apart_and_do_not_win(small_sweep: MakeSweep) -> None:
    scheduler = {"kind": "successive_halving", "rungs": [1]}
    spec = small_sweep(search={"trials": 8, "generation": 8, "scheduler": scheduler}, training={"epochs": 4})
    result = sweeps.run(spec)
    stopped = sum(trial.stopped is not None for trial in result.trials)
    assert stopped
    written = write([directory(spec)])
    assert f"8 trials ({stopped} stopped early)" in text(written)
    (history,) = [figure for figure in written.reports[0].figures() if figure.name == "history"]
    assert {one.name: len(one.x) for one in history.panels[0].series}["stopped early"] == stopped
    assert result.winner is not None
    assert rows(written.page.parent / "tables" / "trials.csv")[0]["trial"] == f"los, trial {result.winner.trial}"


def test_failed_and_stopped_trials_are_counted_apart(small_sweep: MakeSweep) -> None:
    space = {"method.lr": {"choice": [0.01, 0.02, 0.03, 0.04, 0.05, 1e38]}}
    search = {"trials": 6, "generation": 6, "sampler": "grid", "space": space}
    scheduler = {"kind": "successive_halving", "rungs": [1]}
    page = text(reported(small_sweep(search={**search, "scheduler": scheduler}, training={"epochs": 4})))
    assert re.search(r"6 trials \(1 failed, [1-5] stopped early\)", page)


def test_a_baseline_that_was_trained_otherwise_is_another_setting(small_sweep: MakeSweep) -> None:
    brief = {"name": "brief", "method": "ce", "space": {"training.epochs": {"choice": [1]}}}
    spec = small_sweep(method=None, methods=[brief], search={"trials": 1, "space": {}}, baselines=["vanilla", "ce"])
    written = reported(spec)
    names = [row["method"] for row in rows(written.page.parent / "tables" / "methods.csv")]
    assert names == ["brief, trial 0", "vanilla (baseline)", "ce (baseline)"]
    assert "ce class_accuracy" in rows(written.page.parent / "data" / "per_class.csv")[0]


def test_thousands_of_trials_of_one_method_are_thinned_and_importance_is_told_once(
    small_sweep: MakeSweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = small_sweep(selection={"seeds": 1}, search={"trials": 10})
    sweeps.run(spec)
    sweep = read_sweep(directory(spec))
    many = replace(sweep, searched=sweep.searched * 300)
    figure = parallel(many)
    assert figure is not None
    lines = figure.panels[0].series
    assert len(lines) <= MOST_LINES
    assert sum(one.name == "best tenth" for one in lines) >= MOST_LINES // 2
    calls: list[Any] = []
    monkeypatch.setattr(value_figures, "importances", lambda *args: calls.append(args) or importances(*args))
    assert "importance" in {one.name for one in compose(sweep).figures()}
    assert len(calls) == 1


def test_without_the_bank_or_the_heads_it_says_what_it_could_not_draw(small_sweep: MakeSweep) -> None:
    spec = small_sweep()
    sweeps.run(spec)
    shutil.rmtree(directory(spec) / "heads")
    written = write([directory(spec)])
    assert "no longer kept, so no logits were drawn" in text(written)
    assert {"loma", "class_accuracy"} <= figures(written)
    shutil.rmtree(Path(spec.storage) / "cache")
    written = write([directory(spec)])
    assert "no longer has the feature bank" in text(written)
    assert {"loma", "class_accuracy", "logits", "one_picture"} & figures(written) == set()
    assert "epochs" in figures(written)


def test_several_sweeps_stand_side_by_side_and_share_figure_four(small_sweep: MakeSweep, tmp_path: Path) -> None:
    specs = [small_sweep(name=name) for name in ("here", "there")]
    for spec in specs:
        sweeps.run(spec)
    places = [directory(spec) for spec in specs]
    with pytest.raises(UserError, match="say where it goes with --out"):
        write(places)
    with pytest.raises(UserError, match="must have names of their own, got here more than once"):
        write([places[0], places[0]], tmp_path / "out")
    written = write(places, tmp_path / "out")
    assert [report.name for report in written.reports] == ["here", "there"]
    assert [row["sweep"] for row in rows(tmp_path / "out" / "tables" / "overview.csv")] == ["here", "there"]
    assert (tmp_path / "out" / "data" / "there" / "runs.csv").is_file()
    (figure,) = [one for one in written.reports[0].figures() if one.name == "smooth_factor"]
    assert [one.name for one in figure.panels[0].series[1::2]] == ["here, IR 21.7", "there, IR 21.7"]
    ids = re.findall(r'\bid="([^"]+)"', written.page.read_text())
    assert len(ids) == len(set(ids))


def test_a_family_stands_for_its_sweeps_and_shows_members_by_methods(small_sweep: MakeSweep, tmp_path: Path) -> None:
    document = small_sweep(search={"trials": 1, "space": {"method.lr": {"loguniform": [1e-3, 1e-1]}}}).resolved()
    del document["method"], document["baselines"]
    document |= {"name": "fam", "methods": ["ce", "los"], "across": {"training.epochs": [1, 2]}}
    file = tmp_path / "fam.json"
    file.write_text(json.dumps(document))
    table = sweeps.run_family(sweeps.load_family(file))
    place = tmp_path / "runs" / "fam"
    written = write([place])
    assert written.page == place / "report" / "index.html"
    assert [report.name for report in written.reports] == ["fam-1", "fam-2"]
    for name in ("all", "few"):
        shown = rows(place / "report" / "tables" / f"fam_{name}.csv")
        assert [row["training.epochs"] for row in shown] == ["1", "2"]
        for row, there in zip(shown, table.rows, strict=True):
            for method in ("vanilla", "ce", "los"):
                assert float(row[method]) == getattr(there.cells[method].mean, f"acc_{name}")
    assert "fam by training.epochs: all classes" in text(written)
    shutil.rmtree(tmp_path / "runs" / "fam-2")
    written = write([place])
    assert [report.name for report in written.reports] == ["fam-1"]
    assert "fam-2: not finished." in text(written)
    shutil.rmtree(tmp_path / "runs" / "fam-1")
    with pytest.raises(UserError, match="no sweep of fam has begun"):
        write([place])


def test_a_grid_of_lr_and_weight_decay_is_a_heat_map(small_sweep: MakeSweep) -> None:
    space = {"method.lr": {"choice": [0.01, 0.02]}, "method.weight_decay": {"choice": [0.0, 0.001, 0.01]}}
    written = reported(small_sweep(search={"trials": 6, "sampler": "grid", "space": space}))
    (figure,) = [one for one in written.reports[0].figures() if one.name == "lr_weight_decay"]
    (cells,) = figure.panels[0].series
    assert (cells.mark, len(cells.x)) == ("cells", 6)


def test_what_is_no_report_is_not_written_over(small_sweep: MakeSweep, tmp_path: Path) -> None:
    spec = small_sweep(search={"trials": 1})
    sweeps.run(spec)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "index.html").write_text("my page")
    with pytest.raises(UserError, match="is no report of ours and is not written over"):
        write([directory(spec)], mine)
    (mine / "index.html").rename(mine / "notes.html")
    with pytest.raises(UserError, match="must be a new or empty directory"):
        write([directory(spec)], mine)
    first = write([directory(spec)], tmp_path / "out")
    (tmp_path / "out" / "tables" / "stale.md").write_text("of an earlier report")
    second = write([directory(spec)], tmp_path / "out")
    assert first.page == second.page
    assert not (tmp_path / "out" / "tables" / "stale.md").exists()


def test_a_report_that_was_interrupted_is_made_anew_and_what_is_beside_it_is_kept(
    small_sweep: MakeSweep, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spec = small_sweep(search={"trials": 2})
    sweeps.run(spec)
    whole = write([directory(spec)], tmp_path / "out")
    names = {file.relative_to(tmp_path / "out") for file in (tmp_path / "out").rglob("*")}
    whole.page.unlink()
    (tmp_path / "out" / "tables" / "mine.md").write_text("not of a report")
    with pytest.raises(UserError, match="must be a new or empty directory"):
        write([directory(spec)], tmp_path / "out")
    assert (tmp_path / "out" / "tables" / "mine.md").read_text() == "not of a report"
    (tmp_path / "out" / "tables" / "mine.md").unlink()
    write([directory(spec)], tmp_path / "out")
    assert {file.relative_to(tmp_path / "out") for file in (tmp_path / "out").rglob("*")} == names
    with monkeypatch.context() as patched:
        patched.setattr("sweeps.reporting.page.draw", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write([directory(spec)], tmp_path / "next")
    assert not (tmp_path / "next").exists()


def test_names_from_files_are_text_and_never_markup(small_sweep: MakeSweep) -> None:
    spec = small_sweep(search={"trials": 2})
    sweeps.run(spec)
    file = directory(spec) / "result.json"
    document = json.loads(file.read_text())
    document["notes"] = ["<script>alert(1)</script> & more"]
    file.write_text(json.dumps(document))
    page = write([directory(spec)]).page.read_text()
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; more" in page
    assert "<script" not in page


def test_the_command_and_the_call_write_the_same(
    small_sweep: MakeSweep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = small_sweep(search={"trials": 2})
    sweeps.run(spec)
    assert main(["report", str(directory(spec))]) == 0
    assert "small: los " in capsys.readouterr().out
    assert main(["report", str(directory(spec)), "--out", str(tmp_path / "by-command"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["sweeps"]["small"]["headline"].startswith("los ")
    by_call = sweeps.report(directory(spec), out=tmp_path / "by-call")
    assert by_call.read_text() == Path(told["page"]).read_text()
    assert main(["report", str(tmp_path)]) == 2
    assert "is not a sweep directory" in capsys.readouterr().err


def test_a_damaged_result_is_named(small_sweep: MakeSweep) -> None:
    spec = small_sweep(search={"trials": 1})
    sweeps.run(spec)
    (directory(spec) / "result.json").write_text('{"schema": 1')
    with pytest.raises(UserError, match=r"result\.json is damaged; remove it and run `lt-sweep resume"):
        write([directory(spec)])


def test_a_report_is_made_before_anything_is_drawn(small_sweep: MakeSweep, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = small_sweep(search={"trials": 2})
    sweeps.run(spec)
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    assert compose(read_sweep(directory(spec))).verdict.headline.startswith("los ")
