"""The benchmark suite on a tiny shape: every value exists and follows from its raw times. Speed is not tested."""

from __future__ import annotations

import io
import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from lt_train.methods.base import METHODS, TrainedMethod
from lt_train.retrain import reference
from sweeps.config.spec import load_resolved

pytestmark = pytest.mark.slow

HERE = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def on_path() -> Any:
    """Put the directory of the benchmarks on the path: they are a program, not a package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(HERE))
        yield


@pytest.fixture(scope="module")
def document(on_path: None) -> dict[str, Any]:
    from settings import LEVELS
    from suite import measure

    threads = torch.get_num_threads()
    try:
        tiny = LEVELS["tiny"]
        return json.loads(json.dumps(measure(tiny, tiny.parts)))
    finally:
        torch.set_num_threads(threads)


def median_ratio(slow: list[float], fast: list[float]) -> Any:
    """The median over the pairs, as in the suite."""
    return pytest.approx(statistics.median(one / other for one, other in zip(slow, fast, strict=True)))


def test_every_value_has_its_raw_times(document: dict[str, Any]) -> None:
    timings = document["timings"]
    for kind, ratio in document["fused_over_reference"].items():
        entry = timings["fused_over_reference"][kind]
        fused = [seconds / entry["fused_runs"] for seconds in entry["fused_seconds"]]
        assert ratio == median_ratio(entry["seconds_a_run_of_slow_side"], fused)
    assert document["fused_over_reference_limit"].keys() == {
        "los"
    }  # lanes of lws share their products; vanilla does not train
    entry = timings["fused_over_reference"]["los"]
    least = [entry["operations_a_run"] / rate / 1e9 for rate in entry["matrix_product_gflops"]]
    assert document["fused_over_reference_limit"]["los"] == median_ratio(entry["seconds_a_run_of_slow_side"], least)
    seconds = timings["reference_over_plain"]["seconds"]
    assert document["reference_over_plain"] == median_ratio(seconds["reference"], seconds["plain"])
    entry = timings["gemm_fraction"]
    for name, operations, taken in (
        ("gemm_fraction", "operations", "training_seconds"),
        ("gemm_fraction_with_evaluation", "operations_with_evaluation", "fit_seconds"),
        ("gemm_fraction_evaluation_uncounted", "operations", "fit_seconds"),
    ):
        least = [entry[operations] / rate / 1e9 for rate in entry["matrix_product_gflops"]]
        assert document[name] == median_ratio(least, entry[taken])
    for axis in ("N", "D", "K", "lanes"):
        times = {int(size): seconds for size, seconds in timings["growth"][axis]["seconds"].items()}
        low, high = min(times), max(times)
        assert document["growth"][axis] == median_ratio(
            [low * one for one in times[high]], [high * one for one in times[low]]
        )
    cases = timings["out_of_memory_bank_ratio"]["cases"].values()
    for case in cases:
        assert case["ratio"] == median_ratio(case["mapped"]["seconds"], case["in_memory"]["seconds"])
    assert document["out_of_memory_bank_ratio"] == max(case["ratio"] for case in cases)
    seconds = timings["extraction_over_forward"]["seconds"]
    assert document["extraction_over_forward"] == median_ratio(seconds["forward"], seconds["extraction"])
    ours = timings["sweep"]
    for name, side in (("sweep_over_stock_tune", "stock_tune"), ("sweep_over_reused_actors", "reused_actors")):
        scaled = timings[side]["seconds_scaled"]
        assert document[name] == pytest.approx(scaled / ours["seconds"])
        assert document[f"{name}_limit"] == pytest.approx(scaled / timings["least_seconds"])
        assert timings[side]["runs_measured"] == 2
    assert timings["runs"] == ours["runs_trained"] == 4
    assert document["control_plane_fraction"] == pytest.approx(1 - ours["training_seconds"] / ours["seconds"])


def test_the_document_describes_machine_and_settings(document: dict[str, Any]) -> None:
    assert {"cpu", "cores", "torch", "threads", "device"} <= document["machine"].keys()
    assert document["level"] == "tiny"
    assert document["seconds"].keys() == {"a", "b", "c", "d", "e", "f", "total"}
    assert document["timings"]["gemm_fraction"]["shortened"] is True
    assert [entry["shortened"] for entry in document["timings"]["large"]] == [True]
    assert len(document["timings"]["memory"]["bytes_by_lanes"]) == 4


def test_the_goals_of_all_measured_values_are_in_the_table(document: dict[str, Any]) -> None:
    from report import show

    met = {goal["value"]: goal["met"] for goal in document["goals"]}
    assert met["fused_over_reference.los"] == (document["fused_over_reference"]["los"] >= 8)
    assert "fused_over_reference.vanilla" not in met  # it does not train
    assert met["sweep_over_stock_tune"] == (document["sweep_over_stock_tune"] >= 10)
    assert met["control_plane_fraction"] == (document["control_plane_fraction"] <= 0.15)
    assert met["report_seconds"] == (document["report_seconds"] <= 20)
    assert met["report_mib"] == (document["report_mib"] <= 5)
    console = Console(file=io.StringIO(), width=200)
    show(document, console)
    text = console.file.getvalue()
    assert all(name in text for name in (*met, "memory by lanes", "tiny, fused over plain"))


def test_the_goal_is_missed_when_training_is_killed_at_the_memory_limit(document: dict[str, Any]) -> None:
    from report import goals

    killed = document | {"out_of_memory_bank_ratio": None}
    (goal,) = [goal for goal in goals(killed) if goal["value"] == "out_of_memory_bank_ratio"]
    assert goal["met"] is False


@pytest.mark.parametrize("kind", [kind for kind, spec in METHODS.kinds().items() if issubclass(spec, TrainedMethod)])
def test_the_plain_loop_and_the_reference_engine_train_the_same(kind: str, on_path: None) -> None:
    """With equal start and batches, accuracies equal those of the reference, so both sides do the same work."""
    import plain_loop
    from banks import generate
    from engines import make_runs, plain_run
    from settings import LEVELS

    bank, settings = generate(LEVELS["tiny"].shape), LEVELS["tiny"]
    run = make_runs(kind, settings, epochs=3)[-1]
    expected = reference.fit(bank, [run])[0].test_accuracy[:, 0]
    train = plain_loop.train

    def train_in_order_of_run(*data: torch.Tensor, **options: Any) -> Iterator[float]:
        options["draw"] = lambda epoch: run.method.sampler.order(bank.train_labels, run.seed, epoch)
        return train(*data, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plain_loop, "train", train_in_order_of_run)
        found = plain_run(bank, run, settings)()
    np.testing.assert_allclose(found, expected, atol=0.011)  # one test image


def test_lanes_of_every_registered_method_differ() -> None:
    from engines import make_runs
    from settings import LEVELS

    for kind, spec in METHODS.kinds().items():
        runs = make_runs(kind, LEVELS["tiny"], epochs=1)
        methods = {run.method.model_dump_json() for run in runs}
        if issubclass(spec, TrainedMethod):
            assert len(methods) == LEVELS["tiny"].trials, kind
        assert len({run.static_key() for run in runs}) == 1, kind


def test_a_bank_has_the_number_of_images_of_its_shape() -> None:
    from banks import class_counts, generate, resized
    from settings import CIFAR100_LT, INATURALIST, LEVELS

    assert sum(generate(CIFAR100_LT).class_counts.tolist()) == CIFAR100_LT.images == 10_847
    _, images, *_ = LEVELS["full"].large[1]
    reduced = resized(INATURALIST, images=images / INATURALIST.images)
    counts = class_counts(reduced)
    assert int(counts.sum()) == reduced.images == images
    assert int(counts.min()) >= 1


def test_the_sweep_file_of_part_c_is_valid(tmp_path: Path) -> None:
    from settings import LEVELS
    from sweeps_end_to_end import sweep_document

    spec = load_resolved(sweep_document(LEVELS["full"], tmp_path))
    assert (spec.search.trials, spec.selection.seeds, spec.training.epochs) == (60, 5, 20)


def test_only_the_time_per_run_is_scaled() -> None:
    from sweeps_end_to_end import scaled

    # Two workers: 10 s to start, 4 s per run on each worker (2 s per run in total), 3 s to end.
    assert scaled([14.0, 14.0, 18.0, 18.0], 21.0, runs=300, workers=2) == {
        "seconds_a_run": 2.0,
        "seconds_scaled": 21.0 + 296 * 2.0,
    }


def test_time_of_parallel_packs_counts_once() -> None:
    from sweeps_end_to_end import union_seconds

    assert union_seconds([(5.0, 6.0), (0.0, 2.0), (1.0, 3.0), (1.5, 1.6)]) == 4.0
