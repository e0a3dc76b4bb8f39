"""A sweep on an imported backbone: no stage 1, its own head as the start, and a plan with its feature dimension."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision
from safetensors.torch import save_file

import sweeps
from lt_train.core.errors import BankError, CheckpointError, SpecError
from lt_train.features.files import open_bank
from sweeps.config.spec import SweepSpec, load_resolved
from sweeps.experiment.plan import plan
from sweeps.experiment.prepare import prepare

CLASSES = 3


@pytest.fixture
def imported_sweep(small_sweep: Callable[..., SweepSpec], tmp_path: Path) -> Callable[..., SweepSpec]:
    rng = np.random.default_rng(0)

    def drawn(name: str, counts: list[int]) -> dict[str, Any]:
        labels = np.repeat(np.arange(CLASSES), counts)
        images = rng.integers(0, 256, (len(labels), 3, 16, 16), dtype=np.uint8) // 2
        return {
            f"{name}_images": (images + 40 * labels[:, None, None, None]).astype(np.uint8),
            f"{name}_labels": labels,
        }

    np.savez(tmp_path / "p.npz", **drawn("train", [30, 12, 6]), **drawn("val", [5] * 3), **drawn("test", [10] * 3))
    save_file(torchvision.models.resnet18(num_classes=CLASSES).state_dict(), tmp_path / "imported.safetensors")

    def make(**fields: Any) -> SweepSpec:
        model = {"kind": "imported", "factory": "torchvision:resnet18", "arguments": {"num_classes": CLASSES}}
        backbone = model | {"checkpoint": str(tmp_path / "imported.safetensors")} | fields
        return small_sweep(dataset={"path": str(tmp_path / "p.npz")}, backbone=backbone)

    return make


def test_a_sweep_runs_without_stage_1(imported_sweep: Callable[..., SweepSpec]) -> None:
    spec = imported_sweep()
    planned = plan(spec)
    assert (planned.feature_dim, planned.classes) == (512, CLASSES)
    half = spec.features.model_copy(update={"dtype": "float16"})
    assert plan(spec.model_copy(update={"features": half})).bank_bytes == planned.bank_bytes / 2
    result = sweeps.run(spec)
    assert result.runs.failed == 0
    bank = open_bank(Path(spec.storage) / "cache" / "banks" / result.bank_fingerprint)
    assert bank.head is not None
    assert bank.head[0].shape == (CLASSES, 512)


def test_without_a_head_methods_start_from_random_weights(imported_sweep: Callable[..., SweepSpec]) -> None:
    other = {"arguments": {"num_classes": 7}, "allow_missing": ["fc.*"]}
    with pytest.raises(CheckpointError, match=r"fc\.weight \[3, 512\].*\[7, 512\]"):
        prepare(imported_sweep(**other))
    warm = imported_sweep(use_head=False, **other)
    with pytest.raises(BankError, match="set init: random"):
        prepare(warm)
    fresh = warm.resolved() | {"baselines": [], "method": {"kind": "los", "init": "random"}}
    assert prepare(load_resolved(fresh)).head is None


def test_a_checkpoint_and_a_recipe_are_refused_together(
    small_sweep: Callable[..., SweepSpec], imported_sweep: Callable[..., SweepSpec]
) -> None:
    spec = imported_sweep()
    assert spec.backbone is not None
    with pytest.raises(SpecError, match="stage1: "):
        small_sweep(
            dataset=spec.dataset.model_dump(), backbone=spec.backbone.model_dump(mode="json"), stage1={"kind": "ce"}
        )
