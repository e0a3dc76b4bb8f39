"""Parts (a) and (b): the fused engine against one run at a time, and against the hardware.

(a) For methods that train, the slow side is `plain_loop`: with the head and loss of torch where torch has them,
otherwise with those of the method, which the reference engine uses too. For methods that do not train, the slow side
is `retrain.reference`. `los` is compared with both. Both sides evaluate after every epoch. The limit is the ratio that
the hardware allows: only the matrix products remain, at the rate of a large product.
(b) The operations of the matrix products in training, divided by the training time, relative to the rate of one large
product measured at the same time. Two more values include the time of evaluation, with and without its operations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import plain_loop
import torch
from banks import generate
from measure import interleaved, matrix_product_rate, ratio, warm_up
from settings import BATCH_SIZE, PAPER_EPOCHS, Settings
from torch import Tensor, nn

from lt_train.core.errors import SpecError
from lt_train.core.fields import part_of
from lt_train.features.bank import FeatureBank
from lt_train.losses import CrossEntropy, Loss
from lt_train.methods.base import METHODS, MethodSpec, TrainedMethod, TrainingSpec
from lt_train.retrain import fused, reference
from lt_train.retrain.base import Run, RunResult, start_head

__all__ = ["arithmetic", "fit", "make_runs", "methods", "plain_run"]

NOT_VARIED = "momentum"
"""The only hyperparameter that no bundled sweep searches."""


def methods(settings: Settings) -> dict[str, Any]:
    """Part (a): `fused_over_reference.<method>`, and two other slow loops for `los`."""
    warm_up(settings.device)
    bank, settings = generate(settings.shape), replace(settings, seeds=settings.method_seeds)
    on_device = _to_device(bank, settings.device)
    found: dict[str, Any] = {"fused_over_reference": {}, "fused_over_reference_limit": {}}
    timings: dict[str, Any] = {"fused_over_reference": {}}
    for kind in settings.methods or METHODS.kinds():
        epochs = settings.epochs if kind == "los" else settings.epochs_of_others
        runs = make_runs(kind, settings, epochs)
        method, rates = runs[0].method, []
        sides: dict[str, Callable[[], Any]] = {}
        if method.trains:
            sides["plain"] = plain_run(bank, runs[0], settings)
        if kind == "los" or not method.trains:
            sides["reference"] = lambda run=runs[0]: fit(reference, on_device, [run], settings)
        if kind == "los":
            sides["plain_with_data_loader"] = plain_run(bank, runs[0], settings, data_loader=True)
        sides["fused"] = lambda runs=runs: fit(fused, bank, runs, settings)
        sides["matrix_product"] = lambda rates=rates: rates.append(_rate(settings))
        fit(fused, bank, make_runs(kind, settings, 1)[:4], settings)
        times = interleaved(sides, settings.repeats, settings.device)
        slow = times["plain" if "plain" in sides else "reference"]
        entry = timings["fused_over_reference"][kind] = {
            "slow_side": "plain" if "plain" in sides else "reference",
            "seconds_a_run_of_slow_side": slow,
            "fused_seconds": times["fused"],
            "fused_runs": len(runs),
            "epochs": epochs if method.trains else 0,
            "trained": method.trains,
            "shortened": method.trains and epochs < PAPER_EPOCHS,
            "varied": _varied_names(runs),
        }
        found["fused_over_reference"][kind] = len(runs) * ratio(slow, times["fused"])
        if method.trains and not method.head.needs_classifier:  # otherwise lanes share their products
            entry["matrix_product_gflops"] = rates
            entry["operations_a_run"] = settings.shape.operations(1, epochs, evaluation=True)
            least = [entry["operations_a_run"] / rate / 1e9 for rate in rates]
            found["fused_over_reference_limit"][kind] = ratio(slow, least)
        if kind == "los":
            found["fused_over_data_loader"] = len(runs) * ratio(times["plain_with_data_loader"], times["fused"])
            timings["fused_over_data_loader"] = {"seconds_a_run_of_slow_side": times["plain_with_data_loader"]}
            found["reference_over_plain"] = ratio(times["reference"], times["plain"])
            timings["reference_over_plain"] = {"seconds": {s: times[s] for s in ("reference", "plain")}}
    return {"values": found, "timings": timings}


def arithmetic(settings: Settings) -> dict[str, Any]:
    """Part (b): `gemm_fraction` of training and of the whole fit."""
    warm_up(settings.device)
    bank, shape, device = generate(settings.shape), settings.shape, settings.device
    # Same training with a minimal test set: the difference is the time of evaluation.
    few = bank.test.labels[: shape.classes]
    minimal_test = replace(bank, test=replace(bank.test, features=bank.test.features[:, : len(few)], labels=few))
    runs = make_runs("los", settings, settings.gemm_epochs)
    fit(fused, bank, make_runs("los", settings, 1)[:4], settings)
    rates: list[float] = []
    sides = {
        "matrix_product": lambda: rates.append(_rate(settings)),
        "fit": lambda: fit(fused, bank, runs, settings),
        "training": lambda: fit(fused, minimal_test, runs, settings),
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


def _varied_names(runs: list[Run]) -> list[str]:
    """Names of the hyperparameters that differ between lanes."""
    values = [run.method.lane_values() for run in runs]
    return sorted(name for name in values[0] if len({each[name] for each in values}) > 1)


def make_runs(kind: str, settings: Settings, epochs: int) -> list[Run]:
    """HalvingTrials x seeds with distinct values for a method that trains; a grid of one value otherwise."""
    training = TrainingSpec(epochs=epochs, batch_size=BATCH_SIZE)
    if issubclass(METHODS.kinds()[kind], TrainedMethod):
        return [Run(m, training, seed) for m in _varied(kind, settings.trials) for seed in range(settings.seeds)]
    grid = settings.taus if METHODS.parse({"kind": kind}).lane_values() else 1
    return [Run(method, training, seed=0) for method in _varied(kind, grid)]


def _varied(kind: str, count: int) -> Iterator[MethodSpec]:
    """`count` configurations of one method; every searchable hyperparameter differs in each."""
    default = METHODS.parse({"kind": kind})
    values = {path: value for path, value in default.lane_values().items() if path != NOT_VARIED}
    # Some hyperparameters belong to a mode that is not the default; there, only their default is valid.
    values = {path: value for path, value in values.items() if _accepted(default, {path: 0.9 * value})}
    for number in range(count):
        # Below the default, which is inside the range of every hyperparameter.
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
    return METHODS.parse(document)


def plain_run(
    bank: FeatureBank, run: Run, settings: Settings, *, data_loader: bool = False
) -> Callable[[], list[float]]:
    """The same run in the plain loop, on the device of the settings."""
    method, values, device = run.method, run.method.lane_values(), settings.device
    assert isinstance(method, TrainedMethod)
    features, labels, test_features, test_labels = (
        tensor.to(device)
        for tensor in (bank.train_features[0], bank.train_labels, bank.test.features[0], bank.test.labels)
    )
    weight, bias = (tensor.to(device) for tensor in start_head(bank, run))
    lanes = {name: torch.tensor(value, device=device) for name, value in values.items()}
    loss = method.loss(lanes, bank.class_counts.to(device))
    draw = after_epoch = None
    if method.sampler.kind != "instance":
        draw = partial(method.sampler.order, bank.train_labels, run.seed)
    if method.constraint is not None:
        assert bank.head is not None
        norms = bank.head[0].norm(dim=-1).to(device)
        after_epoch = partial(_project, method, norms, part_of(lanes, "constraint"))

    def train() -> list[float]:
        is_linear = method.head.kind == "linear"
        head = plain_loop.linear(weight, bias) if is_linear else method.head.module((weight, bias)).to(device)
        return list(
            plain_loop.train(
                features,
                labels,
                test_features,
                test_labels,
                head=head,
                criterion=_criterion(loss, values),
                epochs=run.training.epochs,
                batch_size=run.training.batch_size,
                lr=values["lr"],
                weight_decay=values["weight_decay"],
                seed=run.seed,
                draw=draw,
                after_epoch=after_epoch,
                data_loader=data_loader,
            )
        )

    return train


def _criterion(loss: Loss, values: dict[str, float]) -> plain_loop.Criterion:
    """The cross entropy of torch where it is equivalent, as a user would write it; otherwise the loss of the method."""
    is_plain = isinstance(loss, CrossEntropy) and loss.margin is None and isinstance(loss.weight, float)
    if is_plain and "smooth_head" not in values:
        cross_entropy = nn.CrossEntropyLoss(label_smoothing=values.get("smooth_factor", 0.0))
        shift = loss.shift
        return cross_entropy if shift is None else lambda logits, labels: cross_entropy(logits + shift, labels)
    return lambda logits, labels: loss(logits, labels).mean()


@torch.no_grad()
def _project(method: TrainedMethod, norms: Tensor, lanes: dict[str, Tensor], head: nn.Module) -> None:
    assert method.constraint is not None
    method.constraint.project_(head.get_parameter("weight"), -1, norms, lanes)


def _to_device(bank: FeatureBank, device: str) -> FeatureBank:
    """The bank with its features on the device."""
    test = replace(bank.test, features=bank.test.features.to(device))
    return replace(bank, train_features=bank.train_features.to(device), test=test)


def fit(engine: Any, bank: FeatureBank, runs: list[Run], settings: Settings) -> list[RunResult]:
    """Train with `engine`; raises if a run failed, because its time would be meaningless."""
    results: list[RunResult] = engine.fit(bank, runs, settings.device)
    for run, result in zip(runs, results, strict=True):
        if result.failure is not None:
            raise RuntimeError(f"{run.method} failed in the benchmark: {result.failure}")
    return results
