"""Search spaces, search algorithms and early stopping. The only folder that imports Optuna."""
