"""Sweeps against sweeps: small real ones, compared by call and by command, and on the page of a report."""

from __future__ import annotations

import csv
import json
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
from sweeps.analysis.comparison import Comparison, Pair
from sweeps.cli.main import main
from sweeps.config.spec import SweepSpec
from sweeps.reporting.comparison_sections import comparison_sections
from sweeps.reporting.write import write

MakeSweep = Callable[..., SweepSpec]
ONE_LR = {"method.lr": {"loguniform": [1e-3, 1e-1]}}


def run(small_sweep: MakeSweep, name: str, **sections: Any) -> Path:
    defaults: dict[str, Any] = {"search": {"trials": 3, "space": ONE_LR}, "selection": {"seeds": 3}}
    spec = small_sweep(name=name, **(defaults | sections))
    sweeps.run(spec)
    return directory(spec)


def only_pair(*places: Path) -> Pair:
    (pair,) = sweeps.compare(*places).pairs
    return pair


def test_on_shared_seeds_and_images_winners_are_paired(small_sweep: MakeSweep) -> None:
    first, second = run(small_sweep, "short"), run(small_sweep, "long", training={"epochs": 9})
    found = sweeps.compare(first, second)
    assert [side.label for side in found.sweeps] == ["short", "long"]
    assert found.specs == {"training.epochs": [3, 9]}
    (pair,) = found.pairs
    assert (pair.label, pair.reference, pair.comparable) == ("long", "short", True)
    assert pair.cautions[0] == (
        "Both were chosen on the very seeds compared here, best of 3 trials each, which flatters them."
    )
    assert {one.split(":")[0] for one in pair.cautions[1:]} <= {"All seeds come to the same number"}
    one, other = (sweeps.Result.model_validate_json((place / "result.json").read_text()) for place in (first, second))
    assert one.winner is not None
    assert other.winner is not None
    assert pair.winners is not None
    assert (pair.winners.test, pair.winners.pairs) == ("paired", 3)
    for split in ("all", "many", "medium", "few"):
        mine, theirs = (getattr(result.winner.mean, f"acc_{split}") for result in (other, one))
        assert pair.winners.gain[f"acc_{split}"].mean == pytest.approx(mine - theirs)
    assert [one.what for one in pair.methods] == ["los", "vanilla (baseline)", "ce (baseline)"]
    assert {one.what: one.verdict for one in pair.methods}["vanilla (baseline)"] == "tied"


def test_the_winners_classes_are_those_of_the_records(small_sweep: MakeSweep) -> None:
    first, second = run(small_sweep, "short"), run(small_sweep, "long", training={"epochs": 9})
    classes = only_pair(first, second).classes
    assert classes is not None
    assert [one.number for one in classes.changes] == list(range(6))
    assert [one.images for one in classes.changes] == [130, 80, 40, 21, 12, 6]
    gained, lost = classes.changed(1), classes.changed(-1)
    assert [one.gain for one in gained] == sorted((one.gain for one in gained), reverse=True)
    assert all(one.gain < 0 for one in lost)
    assert {one.number for one in classes.changes if one.sure} == {
        one.number for sign in (1, -1) for one in classes.changed(sign, sure=True)
    }
    gain = np.mean([one.gain for one in classes.changes])
    winners = only_pair(first, second).winners
    assert winners is not None
    assert gain == pytest.approx(winners.gain["acc_all"].mean, abs=1e-6)  # as many test images of every class
    assert classes.by_luck == pytest.approx(0.3)


def test_with_one_seed_no_class_is_tested_and_none_is_said_to_differ_by_luck(small_sweep: MakeSweep) -> None:
    one_seed = {"selection": {"seeds": 1}}
    found = sweeps.compare(run(small_sweep, "a", **one_seed), run(small_sweep, "b", training={"epochs": 9}, **one_seed))
    classes = found.pairs[0].classes
    assert classes is not None
    assert (classes.test, classes.by_luck) == ("none", None)
    shown = [one for section in comparison_sections(found) for one in section.text]
    assert any("One run on a side cannot tell" in one for one in shown)


def test_the_table_of_classes_names_those_beyond_luck_first_and_the_rate_is_of_them(small_sweep: MakeSweep) -> None:
    found = sweeps.compare(run(small_sweep, "short"), run(small_sweep, "long", training={"epochs": 9}))
    classes = found.pairs[0].classes
    assert classes is not None
    gained = [0.03, 0.02, 0.01, -0.01, -0.02, -0.03]
    sure = [False, True, False, False, True, False]
    changes = [
        one.model_copy(update={"gain": gain, "sure": beyond, "p_value": 0.01})
        for one, gain, beyond in zip(classes.changes, gained, sure, strict=True)
    ]
    pair = found.pairs[0].model_copy(update={"classes": classes.model_copy(update={"changes": changes})})
    _, section = comparison_sections(found.model_copy(update={"pairs": [pair]}))
    assert "of those beyond luck at most 5% are luck, on average" in section.text[-1]
    assert [row[0] for row in section.tables[-1].rows] == ["1", "4", "0", "2", "3", "5"]
    assert [row[-1] for row in section.tables[-1].rows] == ["gained", "lost", *["maybe luck"] * 4]


def test_a_sweep_against_its_copy_is_a_tie_in_everything(small_sweep: MakeSweep) -> None:
    first = run(small_sweep, "same")
    second = first.with_name("copy")
    shutil.copytree(first, second)
    pair = only_pair(first, second)
    assert pair.winners is not None
    assert pair.winners.verdict == "tied"
    assert all(one.verdict == "tied" for one in pair.methods)
    assert pair.classes is not None
    assert not pair.classes.changed(1)
    assert not pair.classes.changed(-1)


def test_other_seeds_are_compared_by_welch_and_the_protocol_is_told(small_sweep: MakeSweep) -> None:
    first = run(small_sweep, "search-seeds")
    chosen = {"seeds": 3, "finalists": 1, "on": "test", "extended_training": None}
    second = run(small_sweep, "fresh-seeds", selection=chosen)
    pair = only_pair(first, second)
    assert pair.winners is not None
    assert (pair.winners.test, pair.winners.pairs) == ("welch", 0)
    assert pair.cautions == [
        "fresh-seeds selected otherwise than search-seeds, which may be the difference: on test, not val; "
        "finalists 1, not 0.",
        "fresh-seeds was chosen on the test set, best of 3 trials, which flatters it.",
        "search-seeds was chosen on the very seeds compared here, best of 3 trials, which flatters it.",
    ]


def test_two_that_were_both_chosen_by_their_own_numbers_are_both_said_to_flatter(small_sweep: MakeSweep) -> None:
    on_test = {"seeds": 2, "on": "test"}
    more = {"trials": 4, "space": ONE_LR}
    first = run(small_sweep, "first", selection=on_test)
    second = run(small_sweep, "second", selection=on_test, search=more)
    assert (
        "Both were chosen on the test set and on the very seeds compared here, best of 4 trials and 3, which flatters "
        "them."
    ) in only_pair(first, second).cautions


def test_another_metric_is_judged_in_what_both_have(small_sweep: MakeSweep) -> None:
    pair = only_pair(run(small_sweep, "a"), run(small_sweep, "b", selection={"seeds": 3, "metric": "acc_few"}))
    assert pair.metric == "acc_all"
    assert "Judged in acc_all, which both have." in pair.cautions


def test_other_images_of_the_same_kind_are_not_paired_and_other_splits_left_out(
    small_sweep: MakeSweep, tmp_path: Path
) -> None:
    flat = write_features(tmp_path / "flat.npz", (130, 100, 80, 60, 40, 25))
    pair = only_pair(run(small_sweep, "steep"), run(small_sweep, "flat", dataset={"path": str(flat)}))
    assert pair.comparable
    assert pair.winners is not None
    assert pair.winners.test == "welch"
    assert pair.winners.gain.keys() == {"acc_all"}
    assert any(one.startswith("Other test images") for one in pair.cautions)
    assert any(one.startswith("Many, medium and few are not the same classes") for one in pair.cautions)
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
    assert pair.winners.test == "paired"
    assert any(one.startswith("Other features of the same test images") for one in pair.cautions)
    assert "Classes have other numbers of training images." in pair.cautions


def test_other_classes_are_said_and_nothing_is_compared(small_sweep: MakeSweep, tmp_path: Path) -> None:
    four = write_features(tmp_path / "four.npz", (130, 80, 40, 12))
    pair = only_pair(run(small_sweep, "six"), run(small_sweep, "four", dataset={"path": str(four)}))
    assert not pair.comparable
    assert (pair.winners, pair.methods, pair.classes) == (None, [], None)
    assert pair.cautions[0] == ("Other classes (4, not 6): accuracies are not comparable, so no difference is shown.")


def test_other_data_are_said_and_nothing_is_compared(small_sweep: MakeSweep) -> None:
    first = run(small_sweep, "mine")
    place = first.with_name("digits")
    shutil.copytree(first, place)
    identity = json.loads((place / "sweep.json").read_text())
    identity["spec"] |= {"dataset": {"kind": "digits_lt"}, "backbone": "small_cnn", "stage1": "ce"}
    identity["bank_fingerprint"] = "0" * 64
    (place / "sweep.json").write_text(json.dumps(identity))
    (place / "result.json").unlink()
    pair = only_pair(first, place)
    assert not pair.comparable
    assert pair.cautions[0].startswith("Other data (digits_lt, not arrays)")


def test_methods_are_compared_with_their_namesakes_and_the_rest_is_said_to_be_given(small_sweep: MakeSweep) -> None:
    first = run(small_sweep, "two", method=None, methods=["los", "focal"])
    second = run(small_sweep, "one", search={"trials": 2, "space": ONE_LR})
    found = sweeps.compare(first, second)
    assert [one.what for one in found.pairs[0].methods] == ["los", "vanilla (baseline)"]
    assert found.specs["methods.focal"] == ["given", None]
    assert found.specs["baselines.ce"] == [None, "given"]
    assert found.specs["search.trials"] == [3, 2]
    assert not any("lr" in path for path in found.specs)


def test_an_unfinished_sweep_one_without_a_winner_and_one_whose_bank_is_gone_are_compared_as_far_as_they_go(
    small_sweep: MakeSweep,
) -> None:
    first = run(small_sweep, "whole")
    cut = small_sweep(name="cut", search={"trials": 6, "proposal_batch": 2, "space": ONE_LR}, selection={"seeds": 3})
    sweeps.run(cut)
    cut_short(cut, 4)
    pair = only_pair(first, directory(cut))
    assert pair.cautions[0] == (
        "cut is unfinished: 2 of 6 trials are done. The leader may change, and the sampler has not said its last word."
    )
    assert pair.winners is not None
    done = small_sweep(name="done", search={"trials": 3, "space": ONE_LR}, selection={"seeds": 3})
    sweeps.run(done)
    (directory(done) / "result.json").unlink()
    assert only_pair(first, directory(done)).cautions[0] == (
        "done is unfinished: all 3 trials are done, and the leader stays: what is missing decides nothing."
    )
    failing = {"trials": 2, "space": {"method.lr": {"loguniform": [1e37, 1e38]}}}
    pair = only_pair(first, run(small_sweep, "failing", search=failing))
    assert "failing has no winner: every trial failed or was stopped." in pair.cautions
    assert pair.winners is None
    assert [one.what for one in pair.methods] == ["vanilla (baseline)", "ce (baseline)"]
    shutil.rmtree(first.parent / "cache")
    pair = only_pair(first, directory(cut))
    assert pair.winners is not None
    assert pair.winners.test == "paired"  # the same features, whether they are there or not
    assert pair.classes is None


def test_seeds_that_agree_to_the_last_image_are_no_proof(small_sweep: MakeSweep) -> None:
    steady = {"training": {"epochs": 1}, "search": {"trials": 1, "space": {"method.lr": {"choice": [1e-9]}}}}
    moved = {**steady, "search": {"trials": 1, "space": {"method.lr": {"choice": [1e-9]}}}, "method": {"kind": "las"}}
    first, second = run(small_sweep, "still", **steady), run(small_sweep, "also-still", **moved)
    pair = only_pair(first, second)
    assert not any(one.startswith("All seeds come") for one in pair.cautions)  # a difference of none is a tie
    vanilla = run(
        small_sweep,
        "vanilla",
        method={"kind": "tau_norm"},
        search={"trials": 1, "space": {"method.post_hoc.tau": {"choice": [1.0]}}},
    )
    assert any(one.startswith("All seeds come") for one in only_pair(vanilla, first).cautions)


def test_what_cannot_be_compared_is_refused(small_sweep: MakeSweep, tmp_path: Path) -> None:
    first = run(small_sweep, "only")
    with pytest.raises(UserError, match="a comparison is of at least two sweeps, got 1"):
        sweeps.compare(first)
    with pytest.raises(UserError, match=r"each sweep may be given once, got .*/only more than once"):
        sweeps.compare(first, first / "result.json")
    with pytest.raises(UserError, match="is not a sweep directory: it has no"):
        sweeps.compare(first, tmp_path)


def test_sweeps_of_one_name_are_told_apart_by_their_places(small_sweep: MakeSweep, tmp_path: Path) -> None:
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
    found = Comparison.model_validate_json(capsys.readouterr().out)
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


def test_a_report_of_several_holds_the_comparison(small_sweep: MakeSweep, tmp_path: Path) -> None:
    places = [run(small_sweep, name, training={"epochs": epochs}) for name, epochs in (("a", 3), ("b", 9))]
    written = write(places, tmp_path / "out")
    page = text(written)
    (pair,) = sweeps.compare(*places).pairs
    assert "b against a" in page
    assert "In what the sweep files differ" in page
    assert pair.winners is not None
    gains = rows(tmp_path / "out" / "tables" / "compared_1_gains.csv")
    assert float(gains[0]["all"]) == pytest.approx(pair.winners.gain["acc_all"].mean)
    assert gains[0]["is"] == pair.winners.verdict
    assert pair.classes is not None
    by_class = rows(tmp_path / "out" / "data" / "compared_1_gain_by_class.csv")
    assert [float(row["gain"]) for row in by_class] == [one.gain for one in pair.classes.changes]
    assert "data/compared_1_gain_by_class.csv" in page
    with (tmp_path / "out" / "tables" / "specs.csv").open() as stream:
        assert list(csv.reader(stream))[1] == ["training.epochs", "3", "9"]
