"""The ready sweep of the paper's Table 1: all methods, on equal terms, on features that another ready sweep has."""

from __future__ import annotations

from pathlib import Path

import sweeps
from lt_train.methods.base import METHODS
from sweeps.config.spec import load_sweep
from sweeps.config.trials import search_sizes

SPECS = Path(sweeps.__file__).parent / "specs"
TABLE1, FASHION = load_sweep(SPECS / "table1.yaml"), load_sweep(SPECS / "fashion_mnist_lt.yaml")


def test_every_method_is_in_it() -> None:
    assert sorted(candidate.method.kind for candidate in TABLE1.candidates()) == sorted(METHODS.kinds())


def test_every_method_that_has_something_to_search_gets_the_same_budget() -> None:
    trials = {candidate.name: size.trials for candidate, size in search_sizes(TABLE1)}
    assert trials.pop("vanilla") == 1
    assert set(trials.values()) == {TABLE1.search.trials}
    assert TABLE1.selection.seeds == 5
    assert TABLE1.selection.finalists > 0, "what is reported comes from seeds that nothing was selected on"


def test_its_backbone_and_features_are_those_of_the_other_sweep() -> None:
    for part in ("dataset", "backbone", "stage1", "features", "storage"):
        assert getattr(TABLE1, part) == getattr(FASHION, part), part


def test_what_makes_a_method_itself_is_searched() -> None:
    """Each number that a kind has beyond its optimiser's is a dimension, unless the file leaves it for a reason."""
    left = {
        "class_balanced": {"gamma"},  # of mode focal alone
        "ltwb": {"gamma"},
    }
    for candidate in TABLE1.candidates():
        own = set(candidate.method.lane_values()) - {"lr", "weight_decay", "momentum"}
        searched = {path.removeprefix("method.") for path in candidate.space}
        assert own - left.get(candidate.name, set()) <= searched, candidate.name
        assert not candidate.method.trains or {"lr", "weight_decay"} <= searched
