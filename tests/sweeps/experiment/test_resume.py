"""A resumed sweep: recorded trials are kept, new ones are those of an undisturbed sweep, lost heads are recovered."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from support.ledgers import cut, lines_of, pack_lines, run_lines, runs_of
from support.queues import in_random_order, outcomes, train_all

import sweeps
from lt_train.retrain import fused
from sweeps.analysis.load import Sweep, read_sweep, sweep_in_ledger
from sweeps.config.spec import SweepSpec
from sweeps.config.trials import search_trial
from sweeps.experiment.prepare import prepare
from sweeps.experiment.trial_queue import TrialQueue
from sweeps.search.algorithms import Grid, TreeParzen
from sweeps.search.base import Tried
from sweeps.store.ledger import Ledger, LedgerReader

MakeSweep = Callable[..., SweepSpec]

SECTIONS: dict[str, dict[str, Any]] = {
    "one method": {"search": {"trials": 9}, "selection": {"finalists": 2}, "resources": {"lanes_per_pack": 2}},
    "several methods": {
        "method": None,
        "methods": [
            "vanilla",
            {"method": "los", "space": {"method.smooth_factor": {"uniform": [0.1, 0.95]}}},
            {"method": "tau_norm", "space": {"method.post_hoc.tau": {"uniform": [0, 2]}}},
            {"name": "diverging", "method": "ce", "space": {"method.lr": {"loguniform": [1e37, 1e38]}}},
        ],
        "search": {"trials": 8, "space": {"method.lr": {"loguniform": [1e-3, 1e-1]}}},
    },
    "early stopping": {
        "search": {
            "trials": 14,
            "proposal_batch": 4,
            "early_stopping": {"kind": "successive_halving", "rungs": [1, 2]},
        },
        "selection": {"finalists": 2},
        "resources": {"lanes_per_pack": 8},
    },
}


@pytest.fixture(params=list(SECTIONS))
def spec(request: pytest.FixtureRequest, small_sweep: MakeSweep) -> SweepSpec:
    return small_sweep(**SECTIONS[request.param])


@pytest.fixture
def one_method(small_sweep: MakeSweep) -> SweepSpec:
    return small_sweep(**SECTIONS["one method"])


def run_in(place: Path, spec: SweepSpec, seed: int | None = None) -> TrialQueue:
    """Train what the ledger in `place` does not hold: in order, or with three workers in a random order."""
    bank, ledger = prepare(spec), Ledger(place)
    queue = TrialQueue(spec, bank, ledger)
    if seed is None:
        train_all(queue, bank)
    else:
        train_all(queue, bank, in_random_order(seed), workers=3)
    ledger.close()
    return queue


@pytest.fixture
def proposed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, list[dict[str, Any]]]]:
    """The number of the first trial and the values of every call of `TreeParzen.propose`."""
    calls: list[tuple[int, list[dict[str, Any]]]] = []
    propose = TreeParzen.propose

    def listen(self: TreeParzen, space: Any, seed: int, tried: Sequence[Tried], count: int) -> list[dict[str, Any]]:
        values = propose(self, space, seed, tried, count)
        calls.append((len(tried), values))
        return values

    monkeypatch.setattr(TreeParzen, "propose", listen)
    return calls


# Trials


def searched(sweep: Sweep, name: str) -> Iterator[Tried]:
    """The finished trials of a candidate as its search algorithm sees them."""
    found = [one for one in sweep.searched if one.trial.candidate == name]
    assert [one.trial.number for one in found] == list(range(len(found)))
    for one in found:
        if one.objective is None:
            yield Tried(one.trial.params, "failed")
        elif one.stopped is None:
            yield Tried(one.trial.params, "finished", one.objective)
        else:
            yield Tried(one.trial.params, "stopped", one.objective, one.stopped)


def replayed(sweep: Sweep) -> dict[str, list[tuple[dict[str, Any], dict[str, Any]]]]:
    """Every batch proposed again from what the ledger holds of the trials before it.

    Returns:
        By candidate, for every trial by number, the recorded values and those that are proposed now.
    """
    found: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]] = {}
    search = sweep.spec.search
    for candidate in sweep.spec.candidates():
        ended, pairs = list(searched(sweep, candidate.name)), found.setdefault(candidate.name, [])
        algorithm = search.algorithm if candidate.space else Grid()
        for first in range(0, len(ended), search.proposal_batch):
            running = max(0, first - search.proposal_batch)  # the batch before was being trained
            history = [*ended[:running], *(Tried(one.params, "running") for one in ended[running:first])]
            batch = [dict(one.params) for one in ended[first : first + search.proposal_batch]]
            count = min(search.proposal_batch, search.trials - first)
            again = algorithm.propose(candidate.space, candidate.seed, history, count)
            pairs += zip(batch, again, strict=True)
    return found


def test_a_full_replay_proposes_the_recorded_trials(spec: SweepSpec, tmp_path: Path) -> None:
    run_in(tmp_path, spec, seed=0)
    found = replayed(sweep_in_ledger(tmp_path, spec, LedgerReader(tmp_path), ""))
    for pairs in found.values():
        assert [before for before, _ in pairs] == [now for _, now in pairs]
    recorded = [line for line in lines_of(tmp_path) if line["event"] == "trial" and line["phase"] == "search"]
    assert sum(len(pairs) for pairs in found.values()) == len(recorded) > 5


@pytest.mark.slow
def test_an_interruption_after_any_pack_changes_nothing(spec: SweepSpec, tmp_path: Path) -> None:
    expected = outcomes(run_in(tmp_path / "whole", spec))
    run_in(tmp_path / "interrupted", spec, seed=0)
    packs = len(pack_lines(tmp_path / "interrupted"))
    for kept in range(packs):
        for later in (False, True):
            place = shutil.copytree(tmp_path / "interrupted", tmp_path / f"{kept}-{later}")
            cut(place, kept, proposed=later)
            assert len(pack_lines(place)) == kept
            assert outcomes(run_in(place, spec, seed=kept + 1)) == expected


def test_recorded_batches_are_not_proposed_again(
    one_method: SweepSpec, tmp_path: Path, proposed: list[tuple[int, list[dict[str, Any]]]]
) -> None:
    expected = outcomes(run_in(tmp_path, one_method))
    assert [first for first, _ in proposed] == [0, 2, 4, 6, 8]
    for kept in range(len(pack_lines(tmp_path)), -1, -2):
        cut(tmp_path, kept)
        recorded = sum(line["event"] == "trial" and line["phase"] == "search" for line in lines_of(tmp_path))
        proposed.clear()
        assert outcomes(run_in(tmp_path, one_method)) == expected
        assert [first for first, _ in proposed] == [first for first in (0, 2, 4, 6, 8) if first >= recorded]
        assert recorded == 9 or proposed, "the test must cover batches that are not recorded"


def test_a_batch_of_which_a_trial_is_lost_is_completed(one_method: SweepSpec, tmp_path: Path) -> None:
    """Its line may be damaged; the other trials of the batch are recorded, and so are its runs."""
    expected = outcomes(run_in(tmp_path, one_method))
    file, runs = tmp_path / "ledger.jsonl", run_lines(tmp_path)
    texts = file.read_text().splitlines(keepends=True)
    (lost,) = [text for text in texts if '"event":"trial"' in text and '"search-0005"' in text]
    file.write_text("".join(text for text in texts if text != lost))
    assert outcomes(run_in(tmp_path, one_method)) == expected
    assert run_lines(tmp_path) == runs, "nothing is trained again"


def other_values(self: TreeParzen, space: Any, seed: int, tried: Sequence[Tried], count: int) -> list[dict[str, Any]]:
    """The proposals of another search."""
    return [{"method.smooth_factor": 0.5, "method.lr": 0.01 + 0.001 * (len(tried) + number)} for number in range(count)]


def test_recorded_trials_are_kept_if_the_search_would_propose_others_now(
    one_method: SweepSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = outcomes(run_in(tmp_path, one_method))
    cut(tmp_path, 4)
    recorded = LedgerReader(tmp_path)
    kept = [name for name, trial in recorded.trials.items() if trial.phase == "search"]
    assert 2 < len(kept) < 9
    monkeypatch.setattr(TreeParzen, "propose", other_values)
    resumed = run_in(tmp_path, one_method)
    for name, trial in resumed.trials.items():
        if trial.phase == "search" and name in kept:
            assert outcomes(resumed)[name] == before[name]
        elif trial.phase == "search":
            assert trial.params == {"method.smooth_factor": 0.5, "method.lr": 0.01 + 0.001 * trial.number}
    assert run_lines(tmp_path)[: len(recorded.runs)] == [
        line for line in run_lines(tmp_path) if line["key"] in recorded.runs
    ]
    sweep = sweep_in_ledger(tmp_path, one_method, LedgerReader(tmp_path), "")
    assert {one.trial.name: one.trial for one in sweep.every} == resumed.trials


def test_a_recorded_trial_is_what_the_search_learns_from(one_method: SweepSpec, tmp_path: Path) -> None:
    """A first trial that the search would not have proposed, as of an earlier version of Optuna."""
    (candidate,) = one_method.candidates()
    trial = search_trial(one_method, candidate, 0, {"method.smooth_factor": 0.123, "method.lr": 0.0456})
    ledger = Ledger(tmp_path / "other")
    ledger.propose([(trial, ["0" * 64, "1" * 64])])
    ledger.close()
    undisturbed, resumed = run_in(tmp_path / "one", one_method), run_in(tmp_path / "other", one_method)
    assert resumed.finished["search-0000"].trial == trial
    pairs = replayed(sweep_in_ledger(tmp_path / "other", one_method, LedgerReader(tmp_path / "other"), ""))["los"]
    assert [number for number, (recorded, proposed) in enumerate(pairs) if recorded != proposed] == [0]
    other = [number for number in range(1, 9) if pairs[number][0] != undisturbed.trials[f"search-{number:04d}"].params]
    assert other, "the others are those of an undisturbed sweep"
    assert min(other) > 1, "but startup trials do not depend on other trials"


def interrupted(spec: SweepSpec, monkeypatch: pytest.MonkeyPatch, packs: int) -> None:
    """Run a sweep with another version of Optuna until it has trained this many packs."""
    fit, calls = fused.fit, []

    def limited(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) > packs:
            raise KeyboardInterrupt
        return fit(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr("sweeps.config.trials.version", lambda package: "3.0.0")
        patch.setattr(fused, "fit", limited)
        with pytest.raises(KeyboardInterrupt):
            sweeps.run(spec)


def test_another_version_of_optuna_is_noted_and_is_not_another_search(
    small_sweep: MakeSweep, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    undisturbed = sweeps.run(small_sweep(name="undisturbed"))
    assert not any("proposed with" in note for note in undisturbed.notes)
    assert "proposed with" not in caplog.text
    spec = small_sweep()
    interrupted(spec, monkeypatch, packs=3)
    assert "proposed with" not in caplog.text
    result = sweeps.run(spec)
    warnings = [record for record in caplog.records if "proposed with" in record.getMessage()]
    assert [record.levelno for record in warnings] == [logging.WARNING]
    for text in ("3.0.0", version("optuna")):
        assert text in warnings[0].getMessage()
        (note,) = [note for note in result.notes if "proposed with" in note]
        assert text in note
    assert (result.trials, result.winner) == (undisturbed.trials, undisturbed.winner)
    caplog.clear()
    again = sweeps.run(spec)
    assert (again.trials, again.winner, again.notes) == (result.trials, result.winner, result.notes)
    assert "proposed with" not in caplog.text, "no trial is left to propose"


def test_a_version_of_optuna_that_proposed_nothing_is_not_noted(
    small_sweep: MakeSweep, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spec = small_sweep(search={"trials": 2})
    interrupted(spec, monkeypatch, packs=2)  # both trials are proposed, one is not trained
    result = sweeps.run(spec)
    assert "proposed with" not in caplog.text
    assert not any("proposed with" in note for note in result.notes)


# Heads


def lose(place: Path, pack: str, how: str) -> None:
    """Lose the heads of a pack."""
    (file,) = (place / "heads").glob(f"{pack}.*")
    if how == "removed":
        file.unlink()
    else:
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)


@pytest.mark.parametrize("how", ["removed", "damaged"])
@pytest.mark.parametrize("which", ["winner", "baseline", "finalist", "winner without finalists"])
def test_a_lost_head_that_is_needed_is_trained_again(
    which: str, how: str, small_sweep: MakeSweep, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    finalists = 0 if "without" in which else 2
    spec = small_sweep(selection={"finalists": finalists}, resources={"lanes_per_pack": 2})
    whole = run_in(tmp_path, spec)
    winner = whole.winner()
    assert winner is not None
    records = winner.records
    if which == "baseline":
        records = whole.finished["baseline-ce"].records
    elif which == "finalist":
        (other,) = [one for one in whole.finished.values() if one.trial.phase == "finalist" and one != winner]
        records = other.records
    (pack,) = {record.pack for record in records}
    assert pack.split("-")[0] == {"baseline": "baseline", "winner without finalists": "search"}.get(which, "finalist")
    expected = outcomes(whole)
    head = {name: tensor.clone() for name, tensor in LedgerReader(tmp_path).head(records[0].key).items()}
    recorded, files = run_lines(tmp_path), {file.name for file in (tmp_path / "heads").iterdir()}
    lose(tmp_path, pack, how)
    caplog.clear()
    resumed = run_in(tmp_path, spec)
    assert f"the trained heads of {pack} are missing; its " in caplog.text
    again = run_lines(tmp_path)[len(recorded) :]
    assert [run["key"] for run in again] == [run["key"] for run in recorded if run["pack"] == pack]
    assert outcomes(resumed) == expected
    found = LedgerReader(tmp_path).head(records[0].key)
    assert all(torch.equal(found[name], tensor) for name, tensor in head.items())
    assert {file.name for file in (tmp_path / "heads").iterdir()} == files
    assert run_in(tmp_path, spec).ledger.runs == resumed.ledger.runs
    assert len(run_lines(tmp_path)) == len(recorded) + len(again), "the next resume trains nothing"


def test_removed_heads_of_runs_that_can_no_longer_win_are_not_trained_again(
    small_sweep: MakeSweep, tmp_path: Path
) -> None:
    spec = small_sweep(selection={"extended_training": 2}, resources={"lanes_per_pack": 2})
    queue = run_in(tmp_path, spec)
    recorded, winner = run_lines(tmp_path), queue.winner()
    assert winner is not None
    kept = {file.name.rsplit(".", 2)[0] for file in (tmp_path / "heads").iterdir()}
    assert kept == {"baseline-0", "baseline-1", winner.records[0].pack}
    removed = {line["pack"] for line in pack_lines(tmp_path) if line["heads"]} - kept
    assert "extended-0" in removed
    assert len(removed) == 7, "the other trials and the extended training"
    bank, ledger = prepare(spec), Ledger(tmp_path)
    assert TrialQueue(spec, bank, ledger).exhausted()
    ledger.close()
    assert run_lines(tmp_path) == recorded


def test_a_finished_sweep_whose_champion_is_lost_is_resumed_to_the_same_result(small_sweep: MakeSweep) -> None:
    spec = small_sweep(selection={"finalists": 2}, resources={"lanes_per_pack": 2})
    first = sweeps.run(spec)
    place = Path(spec.storage) / spec.name
    sweep = read_sweep(place)
    assert sweep.winner is not None
    runs = runs_of(spec)
    lose(place, sweep.winner.records[0].pack, "removed")
    assert sweep.classifier(sweep.winner) is None
    resumed = sweeps.resume(place)
    assert resumed == first.model_copy(update={"seconds": resumed.seconds})
    assert len(runs_of(spec)) == len(runs) + 2
    assert sweep.classifier(sweep.winner) is not None


# The ledger as a table


def test_pandas_reads_the_ledger_as_a_table(small_sweep: MakeSweep) -> None:
    spec = small_sweep(**SECTIONS["several methods"])
    result = sweeps.run(spec)
    table = pd.read_json(Path(spec.storage) / spec.name / "ledger.jsonl", lines=True)
    runs = table[(table.event == "run") & (table.term == table.term.cummax())].drop_duplicates("key", keep="last")
    assert len(runs) == result.runs.finished + result.runs.stopped + result.runs.failed
    columns = (
        "trial phase method number seed status epochs epoch acc_all acc_few val_acc_all loma_mean loma_cv key pack"
    )
    assert {*columns.split(), "method.lr", "method.post_hoc.tau"} <= {*runs}
    assert runs.status.value_counts().to_dict() == {"finished": result.runs.finished, "failed": result.runs.failed}
    assert runs[runs.status == "failed"].failure.str.contains("diverged").all()
    los = runs[(runs.method == "los") & (runs.phase == "search")]
    assert los["method.lr"].between(1e-3, 1e-1).all()
    assert los["method.post_hoc.tau"].isna().all()
    trials = {trial.number: trial for trial in result.trials if trial.method == "los"}
    means = los.groupby("number")[["val_acc_all", "acc_few", "method.lr"]].mean()
    assert len(means) == len(trials) == 8
    for number, row in means.iterrows():
        assert row.val_acc_all == pytest.approx(trials[number].objective)
        assert row.acc_few == pytest.approx(sum(seed.acc_few for seed in trials[number].seeds) / 2)
        assert row["method.lr"] == pytest.approx(trials[number].params["method.lr"])
