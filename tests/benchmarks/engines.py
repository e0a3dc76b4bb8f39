"""Parts (a) and (b): one run at a time against the fused engine, and the fused engine against the machine.

(a) For `los` and `ce` the slow side is literal torch (`plain_loop`); every other method has its own head and loss, and
there it is `retrain.reference`, the same loop with them. How the two compare is measured for `los`, so that a reader
sees that the reference is not made slow. Both sides evaluate after every epoch. A limit says what the machine allows:
the ratio if nothing but the matrix products remained, at the rate of a large one. (b) Operations of the products of
training over the seconds of training, against the rate of one large product taken beside it; and two readings of the
whole fit, with evaluation in the seconds, and in the operations or not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import plain_loop
from banks import generate
from measure import interleaved, matrix_product_rate, ratio, warm_up
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
    bank, settings = generate(settings.shape), replace(settings, seeds=settings.method_seeds)
    found: dict[str, Any] = {"fused_over_reference": {}, "fused_over_reference_limit": {}}
    timings: dict[str, Any] = {"fused_over_reference": {}}
    for kind in settings.methods or method_kinds():
        runs = make_runs(kind, settings, settings.epochs)
        method, rates = runs[0].method, []
        sides: dict[str, Callable[[], Any]] = {"reference": lambda run=runs[0]: fit(reference, bank, [run], settings)}
        if kind in PLAIN:
            sides["plain"] = plain_run(bank, runs[0], settings)
        if kind == "los":
            sides["plain_with_data_loader"] = plain_run(bank, runs[0], settings, data_loader=True)
        sides["fused"] = lambda runs=runs: fit(fused, bank, runs, settings)
        sides["matrix_product"] = lambda rates=rates: rates.append(_rate(settings))
        fit(fused, bank, make_runs(kind, settings, 1), settings)
        times = interleaved(sides, settings.repeats, settings.device)
        slow = times["plain" if "plain" in sides else "reference"]
        entry = timings["fused_over_reference"][kind] = {
            "slow_side": "plain" if "plain" in sides else "reference",
            "seconds_a_run_of_slow_side": slow,
            "fused_seconds": times["fused"],
            "fused_runs": len(runs),
            "epochs": settings.epochs if method.trains else 0,
            "trained": method.trains,
            "shortened": method.trains and settings.epochs < PAPER_EPOCHS,
            "varied": _different(runs),
        }
        found["fused_over_reference"][kind] = len(runs) * ratio(slow, times["fused"])
        if method.trains and not method.head.needs_classifier:  # else the products are those of all lanes together
            entry["matrix_product_gflops"] = rates
            entry["operations_a_run"] = settings.shape.operations(1, settings.epochs, evaluation=True)
            least = [entry["operations_a_run"] / rate / 1e9 for rate in rates]
            found["fused_over_reference_limit"][kind] = ratio(slow, least)
        if kind == "los":
            found["fused_over_data_loader"] = len(runs) * ratio(times["plain_with_data_loader"], times["fused"])
            timings["fused_over_data_loader"] = {"seconds_a_run_of_slow_side": times["plain_with_data_loader"]}
            found["reference_over_plain"] = ratio(times["reference"], times["plain"])
            timings["reference_over_plain"] = {"seconds": {s: times[s] for s in ("reference", "plain")}}
    return {"values": found, "timings": timings}


def arithmetic(settings: Settings) -> dict[str, Any]:
    """Part (b): `gemm_fraction` of training, and of the whole fit."""
    warm_up(settings.device)
    bank, shape, device = generate(settings.shape), settings.shape, settings.device
    # The same training with next to nothing to evaluate: the difference is what evaluation takes.
    few = bank.test.labels[: shape.classes]
    unwatched = replace(bank, test=replace(bank.test, features=bank.test.features[:, : len(few)], labels=few))
    runs = make_runs("los", settings, settings.gemm_epochs)
    fit(fused, bank, make_runs("los", settings, 1), settings)
    rates: list[float] = []
    sides = {
        "matrix_product": lambda: rates.append(_rate(settings)),
        "fit": lambda: fit(fused, bank, runs, settings),
        "training": lambda: fit(fused, unwatched, runs, settings),
    }
    times = interleaved(sides, settings.gemm_repeats, device)
    operations = {
        "training": shape.operations(len(runs), settings.gemm_epochs),
        "all": shape.operations(len(runs), settings.gemm_epochs, evaluation=True),
    }

    def fraction(counted: str, seconds: str) -> float:
        return ratio([operations[counted] / rate / 1e9 for rate in rates], times[seconds])

    return {
        "values": {
            "gemm_fraction": fraction("training", "training"),
            "gemm_fraction_with_evaluation": fraction("all", "fit"),
            "gemm_fraction_evaluation_uncounted": fraction("training", "fit"),
        },
        "timings": {
            "gemm_fraction": {
                "fit_seconds": times["fit"],
                "training_seconds": times["training"],
                "matrix_product_gflops": rates,
                "matrix_size": settings.matrix_size,
                "operations": operations["training"],
                "operations_with_evaluation": operations["all"],
                "runs": len(runs),
                "epochs": settings.gemm_epochs,
                "shortened": settings.gemm_epochs < PAPER_EPOCHS,
            }
        },
    }


def _rate(settings: Settings) -> float:
    return matrix_product_rate(settings.matrix_size, settings.device)


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
