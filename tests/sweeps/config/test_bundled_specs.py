"""The bundled sweeps of the paper's tables: all methods on equal terms."""

from __future__ import annotations

from pathlib import Path

import sweeps
from lt_train.methods.base import METHODS
from sweeps.config.matrix import load_matrix
from sweeps.config.spec import load_sweep
from sweeps.config.trials import search_sizes

SPECS = Path(sweeps.__file__).parent / "specs"
TABLE1, FASHION = load_sweep(SPECS / "table1.yaml"), load_sweep(SPECS / "fashion_mnist_lt.yaml")
TABLE4 = load_matrix(SPECS / "table4.yaml")
COLUMNS = {
    "vanilla": "vanilla",
    "ce": "ce",
    "focal": "focal",
    "ldam": "ldam",
    "bs": "balanced_softmax",
    "cb-bce": "class_balanced",
    "los": "los",
}


def test_table1_has_every_method() -> None:
    assert sorted(candidate.method.kind for candidate in TABLE1.candidates()) == sorted(METHODS.kinds())


def test_every_searched_method_of_table1_has_the_same_budget() -> None:
    trials = {candidate.name: size.trials for candidate, size in search_sizes(TABLE1)}
    assert trials.pop("vanilla") == 1
    assert set(trials.values()) == {TABLE1.search.trials}
    assert TABLE1.selection.seeds == 5
    assert TABLE1.selection.finalists > 0, "reported numbers come from seeds that were not used for selection"


def test_table1_shares_backbone_and_features_with_fashion_mnist_lt() -> None:
    for part in ("dataset", "backbone", "stage1", "features", "storage"):
        assert getattr(TABLE1, part) == getattr(FASHION, part), part


def test_table1_searches_the_hyperparameters_of_each_method() -> None:
    """Each number of a method that is not one of the optimiser is searched, apart from the exceptions below."""
    left = {
        "class_balanced": {"gamma"},  # only used in mode focal
        "ltwb": {"gamma"},
    }
    for candidate in TABLE1.candidates():
        own = set(candidate.method.lane_values()) - {"lr", "weight_decay", "momentum"}
        searched = {path.removeprefix("method.") for path in candidate.space}
        assert own - left.get(candidate.name, set()) <= searched, candidate.name
        assert not candidate.method.trains or {"lr", "weight_decay"} <= searched


def test_the_recipes_of_table4_are_those_of_the_paper_with_one_schedule() -> None:
    recipes = [spec.stage1 for spec in TABLE4.sweeps]
    assert [recipe and recipe.kind for recipe in recipes] == ["ce_steps", "ce_drw", "ldam_drw", "balanced_softmax"]
    first = recipes[0]
    for recipe in recipes:
        assert recipe is not None
        assert first is not None
        assert [recipe.learning_rate(epoch) for epoch in range(200)] == [first.learning_rate(e) for e in range(200)]
        assert (recipe.epochs, recipe.batch_size, recipe.lr, recipe.weight_decay) == (200, 128, 0.1, 2e-4)


def test_the_methods_of_table4_are_those_of_the_paper_with_one_budget() -> None:
    for spec in TABLE4.sweeps:
        found = {method.kind: method.kind for method in spec.baselines}
        found |= {candidate.name: candidate.method.kind for candidate in spec.candidates()}
        assert found == COLUMNS
        assert {size.trials for _, size in search_sizes(spec)} == {spec.search.trials}
        assert (spec.selection.on, spec.selection.seeds, spec.selection.finalists) == ("val", 5, 3)


def test_the_sweeps_of_table4_differ_in_the_recipe_only() -> None:
    first = TABLE4.sweeps[0]
    for spec in TABLE4.sweeps:
        assert spec.model_copy(update={"name": first.name, "stage1": first.stage1}) == first
