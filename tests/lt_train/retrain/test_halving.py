"""Successive halving: both engines stop the same trials, and the survivors are unaffected."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.banks import make_bank
from support.compositions import TRAINED
from support.engines import (
    Engine,
    agree,
    assert_same,
    every_engine,
    kept,
    lone_run,
    make_runs,
    stack_bytes,
    with_method,
)

from lt_train.core.fields import substitute
from lt_train.methods.base import TrainingSpec
from lt_train.retrain import fused
from lt_train.retrain.base import EpochSelection, Halving, HalvingTrials, Run
from lt_train.retrain.stack import Stack

BANK = make_bank()
LAST, BEST = EpochSelection("last"), EpochSelection("best")


def trials(rates: Sequence[float], *, seeds: Sequence[int] = (0, 7), epochs: int = 6, kind: str = "ce") -> list[Run]:
    """A trial for each learning rate, seed by seed: all of seed 0, then all of seed 7."""
    return [
        Run(substitute(TRAINED[kind], {"lr": rate}), TrainingSpec(epochs=epochs), seed)
        for seed in seeds
        for rate in rates
    ]


RATES = (0.0002, 0.02, 1e-30, 0.1, 0.002, 1e-9, 0.0005)
"""Far apart, so that rounding does not change the ranking."""


# Both engines


@pytest.mark.parametrize("kind", TRAINED)
def test_both_engines_stop_the_same_trials(kind: str) -> None:
    results = agree(BANK, trials(RATES[:5], epochs=3, kind=kind), EpochSelection("best", "test"), Halving((1, 2)))
    stopped = [result.stopped for result in results]
    assert stopped[:5] == stopped[5:], "all seeds of a trial stop together"
    assert sorted(stopped[:5], key=lambda rung: rung or 9) == [1, 1, 2, None, None]
    for result in results:
        assert len(result.test_accuracy) == len(result.train_loss) == (result.stopped or 3)
        assert kept(result).epoch < len(result.test_accuracy)


@pytest.mark.parametrize("head", ["cosine", "lws", "disalign", "mlp"])
def test_survivors_on_other_heads_are_those_of_the_reference(head: str) -> None:
    method = type(TRAINED["los"]).model_validate_json(f'{{"head": {{"kind": "{head}"}}, "momentum": 0.8}}')
    runs = [replace(run, method=substitute(method, {"lr": run.method.lr})) for run in trials(RATES[:5], epochs=4)]
    assert {result.stopped for result in agree(BANK, runs, BEST, Halving((2, 3)))} == {2, 3, None}


@pytest.mark.parametrize("rule", [LAST, BEST], ids=str)
@pytest.mark.parametrize("lanes", [1, 3, 100])
def test_survivors_are_unaffected(rule: EpochSelection, lanes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Survivors agree with runs without halving; stopped runs with the beginning of theirs, whatever the stacks."""
    monkeypatch.setattr(fused, "STACK_BYTES", stack_bytes(BANK, trials(RATES)[0], lanes))
    runs = [with_method(run, momentum=0.5 + 0.05 * index) for index, run in enumerate(trials(RATES, seeds=(0,)))]
    runs += [replace(run, seed=7) for run in runs]
    whole = fused.fit(BANK, runs, rule=rule)
    for run, found, expected in zip(
        runs, fused.fit(BANK, runs, rule=rule, halving=Halving((1, 2, 4))), whole, strict=True
    ):
        if found.stopped is None:
            assert_same(BANK, run, found, expected, 1e-5, rule)
        else:
            np.testing.assert_allclose(found.train_loss, expected.train_loss[: found.stopped], rtol=1e-5)
            np.testing.assert_allclose(found.test_accuracy, expected.test_accuracy[: found.stopped], atol=0.0061)


def test_the_head_of_a_stopped_run_is_that_of_its_last_epoch() -> None:
    """Not of the next epoch, nor of the lane that took its position."""
    runs = trials(RATES)
    results = fused.fit(BANK, runs, halving=Halving((2,)))
    for run, result in zip(runs, results, strict=True):
        if result.stopped is None:
            continue
        features, labels = BANK.test.features, BANK.test.labels
        state = {name: torch.from_numpy(array) for name, array in kept(result).state.items()}
        logits = run.method.classifier(state)(features).mean(dim=0)
        right = float((logits.argmax(dim=-1) == labels).float().mean())
        assert result.test_accuracy[1, 0] == pytest.approx(right, abs=2e-3)


def test_stopped_runs_are_not_trained_further(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts the runs trained in each epoch."""
    trained = [0] * 6
    train_epoch = Stack.train_epoch

    def counted(self: Stack) -> torch.Tensor:
        trained[self.finished] += self.shape[0] * self.shape[1]
        return train_epoch(self)

    monkeypatch.setattr(Stack, "train_epoch", counted)
    fused.fit(BANK, trials(RATES), halving=Halving((1, 3)))
    assert trained == [14, 8, 8, 4, 4, 4]


# The rule


@every_engine
@pytest.mark.parametrize(
    ("rungs", "factor", "active"),
    [
        ((1,), 2.0, [7, 4, 4, 4, 4, 4]),
        ((1, 2), 3.0, [7, 3, 1, 1, 1, 1]),
        ((2, 3, 4, 5), 2.0, [7, 7, 4, 2, 1, 1]),
        ((1,), 1.01, [7] * 6),
        ((1,), 100.0, [7, 1, 1, 1, 1, 1]),
        ((6,), 2.0, [7] * 6),
        ((3, 6, 50), 2.0, [7, 7, 7, 4, 4, 4]),
    ],
)
def test_the_best_n_over_factor_continue(
    engine: Engine, rungs: tuple[int, ...], factor: float, active: list[int]
) -> None:
    results = engine(BANK, trials(RATES, seeds=(0,)), halving=Halving(rungs, factor))
    assert [sum(len(result.train_loss) > epoch for result in results) for epoch in range(6)] == active


@every_engine
def test_a_trial_is_ranked_by_the_mean_over_its_seeds(engine: Engine) -> None:
    runs = trials(RATES, seeds=(0, 7, 9))
    whole = engine(BANK, runs)
    means = np.array([result.val_accuracy[1, 0] for result in whole if result.val_accuracy is not None])
    order = np.argsort(-means.reshape(3, 7).mean(axis=0), kind="stable")
    results = engine(BANK, runs, halving=Halving((2,)))
    left = [index % 7 for index, result in enumerate(results) if result.stopped is None]
    assert sorted(left) == sorted(np.tile(order[:4], 3).tolist())


@every_engine
def test_ties_go_to_the_trial_that_comes_first(engine: Engine) -> None:
    """With negligible rates every trial has the accuracy of the start."""
    rates = (4e-30, 1e-30, 3e-30, 2e-30)
    for seeds in ((0,), (0, 7)):
        results = engine(BANK, trials(rates, seeds=seeds), halving=Halving((1, 2)))
        assert [result.stopped for result in results] == [None, 2, 1, 1] * len(seeds)


@every_engine
def test_the_order_of_runs_in_a_pack_has_no_effect(engine: Engine) -> None:
    """Seeds in any order and the runs of a trial not adjacent; the order of trials is unchanged."""
    runs = trials(RATES)
    order = [7, 0, 1, 9, 2, 8, 10, 4, 11, 3, 5, 13, 12, 6]
    straight = engine(BANK, runs, halving=Halving((1, 3)))
    mixed = engine(BANK, [runs[index] for index in order], halving=Halving((1, 3)))
    for index, result in zip(order, mixed, strict=True):
        assert_same(BANK, runs[index], result, straight[index], 1e-5, LAST)


@every_engine
def test_ties_of_mixed_runs_go_by_the_first_run_of_a_trial(engine: Engine) -> None:
    runs = trials((1e-30, 2e-30, 3e-30, 4e-30))
    order = [6, 0, 5, 2, 1, 7, 4, 3]  # trials 2, 0, 1, 3
    results = engine(BANK, [runs[index] for index in order], halving=Halving((1, 2)))
    by_trial = dict(sorted((index % 4, result.stopped) for index, result in zip(order, results, strict=True)))
    assert by_trial == {0: 2, 1: 1, 2: None, 3: 1}


@every_engine
def test_a_failed_trial_is_last(engine: Engine) -> None:
    """It displaces no other trial, and is reported as failed, not as stopped."""
    runs = trials(RATES)
    broken = [with_method(run, lr=1e38, weight_decay=1e3) if run.method.lr == 0.1 else run for run in runs]
    results = engine(BANK, broken, halving=Halving((1,)))
    failed = [index for index, result in enumerate(results) if result.failure is not None]
    assert failed == [RATES.index(0.1), RATES.index(0.1) + 7]
    assert {results[index].stopped for index in failed} == {None}
    assert sum(result.stopped is None for result in results) == 8 + 2


def test_a_trial_that_fails_after_a_rung_is_not_replaced() -> None:
    """It was ranked at the rung by its accuracies until then."""
    document: dict[str, object] = {"kind": "ce", "lr": 1.0, "momentum": 0.0, "weight_decay": 300.0}
    runs = [lone_run(document, epochs=12, seed=3), *trials((1e-30, 2e-30), seeds=(3,), epochs=12)]
    whole = fused.fit(BANK, runs)
    until = len(whole[0].test_accuracy)
    assert 2 <= until < 12
    results = agree(BANK, runs, LAST, Halving((until - 1,), factor=1.5))
    again = agree(BANK, runs, LAST, Halving((until + 1,), factor=1.5))
    assert results[0].failure == again[0].failure == whole[0].failure
    assert [result.stopped for result in again] == [None, None, None], "the failed trial ranks last"
    assert [result.stopped for result in results] == [None, None, until - 1], (
        "it ranked ahead of another trial at the rung"
    )


def test_a_pack_in_which_every_run_fails() -> None:
    runs = [with_method(run, lr=1e38, weight_decay=1e3) for run in trials(RATES)]
    assert {result.stopped for result in agree(BANK, runs, LAST, Halving((1, 2)))} == {None}


@every_engine
def test_finished_runs_of_other_lengths_are_not_affected(engine: Engine) -> None:
    """Baselines that train nothing, or fewer epochs than the rung, are not ranked."""
    short = trials((0.05, 0.06), epochs=2)
    long = trials(RATES[:4], epochs=6)
    runs = [lone_run({"kind": "vanilla"}), *short, *long, *make_runs("tau_norm")]
    results = engine(BANK, runs, halving=Halving((2, 4)))
    assert {result.stopped for index, result in enumerate(results) if not 5 <= index < 13} == {None}
    assert sorted(str(result.stopped) for result in results[5:13]) == ["2"] * 4 + ["4"] * 2 + ["None"] * 2
    assert [len(result.test_accuracy) for result in results[:5]] == [1, 2, 2, 2, 2]


@pytest.mark.parametrize("metric", ["acc_all", "acc_few"])
@pytest.mark.parametrize("epoch", ["last", "best"])
@pytest.mark.parametrize("on", ["val", "test"])
def test_trials_are_ranked_by_the_rule_of_the_pack(on: str, epoch: str, metric: str) -> None:
    rule = EpochSelection(epoch, on, metric)  # type: ignore[arg-type]
    runs = make_runs("los", epochs=4, seeds=(0, 0, 0, 0, 0))
    whole = fused.fit(BANK, runs, rule=rule)
    column = ("acc_all", "acc_many", "acc_medium", "acc_few").index(metric)
    scores = []
    for result in whole:
        assert result.val_accuracy is not None
        seen = (result.val_accuracy if on == "val" else result.test_accuracy)[:3, column]
        scores.append(float(seen[-1] if epoch == "last" else seen.max()))
    results = fused.fit(BANK, runs, rule=rule, halving=Halving((3,)))
    ranked = sorted(range(5), key=lambda index: -scores[index])
    assert sorted(ranked[:3]) == [index for index, result in enumerate(results) if result.stopped is None]


# By hand, from curves alone


def curves(*values: Sequence[float]) -> list[NDArray[np.float32]]:
    """`[E, 4]` a run: the same number in every column."""
    return [np.repeat(np.array(one, dtype=np.float32)[:, None], 4, axis=1) for one in values]


def test_survivors_by_hand() -> None:
    runs = trials((0.1, 0.2, 0.3), epochs=4)  # runs 0 and 3, 1 and 4, 2 and 5 are trials
    halving = Halving((2,), factor=2.0)
    shown = curves([0.1, 0.5], [0.9, 0.2], [0.3, 0.3], [0.1, 0.1], [0.9, 0.2], [0.3, 0.35])
    everything = set(range(6))
    assert HalvingTrials(runs, LAST, halving).survivors(everything, 2, shown) == {0, 2, 3, 5}  # .3, .2, .325
    assert HalvingTrials(runs, BEST, halving).survivors(everything, 2, shown) == {1, 2, 4, 5}  # .3, .9, .325
    assert HalvingTrials(runs, LAST, halving).survivors(everything, 1, shown) == everything
    assert HalvingTrials(runs, LAST, halving).survivors({0, 3}, 2, shown) == {0, 3}
    assert HalvingTrials(runs, LAST, halving).survivors(set(), 2, shown) == set()


def test_a_trial_with_one_failed_seed_is_last_by_hand() -> None:
    runs = trials((0.1, 0.2), epochs=4)  # runs 0 and 2, 1 and 3
    shown = curves([0.9, 0.9], [0.1, 0.1], [0.9], [0.1, 0.1])
    assert HalvingTrials(runs, LAST, Halving((2,))).survivors({0, 1, 2, 3}, 2, shown) == {1, 3}
    assert HalvingTrials(runs, LAST, Halving((1,))).survivors({0, 1, 2, 3}, 1, shown) == {0, 2}


def test_a_curve_that_ends_before_the_rung_is_last_by_hand() -> None:
    runs = trials((0.1, 0.2, 0.3), seeds=(0,), epochs=4)
    shown = curves([0.9], [0.0, 0.0], [0.0, 0.1])
    assert HalvingTrials(runs, LAST, Halving((2,), 1.5)).survivors({0, 1, 2}, 2, shown) == {1, 2}
    assert HalvingTrials(runs, LAST, Halving((2,), 1.5)).survivors({0, 1}, 2, shown) == {0, 1}, (
        "two of two: ceil(2 / 1.5)"
    )


def test_stops_by_hand() -> None:
    runs = trials((0.1, 0.2, 0.3, 0.4), seeds=(0,), epochs=4)
    result = fused.fit(BANK, runs[:1])[0]
    shown = curves([0.1] * 4, [0.2, 0.2, 0.2, 0.9], [0.3, 0.1, 0.1, 0.1], [0.0, 0.9, 0.9, 0.9])
    whole = [replace(result, val_accuracy=curve) for curve in shown]
    assert HalvingTrials(runs, LAST, Halving((1, 2))).stops(whole) == [1, None, 2, 1]
