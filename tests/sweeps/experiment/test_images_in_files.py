"""A whole sweep on an image folder, and which fields of a dataset determine a cached checkpoint."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.images import write_tree

from lt_train.pretrain.recipes import RECIPES
from sweeps.config.spec import SweepSpec, load_resolved
from sweeps.experiment import runner
from sweeps.experiment.prepare import prepare

TREE = {"train": {"auk": 24, "crow": 12, "owl": 6}, "val": {"auk": 3, "crow": 3, "owl": 3}}


@pytest.fixture
def sweep(tmp_path: Path) -> Callable[..., SweepSpec]:
    root = write_tree(tmp_path / "birds", TREE | {"test": TREE["val"]})

    def make(name: str, **dataset: Any) -> SweepSpec:
        return load_resolved(
            {
                "version": 1,
                "name": name,
                "dataset": {"kind": "image_folder", "root": str(root), "size": 8, **dataset},
                "backbone": {"kind": "small_cnn", "width": 4},
                "stage1": {"kind": "ce", "epochs": 2},
                "features": {"views": 2},
                "method": {"kind": "los"},
                "training": {"epochs": 2},
                "search": {
                    "algorithm": "random",
                    "trials": 2,
                    "space": {"method.smooth_factor": {"uniform": [0.1, 0.9]}},
                },
                "selection": {"seeds": 2},
                "backend": {"kind": "inline"},
                "tracking": {"kind": "none"},
                "storage": str(tmp_path / "runs"),
            }
        )

    return make


def checkpoints(tmp_path: Path) -> set[str]:
    return {file.name for file in (tmp_path / "runs/cache/checkpoints").iterdir()}


def test_files_and_memory_give_the_same_winner_and_share_a_bank(
    sweep: Callable[..., SweepSpec], tmp_path: Path
) -> None:
    in_files, in_memory = runner.run(sweep("files", in_memory=0)), runner.run(sweep("memory"))
    assert in_files.winner is not None
    assert in_files.winner == in_memory.winner
    assert in_files.spec_fingerprint == in_memory.spec_fingerprint
    assert in_files.bank_fingerprint == in_memory.bank_fingerprint
    assert len(checkpoints(tmp_path)) == len(list((tmp_path / "runs/cache/banks").iterdir())) == 1
    assert any("0 auk, 1 crow, 2 owl" in note for note in in_files.notes)


def test_another_normalisation_trains_another_backbone(sweep: Callable[..., SweepSpec], tmp_path: Path) -> None:
    runner.run(sweep("one"))
    runner.run(sweep("other", mean=[0.5, 0.5, 0.5]))
    assert len(checkpoints(tmp_path)) == 2


def test_fields_that_do_not_affect_the_weights_reuse_the_backbone(
    sweep: Callable[..., SweepSpec], tmp_path: Path
) -> None:
    spec, fields = sweep("one"), {"kind": "ce", "epochs": 2}
    changed = [spec.stage1, *(RECIPES.parse(fields | more) for more in ({"val_every": 1}, {"sync_batch_norm": True}))]
    banks = [prepare(spec.model_copy(update={"stage1": stage1})) for stage1 in changed]
    assert len({bank.fingerprint for bank in banks}) == len(checkpoints(tmp_path)) == 1
