"""The ready matrix of the paper's Table 4: four representations under the same methods, on equal terms."""

from __future__ import annotations

from pathlib import Path

import sweeps
from sweeps.config.matrix import load_matrix
from sweeps.config.trials import search_sizes

TABLE4 = load_matrix(Path(sweeps.__file__).parent / "specs" / "table4.yaml")
COLUMNS = {
    "vanilla": "vanilla",
    "ce": "ce",
    "focal": "focal",
    "ldam": "ldam",
    "bs": "balanced_softmax",
    "cb-bce": "class_balanced",
    "los": "los",
}


def test_its_rows_are_the_papers_on_one_schedule() -> None:
    recipes = [spec.stage1 for spec in TABLE4.sweeps]
    assert [recipe and recipe.kind for recipe in recipes] == ["ce_steps", "ce_drw", "ldam_drw", "balanced_softmax"]
    first = recipes[0]
    for recipe in recipes:
        assert recipe is not None
        assert first is not None
        assert [recipe.learning_rate(epoch) for epoch in range(200)] == [first.learning_rate(e) for e in range(200)]
        assert (recipe.epochs, recipe.batch_size, recipe.lr, recipe.weight_decay) == (200, 128, 0.1, 2e-4)


def test_its_columns_are_the_papers_with_one_budget() -> None:
    for spec in TABLE4.sweeps:
        found = {method.kind: method.kind for method in spec.baselines}
        found |= {candidate.name: candidate.method.kind for candidate in spec.candidates()}
        assert found == COLUMNS
        assert {size.trials for _, size in search_sizes(spec)} == {spec.search.trials}
        assert (spec.selection.on, spec.selection.seeds, spec.selection.finalists) == ("val", 5, 3)


def test_nothing_but_the_recipe_differs() -> None:
    first = TABLE4.sweeps[0]
    for spec in TABLE4.sweeps:
        assert spec.model_copy(update={"name": first.name, "stage1": first.stage1}) == first
