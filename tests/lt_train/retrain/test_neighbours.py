"""A run does not depend on the other runs of its pack, their order or their failures."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support.banks import make_bank
from support.compositions import ALLOWED, DEFAULTS, PARTS, TRAINED, searchable, variants
from support.engines import (
    Engine,
    agree,
    assert_same,
    distance,
    every_engine,
    everything,
    kept,
    lone_run,
    make_runs,
    predict,
    with_method,
)

from lt_train.core.fields import substitute
from lt_train.methods.base import METHODS, MethodSpec, TrainedMethod, TrainingSpec
from lt_train.retrain import fused, reference
from lt_train.retrain.base import EpochSelection, Run

every_kind = pytest.mark.parametrize("kind", DEFAULTS)
every_trained_kind = pytest.mark.parametrize("kind", TRAINED)
BANK = make_bank()
RULE = EpochSelection("best")
DIVERGED = "diverged: loss or weights are not finite in epoch 1; lower lr"


@every_kind
@pytest.mark.parametrize("order", [[7, 6, 5, 4, 3, 2, 1, 0], [3, 0, 6, 5, 1, 4, 7, 2]], ids=["reversed", "shuffled"])
def test_permuting_runs_permutes_results(kind: str, order: list[int]) -> None:
    runs = make_runs(kind, epochs=2)
    straight = fused.fit(BANK, runs, rule=RULE)
    permuted = fused.fit(BANK, [runs[index] for index in order], rule=RULE)
    for index, result in zip(order, permuted, strict=True):
        assert_same(BANK, runs[index], result, straight[index], 1e-5, RULE)


def test_results_of_the_reference_are_in_the_order_of_the_runs() -> None:
    runs = make_runs("los", epochs=2)
    for one, other in zip(reference.fit(BANK, runs), reversed(reference.fit(BANK, runs[::-1])), strict=True):
        assert everything(one) == everything(other)


@every_kind
def test_a_lane_alone_is_the_lane_in_a_pack(kind: str) -> None:
    """To 1e-5 relative in the weights: a matrix product of another width rounds differently."""
    runs = make_runs(kind, epochs=2)
    for run, together in zip(runs, fused.fit(BANK, runs, rule=RULE), strict=True):
        assert_same(BANK, run, fused.fit(BANK, [run], rule=RULE)[0], together, 1e-5, RULE)


@every_trained_kind
def test_a_lane_alone_beside_lanes_of_other_momentum_and_decay(kind: str) -> None:
    """Alone, momentum is folded into the product and no decay is added; beside others it is not."""
    runs = make_runs(kind, epochs=2, seeds=(1, 1, 1))
    first, *_ = fused.fit(BANK, runs)
    assert_same(BANK, runs[0], fused.fit(BANK, runs[:1])[0], first, 1e-5, EpochSelection())
    alike = make_runs(kind, epochs=2, seeds=(1, 1, 1), alike=("momentum", "weight_decay"))
    assert_same(BANK, alike[0], fused.fit(BANK, alike)[0], first, 1e-5, EpochSelection())


def diverging_run(run: Run) -> Run:
    """A run that overflows at its first step through weight decay, whatever its loss."""
    return with_method(run, lr=1e38, weight_decay=1e3)


@every_trained_kind
@pytest.mark.parametrize("index", [0, 1, 2])
def test_a_lane_that_diverges_fails_alone(kind: str, index: int) -> None:
    """In the first, last and middle lane of its stack."""
    runs = make_runs(kind, epochs=2, seeds=(0, 7, 0, 0, 7))
    others = [*runs[:index], *runs[index + 1 :]]
    results = fused.fit(BANK, [*runs[:index], diverging_run(runs[index]), *runs[index + 1 :]], rule=RULE)
    failed = results.pop(index)
    assert failed.failure == DIVERGED
    assert failed.kept is None
    assert len(failed.test_accuracy) == len(failed.train_loss) == 0
    assert failed.val_accuracy is not None
    assert failed.val_accuracy.shape == (0, 4)
    for run, result, expected in zip(others, results, fused.fit(BANK, others, rule=RULE), strict=True):
        assert result.failure is None
        assert_same(BANK, run, result, expected, 1e-5, RULE)


@every_trained_kind
def test_a_failure_is_the_same_in_both_engines(kind: str) -> None:
    valid, other = make_runs(kind, epochs=2, seeds=(0, 0))
    assert [result.failure for result in agree(BANK, [valid, diverging_run(other)], RULE)] == [None, DIVERGED]


@pytest.mark.parametrize("name", [name for name in PARTS if name.startswith("ce-")])
def test_a_lane_with_parts_fails_alone(name: str) -> None:
    runs = make_runs(PARTS[name], epochs=2, seeds=(0, 0, 7, 7))
    failed = agree(BANK, [diverging_run(run) if index == 1 else run for index, run in enumerate(runs)], RULE)
    for index, (run, result) in enumerate(zip(runs, fused.fit(BANK, runs, rule=RULE), strict=True)):
        if index != 1:
            assert_same(BANK, run, failed[index], result, 1e-5, RULE)
    assert failed[1].failure == DIVERGED


def test_a_failing_neighbour_changes_no_bit_of_a_lane() -> None:
    """With the same pack and widths, results are bit-identical."""
    runs = make_runs("los", epochs=3, seeds=(0, 0, 0, 0))
    worse = [runs[0], diverging_run(runs[1]), *runs[2:]]
    for index, (one, other) in enumerate(zip(fused.fit(BANK, runs), fused.fit(BANK, worse), strict=True)):
        if index != 1:
            assert kept(one).state["weight"].tobytes() == kept(other).state["weight"].tobytes()


@every_engine
def test_weights_that_overflow_in_the_last_step_are_a_failure(engine: Engine) -> None:
    """With one step per epoch, the recorded loss is that of the finite start."""
    document: dict[str, object] = {"kind": "ce", "lr": 1e38, "weight_decay": 1e3}
    failed, valid = engine(BANK, [lone_run(document, batch_size=500), lone_run({"kind": "ce"}, batch_size=500)])
    assert failed.failure == DIVERGED
    assert valid.failure is None


def test_a_lane_that_diverges_late_keeps_its_curves_until_then() -> None:
    """Unstable weight decay grows by a constant factor per step, so overflow takes some epochs."""
    document: dict[str, object] = {"kind": "ce", "lr": 1.0, "momentum": 0.0, "weight_decay": 300.0}
    runs = [lone_run(document, epochs=12, seed=3), replace(make_runs("ce", epochs=12)[0], seed=3)]
    late, valid = agree(BANK, runs, RULE)
    assert valid.failure is None
    assert late.failure is not None
    assert 1 < len(late.test_accuracy) < 12
    assert f"in epoch {len(late.test_accuracy) + 1};" in late.failure
    assert len(late.train_loss) == len(late.test_accuracy)


def test_a_pack_in_which_every_run_fails() -> None:
    runs = [diverging_run(run) for run in make_runs("los", epochs=3)]
    assert {result.failure for result in agree(BANK, runs, RULE)} == {DIVERGED}


OVERFLOWED = "the post-hoc adjustment is not finite; lower tau"


def test_an_adjustment_that_overflows_fails_alone() -> None:
    """All runs of the grid share one valid head; a row norm below 1 to the power of -tau overflows."""
    taus = (1e6, 0.0, 1e30, 0.5)
    runs = [
        lone_run({"kind": "tau_norm", "post_hoc": {"kind": "tau_norm", "tau": tau, "bias": "keep"}}) for tau in taus
    ]
    results = agree(BANK, [*runs, lone_run({"kind": "vanilla"})])
    assert [result.failure for result in results] == [OVERFLOWED, None, OVERFLOWED, None, None]
    for result in results[:4:2]:
        assert result.kept is None
        assert len(result.test_accuracy) == 0
    np.testing.assert_array_equal(results[1].test_accuracy, results[4].test_accuracy)


def test_a_trained_head_whose_adjustment_overflows_fails_alone() -> None:
    document = {"kind": "los", "post_hoc": {"kind": "tau_norm", "tau": 1.0}}
    runs = make_runs(METHODS.parse(document), epochs=3, seeds=(0, 0, 7, 7))
    worse = [runs[0], replace(runs[1], method=substitute(runs[1].method, {"post_hoc.tau": 1e6})), *runs[2:]]
    results = agree(BANK, worse, RULE)
    assert [result.failure for result in results] == [None, OVERFLOWED, None, None]
    for index, expected in enumerate(fused.fit(BANK, runs, rule=RULE)):
        if index != 1:
            assert_same(BANK, runs[index], results[index], expected, 1e-5, RULE)


# Every hyperparameter reaches the loop


def lane_value_cases() -> list[object]:
    """Every lane value of every method with its own parts, and of every other part on some head."""
    seen, cases = set(), []
    for name, method in [*DEFAULTS.items(), *ALLOWED.items(), *PARTS.items()]:
        for path in method.lane_values():
            part = getattr(method, path.split(".")[0]) if "." in path else method
            if (part.kind, path) not in seen and path in searchable(method):
                seen.add((part.kind, path))
                cases.append(pytest.param(method, path, id=f"{name}-{path}"))
    return cases


@pytest.mark.parametrize(("method", "path"), lane_value_cases())
def test_every_lane_value_reaches_the_loop(method: MethodSpec, path: str) -> None:
    """Changing one value of one lane changes that lane only."""
    base = variants(method, 3)[1]  # no value is 0 here
    if isinstance(method, TrainedMethod):
        base = base.model_copy(update={"lr": 0.05})
    changed = substitute(base, {path: base.lane_values()[path] * 0.5})
    runs = [Run(setting, TrainingSpec(epochs=2), 0) for setting in (base, changed, base)]
    results = agree(BANK, runs)
    first, second, third = (predict(BANK, run, kept(result)) for run, result in zip(runs, results, strict=True))
    assert distance(second, first) > 1e-4
    assert distance(third, first) < 1e-6


@every_engine
@every_trained_kind
def test_seeds_matter_and_equal_seeds_agree(kind: str, engine: Engine) -> None:
    method = variants(DEFAULTS[kind], 1)[0]
    runs = [Run(method, TrainingSpec(epochs=2), seed) for seed in (1, 1, 2)]
    one, again, other = (predict(BANK, runs[0], kept(result)) for result in engine(BANK, runs))
    np.testing.assert_allclose(again, one, rtol=1e-4, atol=1e-5)
    assert distance(other, one) > 1e-5


@every_engine
@every_kind
def test_the_global_generators_are_neither_read_nor_moved(kind: str, engine: Engine) -> None:
    method = DEFAULTS[kind]
    random = isinstance(method, TrainedMethod) and not method.head.needs_classifier
    runs = make_runs(method.model_copy(update={"init": "random"}) if random else method, epochs=1, seeds=(0, 7, 0))
    outcomes = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        before, numpys = torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[union-attr,index]
        outcomes.append([kept(result).state for result in engine(BANK, runs)])
        assert torch.equal(torch.get_rng_state(), before)
        assert np.random.get_state()[1].tolist() == numpys  # type: ignore[union-attr,index]
    for one, other in zip(*outcomes, strict=True):
        assert {name: array.tobytes() for name, array in one.items()} == {
            name: array.tobytes() for name, array in other.items()
        }
