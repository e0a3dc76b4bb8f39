"""Parts (a) and (b): one run at a time against the fused engine, and the fused engine against the machine.

(a) For `los` and `ce` the slow side is literal torch (`plain_loop`); every other method has its own head and loss, and
there it is `retrain.reference`, the same loop with them. How the two compare is measured for `los`, so that a reader
sees that the reference is not made slow. (b) Operations of the matrix products over the seconds of the whole fit,
evaluation included, against the rate of one large product taken before and after.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import plain_loop
from banks import generate
from measure import interleaved, matrix_product_rate, warm_up
from settings import BATCH_SIZE, PAPER_EPOCHS, Settings

from lt_train.errors import SpecError
from lt_train.features.bank import FeatureBank
from lt_train.methods.base import MethodSpec, TrainedMethod, TrainingSpec, method_kinds, parse_method
from lt_train.retrain import fused, reference
from lt_train.retrain.base import Run, RunResult

__all__ = ["arithmetic", "fit", "make_runs", "methods", "plain_run"]

NOT_VARIED = "momentum"
"""The one number that no shipped sweep searches."""

PLAIN = ("los", "ce")
"""Kinds that the plain loop can train: torch has their head and loss."""


def methods(settings: Settings) -> dict[str, Any]:
    """Part (a): `fused_over_reference.<method>` and how other slow loops compare."""
    warm_up(settings.device)
    bank = generate(settings.shape)
    found: dict[str, Any] = {"fused_over_reference": {}}
    timings: dict[str, Any] = {"fused_over_reference": {}}
    for kind in settings.methods or method_kinds():
        trained = issubclass(method_kinds()[kind], TrainedMethod)
        runs = make_runs(kind, settings, settings.epochs)
        sides: dict[str, Callable[[], Any]] = {"reference": lambda run=runs[0]: fit(reference, bank, [run], settings)}
        if kind in PLAIN:
            sides["plain"] = plain_run(bank, runs[0], settings)
        if kind == "los":
            sides["plain_with_data_loader"] = plain_run(bank, runs[0], settings, data_loader=True)
        sides["fused"] = lambda runs=runs: fit(fused, bank, runs, settings)
        sides["fused"]()
        times = interleaved(sides, settings.repeats, settings.device)
        slow = "plain" if "plain" in sides else "reference"
        found["fused_over_reference"][kind] = min(times[slow]) / (min(times["fused"]) / len(runs))
        timings["fused_over_reference"][kind] = {
            "slow_side": slow,
            "seconds_a_run_of_slow_side": times[slow],
            "fused_seconds": times["fused"],
            "fused_runs": len(runs),
            "epochs": settings.epochs if trained else 0,
            "trained": trained,
            "shortened": trained and settings.epochs < PAPER_EPOCHS,
            "varied": _different(runs),
        }
        if kind == "los":
            for other in ("reference", "plain_with_data_loader"):
                found[f"{other}_over_plain"] = min(times[other]) / min(times["plain"])
                timings[f"{other}_over_plain"] = {"seconds": {s: times[s] for s in (other, "plain")}, "method": kind}
    return {"values": found, "timings": timings}


def arithmetic(settings: Settings) -> dict[str, Any]:
    """Part (b): `gemm_fraction`, and with the operations of evaluation counted too."""
    warm_up(settings.device)
    bank, shape, device = generate(settings.shape), settings.shape, settings.device
    # The same training with next to nothing to evaluate: the difference is what evaluation takes.
    few = bank.test.labels[: shape.classes]
    unwatched = replace(bank, test=replace(bank.test, features=bank.test.features[:, : len(few)], labels=few))
    runs = make_runs("los", settings, settings.gemm_epochs)
    fit(fused, bank, make_runs("los", settings, 1), settings)
    rates = [matrix_product_rate(settings.matrix_size, device)]
    sides = {
        "fit": lambda: fit(fused, bank, runs, settings),
        "fit_without_evaluation": lambda: fit(fused, unwatched, runs, settings),
    }
    times = interleaved(sides, settings.gemm_repeats, device)
    rates.append(matrix_product_rate(settings.matrix_size, device))
    best, bare, peak = min(times["fit"]), min(times["fit_without_evaluation"]), max(rates) * 1e9
    counted = shape.operations(len(runs), settings.gemm_epochs)
    counted_with_evaluation = shape.operations(len(runs), settings.gemm_epochs, evaluation=True)
    return {
        "values": {
            "gemm_fraction": counted / best / peak,
            "gemm_fraction_with_evaluation": counted_with_evaluation / best / peak,
            "gemm_fraction_without_evaluation": counted / bare / peak,
        },
        "timings": {
            "gemm_fraction": {
                **{f"{name}_seconds": taken for name, taken in times.items()},
                "matrix_product_gflops": rates,
                "matrix_size": settings.matrix_size,
                "operations": counted,
                "operations_with_evaluation": counted_with_evaluation,
                "runs": len(runs),
                "epochs": settings.gemm_epochs,
                "shortened": settings.gemm_epochs < PAPER_EPOCHS,
                "seconds_a_run": best / len(runs),
                "evaluation_seconds_a_run": (best - bare) / len(runs),
            }
        },
    }


def _different(runs: list[Run]) -> list[str]:
    """Names of the numbers that differ between lanes."""
    values = [run.method.lane_values() for run in runs]
    return sorted(name for name in values[0] if len({each[name] for each in values}) > 1)


def make_runs(kind: str, settings: Settings, epochs: int) -> list[Run]:
    """Trials x seeds of a trained method, all lanes different; a grid of one number for one that trains nothing."""
    training = TrainingSpec(epochs=epochs, batch_size=BATCH_SIZE)
    if issubclass(method_kinds()[kind], TrainedMethod):
        return [Run(m, training, seed) for m in _varied(kind, settings.trials) for seed in range(settings.seeds)]
    grid = settings.taus if parse_method({"kind": kind}).lane_values() else 1
    return [Run(method, training, seed=0) for method in _varied(kind, grid)]


def _varied(kind: str, count: int) -> Iterator[MethodSpec]:
    """Settings of one method, every number that a sweep may search different in each."""
    default = parse_method({"kind": kind})
    values = {path: value for path, value in default.lane_values().items() if path != NOT_VARIED}
    # Some numbers belong to a mode that is not the default: elsewhere any value but their own default is refused.
    values = {path: value for path, value in values.items() if _accepted(default, {path: 0.9 * value})}
    for number in range(count):
        # Downwards from the default, which keeps within every range there is.
        changed = {path: value * (1 - 0.3 * number / count) for path, value in values.items()}
        if "lr" in values:
            changed |= {"lr": 1e-4 * 10 ** (2 * number / count), "weight_decay": 1e-5 * (number + 1)}
        yield _with_values(default, changed)


def _accepted(default: MethodSpec, values: dict[str, float]) -> bool:
    try:
        _with_values(default, values)
    except SpecError:
        return False
    return True


def _with_values(default: MethodSpec, values: dict[str, float]) -> MethodSpec:
    """The method with these values by dotted path, and nothing else said."""
    document: dict[str, Any] = {"kind": default.kind}
    for path, value in values.items():
        part, _, name = path.rpartition(".")
        place = document.setdefault(part, {"kind": getattr(default, part).kind}) if part else document
        place[name] = value
    return parse_method(document)


def plain_run(
    bank: FeatureBank, run: Run, settings: Settings, *, data_loader: bool = False
) -> Callable[[], list[float]]:
    """The same run by the plain loop, on the settings' device."""
    values = run.method.lane_values()
    assert bank.head is not None
    weight, bias, *data = (
        tensor.to(settings.device)
        for tensor in (
            *bank.head,
            bank.train_features[0],
            bank.train_labels,
            bank.test.features[0],
            bank.test.labels,
        )
    )
    return lambda: list(
        plain_loop.train(
            *data,
            weight=weight,
            bias=bias,
            epochs=run.training.epochs,
            batch_size=run.training.batch_size,
            lr=values["lr"],
            weight_decay=values["weight_decay"],
            smooth_factor=values.get("smooth_factor", 0.0),
            seed=run.seed,
            data_loader=data_loader,
        )
    )


def fit(engine: Any, bank: FeatureBank, runs: list[Run], settings: Settings) -> list[RunResult]:
    """Train by `engine`; a run that failed would make its time worthless."""
    results: list[RunResult] = engine.fit(bank, runs, settings.device)
    for run, result in zip(runs, results, strict=True):
        if result.failure is not None:
            raise RuntimeError(f"{run.method} failed in the benchmark: {result.failure}")
    return results
