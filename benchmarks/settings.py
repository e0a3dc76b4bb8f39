"""Settings of the suite: shapes of real banks, and the size of each part at the levels full, quick and tiny.

Shortened measurements are labelled as such in the JSON. Shapes: N training images, D features, K classes.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace

__all__ = ["CIFAR100_LT", "IMAGENET_LT", "INATURALIST", "LEVELS", "PAPER_EPOCHS", "Settings", "Shape"]

PAPER_EPOCHS = 20
BATCH_SIZE = 64


@dataclass(frozen=True)
class Shape:
    """Shape of a bank. Class sizes decay exponentially from `n_max` to `n_max / imbalance_ratio`, in total `images`."""

    name: str
    images: int
    dim: int
    classes: int
    test_images: int
    n_max: int
    imbalance_ratio: float

    def operations(self, runs: int, epochs: int, *, evaluation: bool = False) -> float:
        """Operations of the matrix products: per run and epoch 4 N D K (logits, weight gradient) and 2 N_test D K."""
        images = 4 * self.images + (2 * self.test_images if evaluation else 0)
        return float(images) * self.dim * self.classes * runs * epochs


CIFAR100_LT = Shape("CIFAR100-LT, IR 100", 10_847, 512, 100, 10_000, n_max=500, imbalance_ratio=100)
IMAGENET_LT = Shape("ImageNet-LT", 115_846, 2048, 1000, 50_000, n_max=1280, imbalance_ratio=256)
INATURALIST = Shape("iNaturalist 2018", 437_513, 2048, 8142, 24_426, n_max=1000, imbalance_ratio=500)
_TINY = Shape("tiny", 210, 16, 10, 100, n_max=50, imbalance_ratio=10)


@dataclass(frozen=True)
class Settings:
    """Settings of one run of the suite.

    Attributes:
        level: full, quick or tiny.
        parts: letters of the parts to measure.
        methods: kinds to measure in (a); empty: all registered kinds.
        trials, seeds: size of the fused packs of (b) and (d).
        method_seeds: seeds in the packs of (a). Two give one stack for each of two cores; more only take longer.
        taus: grid size in (a) for methods that do not train.
        epochs: epochs of runs of `los` in (a); the paper uses 20. Runs of (d) have one epoch.
        epochs_of_others: epochs of runs of all other methods in (a).
        gemm_epochs, gemm_repeats: epochs of runs in (b), and number of repeats.
        repeats: number of pairs for each ratio.
        matrix_size: rows and columns of the matrices whose product gives the rate of the hardware.
        sweep_trials, sweep_seeds, sweep_epochs: size of the sweep of (c).
        stock_trials, reused_trials: trials of the Ray Tune searches of (c), with `sweep_seeds` runs each; their times
            are scaled to the size of the sweep.
        large: shape, reduced number of images, trials and seeds of the large cases in (d).
        memory_bank_bytes: size of the training features of the bank in (d) that exceeds memory.
        memory_limit_bytes: memory limit of its process; None: no limit.
        extraction_dataset, extraction_backbone, extraction_test_images, extraction_repeats: inputs and number of pairs
            of (e).
        report_trials, report_seeds: size of the sweep of (f).
        fresh_processes: whether each piece runs in its own process; required for meaningful results.
    """

    level: str
    device: str = "cpu"
    threads: int = field(default_factory=lambda: os.cpu_count() or 1)
    parts: tuple[str, ...] = ("a", "b", "c", "d", "e", "f")
    methods: tuple[str, ...] = ()
    shape: Shape = CIFAR100_LT
    trials: int = 12
    seeds: int = 5
    method_seeds: int = 2
    taus: int = 21
    epochs: int = PAPER_EPOCHS
    epochs_of_others: int = 5
    gemm_epochs: int = PAPER_EPOCHS
    gemm_repeats: int = 2
    repeats: int = 3
    matrix_size: int = 2048
    sweep_trials: int = 60
    sweep_seeds: int = 5
    sweep_epochs: int = PAPER_EPOCHS
    stock_trials: int = 2
    reused_trials: int = 4
    large: tuple[tuple[Shape, int, int, int], ...] = ((IMAGENET_LT, 11_584, 2, 5), (INATURALIST, 13_672, 2, 1))
    memory_bank_bytes: int = 640 * 2**20
    memory_limit_bytes: int | None = 2**29
    extraction_dataset: str = "fashion_mnist_lt"
    extraction_backbone: str = "resnet32"
    extraction_test_images: int = 2048
    extraction_repeats: int = 5
    report_trials: int = 300
    report_seeds: int = 5
    fresh_processes: bool = True

    def for_device(self, device: str) -> Settings:
        """The settings for `device`. A CUDA device gets 256 lanes and skips (c) and (f), which do not use it."""
        if device == self.device:
            return self
        parts = tuple(part for part in self.parts if part not in "cf")
        return replace(self, device=device, trials=64, seeds=4, method_seeds=4, parts=parts)


LEVELS = {
    "full": Settings("full"),
    "quick": Settings("quick", parts=("a", "b"), methods=("los",), epochs=2, gemm_epochs=2, gemm_repeats=1, repeats=1),
    "tiny": Settings(
        "tiny",
        threads=1,
        methods=("los", "lws", "vanilla"),
        shape=_TINY,
        trials=2,
        seeds=2,
        epochs=2,
        epochs_of_others=2,
        taus=3,
        gemm_epochs=2,
        gemm_repeats=1,
        repeats=1,
        matrix_size=64,
        sweep_trials=2,
        sweep_seeds=2,
        sweep_epochs=2,
        stock_trials=1,
        reused_trials=1,
        large=((_TINY, 100, 1, 1),),
        memory_bank_bytes=2**20,
        memory_limit_bytes=None,
        extraction_dataset="digits_lt",
        extraction_backbone="small_cnn",
        extraction_repeats=1,
        report_trials=4,
        report_seeds=2,
        fresh_processes=False,
    ),
}
