"""How much of the spread of a search's objective each dimension explains: Optuna's fANOVA (Hutter et al., 2014).

Pure over finished trials; knows nothing of sweeps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sweeps.search.base import Dimension
from sweeps.search.optuna_study import distribution

__all__ = ["FEWEST_TRIALS", "importances"]

FEWEST_TRIALS = 10
"""Below this a forest of trees has nothing to learn from."""


def importances(
    space: Mapping[str, Dimension], trials: Sequence[tuple[Mapping[str, Any], float]], seed: int = 0
) -> dict[str, float]:
    """Shares of 1 by dotted path, largest first.

    Empty where there are fewer than `FEWEST_TRIALS`, nothing is searched, or all trials are equally good.
    """
    # Here, because they take scikit-learn with them, and every process that knows the kinds of search reads this file.
    import optuna
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances
    from optuna.trial import create_trial

    values = [value for _, value in trials]
    if not space or len(trials) < FEWEST_TRIALS or max(values) - min(values) <= 0:
        return {}
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    known = {path: distribution(dimension) for path, dimension in space.items()}
    study = optuna.create_study(direction="maximize")
    study.add_trials([create_trial(params=dict(p), distributions=known, value=value) for p, value in trials])
    return get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=seed))
