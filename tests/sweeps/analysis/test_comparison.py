"""Comparisons of small sweeps, from Python, by the command and in a report."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.features import write_features
from support.reports import cut_short, directory, rows, text

import sweeps
from lt_train.core.errors import UserError
from sweeps.analysis.comparison import SweepComparison, SweepPair
from sweeps.cli.app import main
from sweeps.config.spec import SweepSpec
from sweeps.reporting.result_tables import comparison_sections
from sweeps.reporting.write import write
from sweeps.store.layout import read_identity, write_document

pytestmark = pytest.mark.slow

MakeSweep = Callable[..., SweepSpec]
ONE_LR = {"method.lr": {"loguniform": [1e-3, 1e-1]}}


def run(small_sweep: MakeSweep, name: str, **sections: Any) -> Path:
    defaults: dict[str, Any] = {"search": {"trials": 3, "space": ONE_LR}, "selection": {"seeds": 3}}
    spec = small_sweep(name=name, **(defaults | sections))
    sweeps.run(spec)
    return directory(spec)


def only_pair(*places: Path) -> SweepPair:
    (pair,) = sweeps.compare(*places).pairs
    return pair


def test_on_shared_seeds_and_images_winners_are_paired(small_sweep: MakeSweep) -> None:
    first, second = run(small_sweep, "short"), run(small_sweep, "long", training={"epochs": 9})
    found = sweeps.compare(first, second)
    assert [side.label for side in found.sweeps] == ["short", "long"]
    assert found.specs == {"training.epochs": [3, 9]}
    (pair,) = found.pairs
    assert (pair.label, pair.reference, pair.comparable) == ("long", "short", True)
    assert "Both were selected on the seeds compared here, best of 3 trials each" in pair.cautions[0]
    assert {one.split(",")[0] for one in pair.cautions[1:]} <= {"All seeds have the same accuracy"}
    one, other = (sweeps.Result.model_validate_json((place / "result.json").read_text()) for place in (first, second))
    assert one.winner is not None
    assert other.winner is not None
    assert pair.winners is not None
    assert [(one.test, one.pairs) for one in pair.winners.gain.values()] == [("paired", 3)] * 4
    for split in ("all", "many", "medium", "few"):
        mine, theirs = (getattr(result.winner.mean, f"acc_{split}").value for result in (other, one))
        assert pair.winners.gain[f"acc_{split}"].difference.value == pytest.approx(mine - theirs)
    assert [one.what for one in pair.methods] == ["los", "vanilla (baseline)", "ce (baseline)"]
    assert {one.what: one.gain["acc_all"].verdict for one in pair.methods}["vanilla (baseline)"] == "tied"


def test_changes_by_class_come_from_the_records(small_sweep: MakeSweep) -> None:
    first, second = run(small_sweep, "short"), run(small_sweep, "long", training={"epochs": 9})
    classes = only_pair(first, second).classes
    assert classes is not None
    assert [one.number for one in classes.changes] == list(range(6))
    assert [one.images for one in classes.changes] == [130, 80, 40, 21, 12, 6]
    gained, lost = classes.changed(1), classes.changed(-1)
    assert [one.gain for one in gained] == sorted((one.gain for one in gained), reverse=True)
    assert all(one.gain < 0 for one in lost)
    assert {one.number for one in classes.changes if one.significant} == {
        one.number for sign in (1, -1) for one in classes.changed(sign, significant=True)
    }
    gain = np.mean([one.gain for one in classes.changes])
    winners = only_pair(first, second).winners
    assert winners is not None
    assert gain == pytest.approx(
        winners.gain["acc_all"].difference.value, abs=1e-6
    )  # as many test images of every class
    assert classes.expected_by_chance == pytest.approx(0.3)


def test_with_one_seed_no_class_is_tested(small_sweep: MakeSweep) -> None:
    one_seed = {"selection": {"seeds": 1}}
    found = sweeps.compare(run(small_sweep, "a", **one_seed), run(small_sweep, "b", training={"epochs": 9}, **one_seed))
    classes = found.pairs[0].classes
    assert classes is not None
    assert (classes.test, classes.expected_by_chance) == ("none", None)
    shown = [one for section in comparison_sections(found) for one in section.text]
    assert any("no class can be tested" in one for one in shown)


def test_the_table_of_classes_has_the_significant_ones_first(small_sweep: MakeSweep) -> None:
    found = sweeps.compare(run(small_sweep, "short"), run(small_sweep, "long", training={"epochs": 9}))
    classes = found.pairs[0].classes
    assert classes is not None
    gained = [0.03, 0.02, 0.01, -0.01, -0.02, -0.03]
    flags = [False, True, False, False, True, False]
    changes = [
        one.model_copy(update={"gain": gain, "significant": flag, "p_value": 0.01})
        for one, gain, flag in zip(classes.changes, gained, flags, strict=True)
    ]
    pair = found.pairs[0].model_copy(update={"classes": classes.model_copy(update={"changes": changes})})
    _, section = comparison_sections(found.model_copy(update={"pairs": [pair]}))
    assert "false discovery rate of 5%" in section.text[-1]
    assert [row[0] for row in section.tables[-1].rows] == ["1", "4", "0", "2", "3", "5"]
    assert [row[-1] for row in section.tables[-1].rows] == ["gained", "lost", *["not significant"] * 4]


def test_a_sweep_and_its_copy_are_tied(small_sweep: MakeSweep) -> None:
    first = run(small_sweep, "same")
    second = first.with_name("copy")
    shutil.copytree(first, second)
    pair = only_pair(first, second)
    assert pair.winners is not None
    for one in (pair.winners, *pair.methods):
        assert {gain.verdict for gain in one.gain.values()} == {"tied"}
    assert pair.classes is not None
    assert not pair.classes.changed(1)
    assert not pair.classes.changed(-1)


def test_other_seeds_are_compared_by_welchs_test_and_the_protocols_are_named(small_sweep: MakeSweep) -> None:
    first = run(small_sweep, "search-seeds")
    chosen = {"seeds": 3, "finalists": 1, "on": "test", "extended_training": None}
    second = run(small_sweep, "fresh-seeds", selection=chosen)
    pair = only_pair(first, second)
    assert pair.winners is not None
    assert {(one.test, one.pairs) for one in pair.winners.gain.values()} == {("welch", 0)}
    protocols, ours, theirs = pair.cautions
    assert protocols.endswith("on test, not val; finalists 1, not 0.")
    assert "fresh-seeds was selected on the test set, best of 3 trials" in ours
    assert "search-seeds was selected on the seeds compared here, best of 3 trials" in theirs


def test_two_sweeps_selected_on_the_test_set_are_both_called_optimistic(small_sweep: MakeSweep) -> None:
    on_test = {"seeds": 2, "on": "test"}
    more = {"trials": 4, "space": ONE_LR}
    first = run(small_sweep, "first", selection=on_test)
    second = run(small_sweep, "second", selection=on_test, search=more)
    text = "Both were selected on the test set and on the seeds compared here, best of 4 trials and 3: both accuracies"
    assert any(text in one for one in only_pair(first, second).cautions)


def test_sweeps_of_different_metrics_are_compared_in_all_classes(small_sweep: MakeSweep) -> None:
    pair = only_pair(run(small_sweep, "a"), run(small_sweep, "b", selection={"seeds": 3, "metric": "acc_few"}))
    assert pair.metric == "acc_all"
    assert any("based on acc_all" in one for one in pair.cautions)


def test_other_images_of_the_same_kind_are_not_paired_and_other_splits_are_left_out(
    small_sweep: MakeSweep, tmp_path: Path
) -> None:
    flat = write_features(tmp_path / "flat.npz", (130, 100, 80, 60, 40, 25))
    pair = only_pair(run(small_sweep, "steep"), run(small_sweep, "flat", dataset={"path": str(flat)}))
    assert pair.comparable
    assert pair.winners is not None
    assert pair.winners.gain["acc_all"].test == "welch"
    assert pair.winners.gain.keys() == {"acc_all"}
    assert any(one.startswith("Different test images") for one in pair.cautions)
    assert any(one.startswith("Many, medium and few are not known to be the same classes") for one in pair.cautions)
    assert pair.classes is not None
    assert (pair.classes.changes[5].images, pair.classes.changes[5].reference_images) == (25, 6)


def test_the_same_images_with_fewer_to_train_on_are_paired(small_sweep: MakeSweep, tmp_path: Path) -> None:
    thinned = tmp_path / "thinned.npz"
    with np.load(small_sweep().dataset.path) as file:
        arrays = dict(file)
    arrays["train_features"], arrays["train_labels"] = arrays["train_features"][:, :-1], arrays["train_labels"][:-1]
    np.savez(thinned, **arrays)
    pair = only_pair(run(small_sweep, "whole"), run(small_sweep, "thinned", dataset={"path": str(thinned)}))
    assert pair.winners is not None
    assert pair.winners.gain["acc_all"].test == "paired"
    assert any(one.startswith("Different features of the same test images") for one in pair.cautions)
    assert "The numbers of training images per class differ." in pair.cautions


def test_other_classes_are_not_compared(small_sweep: MakeSweep, tmp_path: Path) -> None:
    four = write_features(tmp_path / "four.npz", (130, 80, 40, 12))
    pair = only_pair(run(small_sweep, "six"), run(small_sweep, "four", dataset={"path": str(four)}))
    assert not pair.comparable
    assert (pair.winners, pair.methods, pair.classes) == (None, [], None)
    assert pair.cautions[0].startswith("Different classes (4, not 6)")


def test_other_data_are_not_compared(small_sweep: MakeSweep) -> None:
    first = run(small_sweep, "mine")
    place = first.with_name("digits")
    shutil.copytree(first, place)
    identity = read_identity(place)
    identity["spec"] |= {"dataset": {"kind": "digits_lt"}, "backbone": "small_cnn", "stage1": "ce"}
    identity["bank_fingerprint"] = "0" * 64
    write_document(place / "sweep.json", identity)
    pair = only_pair(first, place)
    assert not pair.comparable
    assert pair.cautions[0].startswith("Different data (digits_lt, not arrays)")


def test_methods_are_compared_by_name_and_others_are_listed_as_given(small_sweep: MakeSweep) -> None:
    first = run(small_sweep, "two", method=None, methods=["los", "focal"])
    second = run(small_sweep, "one", search={"trials": 2, "space": ONE_LR})
    found = sweeps.compare(first, second)
    assert [one.what for one in found.pairs[0].methods] == ["los", "vanilla (baseline)"]
    assert found.specs["methods.focal"] == ["included", None]
    assert found.specs["baselines.ce"] == [None, "included"]
    assert found.specs["search.trials"] == [3, 2]
    assert not any("lr" in path for path in found.specs)


def test_incomplete_sweeps_are_compared_as_far_as_possible(
    small_sweep: MakeSweep,
) -> None:
    first = run(small_sweep, "whole")
    cut = small_sweep(name="cut", search={"trials": 6, "proposal_batch": 2, "space": ONE_LR}, selection={"seeds": 3})
    sweeps.run(cut)
    cut_short(cut, 3)
    pair = only_pair(first, directory(cut))
    assert pair.cautions[0] == "cut is unfinished: 2 of 6 trials are finished. The leader may change."
    assert pair.winners is not None
    done = small_sweep(name="done", search={"trials": 3, "space": ONE_LR}, selection={"seeds": 3})
    sweeps.run(done)
    ledger = directory(done) / "ledger.jsonl"
    ledger.write_bytes(b"".join(ledger.read_bytes().splitlines(keepends=True)[:-1]))  # without its end
    (directory(done) / "result.json").unlink()
    text = only_pair(first, directory(done)).cautions[0]
    assert text.startswith("done is unfinished: All 3 trials are finished.")
    assert "do not change the leader" in text
    failing = {"trials": 2, "space": {"method.lr": {"loguniform": [1e37, 1e38]}}}
    pair = only_pair(first, run(small_sweep, "failing", search=failing))
    assert "failing has no winner: every trial failed or was stopped." in pair.cautions
    assert pair.winners is None
    assert [one.what for one in pair.methods] == ["vanilla (baseline)", "ce (baseline)"]
    shutil.rmtree(first.parent / "cache")
    pair = only_pair(first, directory(cut))
    assert pair.winners is not None
    assert pair.winners.gain["acc_all"].test == "paired"  # the same features, although the bank is missing
    assert pair.classes is None


def test_seeds_that_differ_by_the_same_images_prove_nothing(small_sweep: MakeSweep) -> None:
    steady = {"training": {"epochs": 1}, "search": {"trials": 1, "space": {"method.lr": {"choice": [1e-9]}}}}
    moved = {**steady, "search": {"trials": 1, "space": {"method.lr": {"choice": [1e-9]}}}, "method": {"kind": "las"}}
    first, second = run(small_sweep, "still", **steady), run(small_sweep, "also-still", **moved)
    pair = only_pair(first, second)
    assert not any(
        one.startswith("All seeds have the same accuracy") for one in pair.cautions
    )  # a difference of none is a tie
    vanilla = run(
        small_sweep,
        "vanilla",
        method={"kind": "tau_norm"},
        search={"trials": 1, "space": {"method.post_hoc.tau": {"choice": [1.0]}}},
    )
    assert any(one.startswith("All seeds have the same accuracy") for one in only_pair(vanilla, first).cautions)


def test_invalid_arguments_are_rejected(small_sweep: MakeSweep, tmp_path: Path) -> None:
    first = run(small_sweep, "only")
    with pytest.raises(UserError, match="at least two sweeps, got 1"):
        sweeps.compare(first)
    with pytest.raises(UserError, match=r"given only once, got more than once: .*/only"):
        sweeps.compare(first, first / "result.json")
    with pytest.raises(UserError, match="is not a sweep directory: it has no"):
        sweeps.compare(first, tmp_path)


def test_sweeps_of_the_same_name_are_labelled_by_their_directories(small_sweep: MakeSweep, tmp_path: Path) -> None:
    first = run(small_sweep, "name")
    second = tmp_path / "elsewhere" / "name"
    shutil.copytree(first, second)
    assert [side.label for side in sweeps.compare(first, second).sweeps] == [str(first), str(second)]


def test_the_command_prints_what_the_call_returns_within_a_hundred_columns(
    small_sweep: MakeSweep, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    places = [run(small_sweep, name, training={"epochs": epochs}) for name, epochs in (("a", 3), ("b", 9), ("c", 1))]
    monkeypatch.delenv("COLUMNS", raising=False)
    capsys.readouterr()
    assert main(["compare", *map(str, places), "--json"]) == 0
    found = SweepComparison.model_validate_json(capsys.readouterr().out)
    assert found == sweeps.compare(*places)
    assert [(pair.label, pair.reference) for pair in found.pairs] == [("b", "a"), ("c", "a")]
    assert main(["compare", *map(str, places)]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 100
    assert "\x1b" not in shown
    for said in (
        "b against a",
        "c against a",
        "training.epochs  3",
        "Benjamini-Hochberg",
        "Gains",
        "vanilla (baseline)",
    ):
        assert said in shown, said
    assert main(["compare", str(places[0])]) == 2
    assert "at least two sweeps" in capsys.readouterr().err


def test_a_report_of_several_sweeps_has_the_comparison(small_sweep: MakeSweep, tmp_path: Path) -> None:
    places = [run(small_sweep, name, training={"epochs": epochs}) for name, epochs in (("a", 3), ("b", 9))]
    written = write(places, tmp_path / "out")
    page = text(written)
    (pair,) = sweeps.compare(*places).pairs
    assert "b against a" in page
    assert "Differences in configuration" in page
    assert pair.winners is not None
    gains = rows(tmp_path / "out" / "tables" / "compared_1_gains.csv")
    assert float(gains[0]["all"]) == pytest.approx(pair.winners.gain["acc_all"].difference.value)
    assert gains[0]["verdict"].split()[0] == pair.winners.gain["acc_all"].verdict
    assert pair.classes is not None
    by_class = rows(tmp_path / "out" / "data" / "compared_1_gain_by_class.csv")
    assert [float(row["gain"]) for row in by_class] == [one.gain for one in pair.classes.changes]
    assert "data/compared_1_gain_by_class.csv" in page
    with (tmp_path / "out" / "tables" / "specs.csv").open() as stream:
        assert list(csv.reader(stream))[1] == ["training.epochs", "3", "9"]
