"""The fused engine agrees with the reference for every constraint and post-hoc adjustment on every valid head.

Parametrised over the registry. The effects of the parts are tested too, in case both engines omit one.
"""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from support.banks import make_bank
from support.compositions import PARTS, REFUSED_PARTS
from support.engines import Engine, agree, distance, every_engine, kept, lone_run, make_runs, predict

from lt_train.methods.base import METHODS, MethodSpec, TrainedMethod
from lt_train.methods.constraints import CONSTRAINTS
from lt_train.methods.heads.base import HEADS
from lt_train.methods.heads.linear import StackedLinear
from lt_train.methods.post_hoc import POST_HOC
from lt_train.retrain import fused
from lt_train.retrain.base import EpochSelection, Run

every_part = pytest.mark.parametrize("method", PARTS.values(), ids=PARTS)
BANK = make_bank((40, 20, 9, 4, 1), dim=6, views=2, val_per_class=4)
SEEDS = (0, 7, 0, 7, 5)


@every_part
def test_fused_is_the_reference(method: MethodSpec) -> None:
    agree(BANK, make_runs(method, epochs=2, batch_size=32, seeds=SEEDS), EpochSelection("best", "test"))


@pytest.mark.parametrize("name", [name for name in PARTS if name.startswith("ce-")])
def test_every_part_changes_what_a_head_predicts(name: str) -> None:
    """Guards the test above: both engines might omit a part."""
    for run in make_runs(PARTS[name], epochs=2, batch_size=32, seeds=SEEDS[:2]):
        without = replace(run, method=run.method.model_copy(update={"constraint": None, "post_hoc": None}))
        logits = [predict(BANK, each, kept(fused.fit(BANK, [each])[0])) for each in (run, without)]
        assert distance(*logits) > 1e-3


def test_every_kind_of_part_is_compared_on_some_head() -> None:
    used = [method.constraint for method in PARTS.values() if isinstance(method, TrainedMethod) and method.constraint]
    assert {(part.kind, part.every) for part in used} == set(product(CONSTRAINTS.kinds(), ("epoch", "step")))
    assert {method.post_hoc.kind for method in PARTS.values() if method.post_hoc is not None} == POST_HOC.kinds().keys()
    both = {
        method.constraint.every for method in PARTS.values() if isinstance(method, TrainedMethod) and method.constraint
    }
    assert both == {"epoch", "step"}


def test_a_refused_combination_has_a_reason() -> None:
    assert len(PARTS) >= len(METHODS.kinds()) * 3
    assert REFUSED_PARTS
    assert all(reason.strip() for reason in REFUSED_PARTS.values())
    rowless = {head for head, spec in HEADS.kinds().items() if not spec.has_rows}
    for head in rowless:
        for part in CONSTRAINTS.kinds():
            reason = REFUSED_PARTS[f"ce-head:{head}-constraint:{part}"]
            assert f"constraint {part}" in reason
            assert f"head {head}" in reason


def test_a_constraint_and_an_adjustment_together() -> None:
    document = {
        "kind": "los",
        "constraint": {"kind": "maxnorm", "fraction": 0.2, "every": "step"},
        "post_hoc": {"kind": "tau_norm", "tau": 0.7},
        "sampler": "class_balanced",
    }
    agree(BANK, make_runs(METHODS.parse(document), epochs=2, batch_size=32, seeds=SEEDS))


@every_engine
@pytest.mark.parametrize("every", ["epoch", "step"])
def test_rows_end_within_the_radius_of_their_lane(engine: Engine, every: str) -> None:
    """No row of the result is longer than min + fraction (max - min)."""
    assert BANK.head is not None
    lengths = BANK.head[0].norm(dim=-1)
    runs = [
        lone_run(
            {"kind": "ce", "lr": 0.5, "constraint": {"kind": "maxnorm", "fraction": fraction, "every": every}}, epochs=2
        )
        for fraction in (0.01, 0.3, 1.0)
    ]
    for run, fraction, result in zip(runs, (0.01, 0.3, 1.0), engine(BANK, runs), strict=True):
        radius = float(lengths.min() + fraction * (lengths.max() - lengths.min()))
        found = np.linalg.norm(kept(result).state["weight"], axis=1)
        assert run.training.epochs == 2
        assert found.max() == pytest.approx(radius, rel=1e-5)


# A grid of adjustments takes one pass


def grid(kind: str, number: int) -> list[Run]:
    taus = np.linspace(0.0, 2.0, number)
    return [lone_run({"kind": kind, "post_hoc": {"kind": kind, "tau": float(tau)}}, seed=int(10 * tau)) for tau in taus]


UNTRAINED_GRIDS = [kind for kind in POST_HOC.kinds() if kind in METHODS.kinds()]


@pytest.mark.parametrize("kind", UNTRAINED_GRIDS)
def test_a_grid_is_evaluated_from_one_set_of_logits(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even with a stack size that would split trained lanes."""
    monkeypatch.setattr(fused, "STACK_BYTES", {"cpu": 1})
    calls: list[tuple[int, ...]] = []
    logits = StackedLinear.logits

    def counted(self: StackedLinear, inputs_SBI: torch.Tensor) -> torch.Tensor:
        found = logits(self, inputs_SBI)
        calls.append(tuple(found.shape))
        return found

    monkeypatch.setattr(StackedLinear, "logits", counted)
    fused.fit(BANK, grid(kind, 1))
    alone = calls.copy()
    calls.clear()
    results = fused.fit(BANK, grid(kind, 21))
    assert calls == alone, "21 values need the same products as one"
    assert {shape[0] * shape[2] for shape in calls} == {1}
    assert len({result.test_accuracy.tobytes() for result in results}) > 1


@pytest.mark.parametrize("kind", UNTRAINED_GRIDS)
def test_the_results_of_a_grid_share_one_head(kind: str) -> None:
    """On iNaturalist a head is 67 MB, and a grid has 21 values."""
    weights = {id(kept(result).state["head.weight"]) for result in fused.fit(BANK, grid(kind, 21))}
    assert len(weights) == 1


@pytest.mark.parametrize("kind", UNTRAINED_GRIDS)
def test_the_first_value_of_the_grid_is_the_stage_1_head(kind: str) -> None:
    """Tau 0 changes nothing; the last tau changes predictions."""
    *_, last = runs = grid(kind, 21)
    results = agree(BANK, [lone_run({"kind": "vanilla"}), *runs])
    vanilla, first = kept(results[0]), kept(results[1])
    if kind == "tau_norm":  # drops the bias at tau 0 too, unless bias is keep
        keeping = lone_run({"kind": kind, "post_hoc": {"kind": kind, "tau": 0.0, "bias": "keep"}})
        first = kept(agree(BANK, [keeping])[0])
    np.testing.assert_array_equal(first.class_accuracy, vanilla.class_accuracy)
    np.testing.assert_allclose(first.loma, vanilla.loma, rtol=1e-5)
    assert distance(kept(results[-1]).class_accuracy, vanilla.class_accuracy) > 0.01
    assert predict(BANK, last, kept(results[-1])).shape == (1000, 5)
