"""Reports of unusual sweeps: unfinished, failed, one seed or trial, few or many classes, missing files.

Each test runs a small sweep and checks the files that `lt-sweep report` wrote.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import pytest
import torch
from support.features import write_features
from support.reports import NO_MARK_UP, cut_short, directory, figures, reported, rows, text
from torch import Tensor

import sweeps
from lt_train.core.errors import LongtailError
from lt_train.methods import LOS
from lt_train.methods.post_hoc import FittedPostHoc
from sweeps.analysis.load import read_sweep
from sweeps.config.spec import SweepSpec
from sweeps.reporting.class_figures import MOST_CLASSES
from sweeps.reporting.write import Written, write

pytestmark = pytest.mark.slow

MakeSweep = Callable[..., SweepSpec]


@pytest.mark.parametrize("algorithm", ["tpe", "random"])
def test_an_unfinished_sweep_has_a_report_and_takes_no_lease(
    small_sweep: MakeSweep, algorithm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = small_sweep(selection={"finalists": 2}, search={"trials": 8, "algorithm": algorithm})
    result = sweeps.run(spec)
    before = {trial.number: trial.objective for trial in result.trials}
    cut_short(spec, 3)
    left = {file: file.read_bytes() for file in directory(spec).rglob("*") if file.is_file()}
    monkeypatch.setattr("sweeps.store.lease.acquire_lease", None)
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
    assert f"Unfinished: {len(sweep.searched)} of 8 trials are finished." in page
    assert "(Welch)" in page  # baselines ran on the seeds of finalists, which did not run yet
    assert {file: file.read_bytes() for file in left} == left
    sweeps.resume(directory(spec))
    again = text(write([directory(spec)]))
    assert "Unfinished" not in again
    assert "leads so far" not in again


def test_a_sweep_without_a_finished_trial_has_a_page(small_sweep: MakeSweep) -> None:
    spec = small_sweep()
    sweeps.run(spec)
    cut_short(spec, 0)
    page = text(write([directory(spec)]))
    assert "No results yet." in page
    assert "No trial has finished yet" in page


def test_failed_runs_are_listed_with_the_reason_and_do_not_win(small_sweep: MakeSweep) -> None:
    space = {"method.lr": {"choice": [0.01, 0.02, 1e37, 1e38]}}
    spec = small_sweep(search={"trials": 4, "algorithm": "grid", "space": space})
    written = reported(spec)
    page = text(written)
    failures = rows(written.page.parent / "tables" / "failures.csv")
    assert {row["trial"] for row in failures} == {"los, trial 2", "los, trial 3"}
    assert all("diverged" in row["reason"] and row["seeds"] == "2 of 2" for row in failures)
    assert "4 trials (2 failed) x 2 seeds" in page
    assert "2 trials failed and cannot win" in page
    assert "No run failed." not in page
    (history,) = [figure for figure in written.reports[0].figures() if figure.name == "history"]
    assert [len(one.x) for one in history.panels[0].series if one.name == "failed"] == [2]


class Standardised(FittedPostHoc):
    """Divides the logits by their standard deviation on the validation set."""

    kind: Literal["standardised"] = "standardised"

    def fit(
        self, lanes: Mapping[str, Tensor], class_counts: Tensor, logits: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `FittedPostHoc.fit`."""
        scale = logits.std().reciprocal().expand(len(class_counts))
        return scale, torch.zeros_like(scale)


@pytest.mark.usefixtures("own_kinds")
def test_a_method_that_sets_values_from_val_is_noted(small_sweep: MakeSweep) -> None:
    note = "validation set are optimistic, because the method sets values from that set"
    assert note not in text(reported(small_sweep()))
    adjusted = LOS(post_hoc=Standardised())
    assert f"Accuracies of los on the {note}" in text(
        reported(small_sweep(name="fitted", method=adjusted.model_dump()))
    )


def test_a_sweep_whose_trials_all_failed_has_no_winner(small_sweep: MakeSweep) -> None:
    space = {"method.lr": {"loguniform": [1e37, 1e38]}}
    page = text(reported(small_sweep(search={"trials": 2, "space": space}, selection={"finalists": 1})))
    assert "No winner: every trial, or every finalist, failed or was stopped." in page
    assert "diverged" in page
    assert "ran again on new seeds" not in page
    assert "Best trials" not in page


def test_one_seed_has_no_interval_no_test_and_no_best_of(small_sweep: MakeSweep) -> None:
    written = reported(small_sweep(selection={"seeds": 1}))
    page = text(written)
    assert "One seed: there is no interval and no test" in page
    assert "±" not in " ".join(row["winner minus"] for row in rows(written.page.parent / "tables" / "gains.csv"))
    assert "best of 1" not in " ".join(row["%"] for row in rows(written.page.parent / "tables" / "winner.csv"))
    assert {row["p"] for row in rows(written.page.parent / "tables" / "gains.csv")} == {""}


def test_one_trial_is_not_called_the_best_of_many(small_sweep: MakeSweep) -> None:
    written = reported(small_sweep(search={"trials": 1}))
    page = text(written)
    assert "One trial: nothing was selected among trials." in page
    assert "runner-up" not in page
    assert {"parallel", "slices", "importance", "smooth_factor"} & figures(written) == set()


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_method_worse_than_a_baseline_does_not_win(small_sweep: MakeSweep, seeds: int) -> None:
    space = {"method.lr": {"loguniform": [30.0, 60.0]}}
    written = reported(small_sweep(search={"trials": 1, "space": space}, selection={"seeds": seeds}))
    headline = written.reports[0].verdict.headline
    assert headline.startswith("los is the best of the searched methods, but is worse than vanilla and ce: ")
    assert "wins" not in headline


def test_a_winner_without_a_comparison_only_ranks_first(small_sweep: MakeSweep) -> None:
    alone = small_sweep(baselines=[], search={"trials": 2}, selection={"seeds": 2, "finalists": 1})
    written = reported(alone)
    verdict = written.reports[0].verdict
    assert verdict.headline.startswith("los ranks first: ")
    assert "; the best trial ran again on new seeds" in verdict.selected


def test_a_sweep_that_searches_nothing(small_sweep: MakeSweep) -> None:
    page = text(reported(small_sweep(method=None, methods=["los"], search={"trials": 3, "space": {}})))
    assert "nothing was searched" in page
    assert "at least two searched parameters" in page


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


def test_three_hundred_trials_of_five_seeds_are_a_page_of_few_megabytes(small_sweep: MakeSweep) -> None:
    space = {
        "method.smooth_factor": {"uniform": [0.1, 0.95]},
        "method.lr": {"loguniform": [1e-3, 1e-1]},
        "method.weight_decay": {"loguniform": [1e-6, 1e-2]},
    }
    search = {"trials": 300, "proposal_batch": 60, "algorithm": "random", "space": space}
    spec = small_sweep(search=search, selection={"seeds": 5}, training={"epochs": 2})
    written = reported(spec)
    assert written.page.stat().st_size < 5 * 2**20
    assert {"history", "parallel", "importance", "lr_weight_decay", "slices"} <= figures(written)
    assert len(rows(written.page.parent / "data" / "runs.csv")) == 300 * 5 + 1 + 5


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
    assert "Selected on the test set, as in the paper: the accuracies of the winner are optimistic." in page
    assert written.page.stat().st_size < 5 * 2**20
    assert len(rows(written.page.parent / "data" / "per_class.csv")) == 8142
    for figure in written.reports[0].figures():
        assert all(len(one.x) <= MOST_CLASSES for panel in figure.panels for one in panel.series), figure.name


def test_stopped_trials_are_shown_apart_and_do_not_win(small_sweep: MakeSweep) -> None:
    early_stopping = {"kind": "successive_halving", "rungs": [1]}
    spec = small_sweep(
        search={"trials": 8, "proposal_batch": 8, "early_stopping": early_stopping}, training={"epochs": 4}
    )
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
    search = {"trials": 6, "proposal_batch": 6, "algorithm": "grid", "space": space}
    early_stopping = {"kind": "successive_halving", "rungs": [1]}
    page = text(reported(small_sweep(search={**search, "early_stopping": early_stopping}, training={"epochs": 4})))
    assert re.search(r"6 trials \(1 failed, [1-5] stopped early\)", page)


def test_missing_banks_and_heads_are_reported(small_sweep: MakeSweep) -> None:
    spec = small_sweep()
    sweeps.run(spec)
    shutil.rmtree(directory(spec) / "heads")
    written = write([directory(spec)])
    assert "or cannot be read, so there are no figures of logits" in text(written)
    assert {"loma", "class_accuracy"} <= figures(written)
    shutil.rmtree(Path(spec.storage) / "cache")
    written = write([directory(spec)])
    assert "no longer has the feature bank" in text(written)
    assert {"loma", "class_accuracy", "logits", "one_image"} & figures(written) == set()
    assert "epochs" in figures(written)


@pytest.mark.parametrize("which", ["winner", "baseline"])
def test_a_damaged_head_is_reported(small_sweep: MakeSweep, which: str) -> None:
    spec = small_sweep(search={"trials": 2}, selection={"finalists": 1})
    sweeps.run(spec)
    sweep = read_sweep(directory(spec))
    assert sweep.head_errors == ()
    trial = sweep.winner if which == "winner" else next(iter(sweep.finished_baselines.values()))
    assert trial is not None
    (file,) = (directory(spec) / "heads").glob(f"{sweep.best_seed(trial).pack}.*")
    file.write_bytes(file.read_bytes()[:-1])
    assert sweep.classifier(trial) is None
    written = write([directory(spec)])
    assert f"The head of {trial.trial.name} cannot be read, so figures of logits lack it" in text(written)
    assert f"heads/{file.name} is missing or altered" in text(written)


def test_a_removed_head_of_an_unfinished_sweep_is_not_an_error(small_sweep: MakeSweep) -> None:
    spec = small_sweep(search={"trials": 3})
    sweeps.run(spec)
    file = directory(spec) / "ledger.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(line for line in lines if '"event":"finished"' not in line))
    (directory(spec) / "result.json").unlink()
    for head in (directory(spec) / "heads").glob("search*"):
        head.unlink()
    sweep = read_sweep(directory(spec))
    assert sweep.state == "unfinished"
    assert sweep.winner is not None
    assert sweep.classifier(sweep.winner) is None
    assert sweep.head_errors == ()


def test_a_damaged_bank_is_not_reported_as_missing(small_sweep: MakeSweep) -> None:
    spec = small_sweep()
    sweeps.run(spec)
    (manifest,) = (Path(spec.storage) / "cache" / "banks").glob("*/manifest.json")
    manifest.write_text("{}")
    page = text(write([directory(spec)]))
    assert "The feature bank cannot be read" in page
    assert "no longer has the feature bank" not in page


def test_many_damaged_lines_are_counted(small_sweep: MakeSweep) -> None:
    spec = small_sweep()
    sweeps.run(spec)
    file = directory(spec) / "ledger.jsonl"
    count = len(file.read_text().splitlines())
    file.write_text("damaged\n" * count)
    with pytest.raises(LongtailError, match=rf"is damaged: line 1, .*line 5 and {count - 5} more; `lt-sweep resume"):
        read_sweep(directory(spec))


def test_a_report_does_not_depend_on_the_written_result(small_sweep: MakeSweep) -> None:
    spec = small_sweep(search={"trials": 1})
    sweeps.run(spec)
    page = write([directory(spec)]).page.read_text()
    (directory(spec) / "result.json").write_text('{"schema": 1')
    assert write([directory(spec)]).page.read_text() == page


def test_a_damaged_ledger_is_refused_until_it_is_repaired(small_sweep: MakeSweep) -> None:
    spec = small_sweep(search={"trials": 3})
    result, file = sweeps.run(spec), directory(spec) / "ledger.jsonl"
    content = file.read_bytes()
    place = content.index(b'"acc_all":0.') + 12
    file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    number = content[:place].count(b"\n") + 1
    with pytest.raises(LongtailError, match=rf"ledger\.jsonl is damaged: line {number}; `lt-sweep resume"):
        write([directory(spec)])
    assert sweeps.resume(directory(spec)).trials == result.trials
    assert not read_sweep(directory(spec)).missing


def test_a_damaged_file_of_a_pack_is_named(small_sweep: MakeSweep) -> None:
    spec = small_sweep(search={"trials": 1})
    sweeps.run(spec)
    for file in (directory(spec) / "packs").iterdir():
        file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(LongtailError, match=r"packs/.* is missing or altered; `lt-sweep resume .* trains its runs"):
        write([directory(spec)])
