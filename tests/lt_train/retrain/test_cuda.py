"""The fused engine on a CUDA device agrees with the reference on the CPU; skipped without a device."""

import logging
from collections.abc import Iterator

import pytest
import torch
from support.banks import make_bank
from support.compositions import ALLOWED, OPTIONS, PARTS
from support.engines import agree, assert_same, distance, kept, make_runs, predict

from lt_train.methods.base import MethodSpec, TrainingSpec
from lt_train.retrain import fused, stack
from lt_train.retrain.base import EpochSelection, Halving, Run

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

BANK = make_bank((40, 20, 9, 4, 1), dim=6, views=2, val_per_class=4)
SEEDS = (0, 7, 0, 7, 5)


@pytest.mark.parametrize("method", {**ALLOWED, **OPTIONS, **PARTS}.values(), ids=list({**ALLOWED, **OPTIONS, **PARTS}))
def test_every_composition_agrees_with_the_reference(method: MethodSpec) -> None:
    agree(BANK, make_runs(method, epochs=2, batch_size=32, seeds=SEEDS), EpochSelection("best", "test"), device="cuda")


def test_halving_agrees_with_the_reference() -> None:
    rates = (0.0002, 0.02, 1e-30, 0.1, 0.002)
    runs = [
        Run(run.method.model_copy(update={"lr": rate}), TrainingSpec(epochs=6), seed)
        for seed in (0, 7)
        for rate, run in zip(rates, make_runs("los", seeds=(0,) * 5), strict=True)
    ]
    results = agree(make_bank(), runs, EpochSelection("last", "test"), Halving((1, 3)), device="cuda")
    assert {result.stopped for result in results} == {1, 3, None}


def test_a_bank_on_the_host_gives_the_same_results(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = make_runs("los")
    expected = fused.fit(make_bank(), runs, "cuda")
    monkeypatch.setattr(stack, "SHARE_OF_DEVICE", 0.0)
    for run, found, wanted in zip(runs, fused.fit(make_bank(), runs, "cuda"), expected, strict=True):
        assert_same(make_bank(), run, found, wanted, 1e-6, EpochSelection())


def test_tf32_is_off_by_default_and_restored() -> None:
    """TF32 keeps ten bits of each factor, which is visible on devices that have it."""
    bank = make_bank((400,) * 100, dim=256, test_images=500)
    exact, fast = make_runs("los", epochs=1, seeds=(0, 0), alike=("lr", "momentum", "weight_decay", "smooth_factor"))
    fast = Run(fast.method, TrainingSpec(epochs=1, matmul="tf32"), fast.seed)
    before = torch.backends.cuda.matmul.fp32_precision
    one, other = (kept(result) for result in fused.fit(bank, [exact, fast], "cuda"))
    assert torch.backends.cuda.matmul.fp32_precision == before
    agree(bank, [exact], device="cuda")
    assert distance(predict(bank, fast, other), predict(bank, exact, one)) < 1e-2
    if torch.cuda.get_device_capability() >= (8, 0):
        assert distance(other.state["weight"], one.state["weight"]) > 0


@pytest.fixture
def little_memory() -> Iterator[None]:
    """1.2 GiB: half of what 64 lanes of 8 MB need with momentum, selected weights and temporaries."""
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1.2 * 2**30 / total)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


@pytest.mark.usefixtures("little_memory")
def test_memory_that_runs_out_is_tried_again_with_half(caplog: pytest.LogCaptureFixture) -> None:
    bank = make_bank((2,) * 1000, dim=2048, views=1, test_views=1, val_per_class=1, test_images=1000)
    runs = make_runs("los", epochs=1, seeds=(0,) * 64, alike=("momentum", "weight_decay"))
    with caplog.at_level(logging.WARNING):
        results = fused.fit(bank, runs, "cuda", EpochSelection("best"))
    assert any("memory ran out with 64 runs" in message for message in caplog.messages)
    alone = fused.fit(bank, runs[40:41], "cuda", EpochSelection("best"))[0]
    assert_same(bank, runs[40], results[40], alone, 1e-4, EpochSelection("best"))
