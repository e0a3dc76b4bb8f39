"""A search with Ray Tune without this project: one trial per run, with the plain loop as trainable.

`stock` follows the tutorials: a function trainable, one report per epoch, all defaults. `reused` applies the advice on
performance from the documentation: a class trainable, reused actors, no loggers and dashboard, one report per run. Both
use random search, which costs no time. This is a separate program because the measurement includes process startup:

    python ray_tune_loop.py {stock,reused} BANK.npz CPUS TRIALS SEEDS EPOCHS BATCH_SIZE OUT.json
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def main(mode: str, bank: str, cpus: str, trials: str, seeds: str, epochs: str, batch_size: str, out: str) -> None:
    """Run the search and write the completion time of each run, in seconds since 1970."""
    if mode == "reused":
        os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    import numpy as np
    import ray
    from ray import tune

    quiet = {"include_dashboard": False, "log_to_driver": False} if mode == "reused" else {}
    ray.init(num_cpus=int(cpus), **quiet)
    with np.load(bank) as arrays:
        data = {name: arrays[name] for name in arrays.files}
    fixed = {"bank": data, "epochs": int(epochs), "batch_size": int(batch_size)}
    trainable = _function() if mode == "stock" else _class()
    space = {
        "smooth_factor": tune.uniform(0.5, 0.995),
        "lr": tune.loguniform(1e-5, 1e-1),
        "weight_decay": tune.loguniform(1e-6, 1e-1),
        "seed": tune.grid_search(list(range(int(seeds)))),
    }
    completed: list[float] = []
    with tempfile.TemporaryDirectory() as scratch:
        tuner = tune.Tuner(
            tune.with_parameters(trainable, **fixed),
            param_space=space,
            tune_config=tune.TuneConfig(
                metric="accuracy", mode="max", num_samples=int(trials), reuse_actors=True if mode == "reused" else None
            ),
            run_config=tune.RunConfig(storage_path=scratch, callbacks=[_clock(completed)]),
        )
        grid = tuner.fit()
    if grid.errors:
        raise RuntimeError(f"{len(grid.errors)} runs failed: {grid.errors[0]}")
    Path(out).write_text(json.dumps({"completed": completed}))


def _clock(completed: list[float]) -> Any:
    from ray import tune

    class Clock(tune.Callback):  # type: ignore[misc]
        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            completed.append(time.time())

    return Clock()


def _run(tensors: dict[str, Any], config: dict[str, Any], epochs: int, batch_size: int) -> Any:
    """One run of the plain loop: yields the test accuracy of every epoch."""
    import plain_loop
    from torch import nn

    values = dict(config)
    data = dict(tensors)
    head = plain_loop.linear(data.pop("weight"), data.pop("bias"))
    criterion = nn.CrossEntropyLoss(label_smoothing=values.pop("smooth_factor"))
    return plain_loop.train(**data, **values, head=head, criterion=criterion, epochs=epochs, batch_size=batch_size)


def _function() -> Any:
    def train(config: dict[str, Any], bank: dict[str, Any], epochs: int, batch_size: int) -> None:
        import torch
        from ray import tune

        tensors = {name: torch.from_numpy(array) for name, array in bank.items()}
        for accuracy in _run(tensors, config, epochs, batch_size):
            tune.report({"accuracy": accuracy})

    return train


def _class() -> Any:
    from ray import tune

    class Train(tune.Trainable):  # type: ignore[misc]
        def setup(self, config: dict[str, Any], bank: dict[str, Any], epochs: int, batch_size: int) -> None:
            import torch

            self.tensors = {name: torch.from_numpy(array) for name, array in bank.items()}
            self.values, self.epochs, self.batch_size = config, epochs, batch_size

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.values = new_config
            return True

        def step(self) -> dict[str, Any]:
            accuracies = list(_run(self.tensors, self.values, self.epochs, self.batch_size))
            return {"accuracy": accuracies[-1], "done": True}

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            """Required by Ray Tune; does nothing."""

        def load_checkpoint(self, checkpoint: Any) -> None:
            """Required by Ray Tune; does nothing."""

    return Train


if __name__ == "__main__":
    main(*sys.argv[1:])
