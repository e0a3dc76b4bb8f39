"""A training interrupted at any step, in any way, resumes there and writes the same file as an undisturbed one."""

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lt_train.backbones.base import BACKBONES
from lt_train.datasets.base import ImageData
from lt_train.pretrain.recipes import RECIPES
from lt_train.pretrain.train import resume_file, train_backbone

CNN = {"kind": "small_cnn", "width": 4}
WITH_DROPOUT = {
    "kind": "imported",
    "factory": "timm:vit_tiny_patch16_224",
    "arguments": {
        "img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2, "proj_drop_rate": 0.2,
        "drop_path_rate": 0.2, "num_classes": 10,
    },
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "float32": {"kind": "ce", "epochs": 2, "batch_size": 16},
    "bfloat16": {"kind": "ldam_drw", "epochs": 2, "batch_size": 16, "precision": "bfloat16", "reweight_epoch": 1},
}
KILLED = """
import itertools, os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from lt_train.backbones.base import BACKBONES
from lt_train.datasets.base import DATASETS
from lt_train.pretrain.recipes import RECIPES
from lt_train.pretrain.train import train_backbone

saves = itertools.count()
last = int(sys.argv[2])
train_backbone(
    DATASETS.parse({"kind": "digits_lt"}).load(), BACKBONES.parse({"kind": "small_cnn", "width": 4}),
    RECIPES.parse({"kind": "ce", "epochs": 2, "batch_size": 16}), Path(sys.argv[1]), save_every=0,
    saved=lambda file: os.kill(os.getpid(), signal.SIGKILL) if next(saves) == last else None,
)
"""


pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]


Train = Callable[..., list[str]]


@pytest.fixture
def train(digits: ImageData) -> Train:
    """`train(out, backbone, recipe, ...)`: the notes that were reported."""

    def run(out: Path, backbone: dict[str, Any] = CNN, recipe: str = "float32", **more: Any) -> list[str]:
        notes: list[str] = []
        train_backbone(
            digits,
            BACKBONES.parse(backbone),
            RECIPES.parse(CASES[recipe]),
            out,
            report=lambda done, total, note: notes.append(note),
            **more,
        )
        return notes

    return run


@pytest.mark.parametrize(("backbone", "recipe"), [(CNN, "float32"), (WITH_DROPOUT, "float32"), (CNN, "bfloat16")])
def test_stopping_every_few_steps_gives_the_same_file(
    train: Train, tmp_path: Path, backbone: dict[str, Any], recipe: str
) -> None:
    train(tmp_path / "whole", backbone, recipe)
    out, stops = tmp_path / "stopped", 0
    while not out.exists():
        steps = itertools.count(1)
        try:
            notes = train(out, backbone, recipe, stop=lambda steps=steps: next(steps) == 7)
        except KeyboardInterrupt:
            stops += 1
            assert resume_file(out).exists()
    assert stops >= 5
    assert notes[0].startswith("resumed ")
    assert out.read_bytes() == (tmp_path / "whole").read_bytes()


def test_a_resumed_training_reports_its_step(train: Train, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "out", stop=lambda: True)
    assert train(tmp_path / "out")[0] == "resumed in epoch 1 after 1 steps"


@pytest.mark.parametrize("save", [3, 9, 30])
def test_killing_the_process_between_two_steps_gives_the_same_file(train: Train, tmp_path: Path, save: int) -> None:
    train(tmp_path / "whole")
    out = tmp_path / "killed"
    process = subprocess.run([sys.executable, "-c", KILLED, str(out), str(save)], check=False)
    assert process.returncode == -signal.SIGKILL
    assert train(out)[0].startswith("resumed ")
    assert out.read_bytes() == (tmp_path / "whole").read_bytes()


def test_how_often_the_state_is_saved_has_no_effect(train: Train, tmp_path: Path) -> None:
    counts = {}
    for save_every in (0.0, 1e9):
        files: list[Path] = []
        train(tmp_path / str(save_every), save_every=save_every, saved=files.append)
        counts[save_every] = len(files)
    assert counts[0.0] > counts[1e9] == 2
    assert (tmp_path / "0.0").read_bytes() == (tmp_path / "1000000000.0").read_bytes()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_waits_for_the_step_and_is_raised(train: Train, tmp_path: Path, number: signal.Signals) -> None:
    before = signal.signal(number, signal.default_int_handler)
    try:
        train(tmp_path / "whole")
        steps = itertools.count(1)

        def interrupted() -> bool:
            if next(steps) == 5:
                os.kill(os.getpid(), number)
            return False

        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "out", stop=interrupted)
        assert signal.getsignal(number) is signal.default_int_handler
        assert train(tmp_path / "out")[0] == "resumed in epoch 1 after 6 steps"
        assert (tmp_path / "out").read_bytes() == (tmp_path / "whole").read_bytes()
    finally:
        signal.signal(number, before)


def test_a_second_interrupt_does_not_wait(train: Train, tmp_path: Path) -> None:
    def twice() -> bool:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("the second interrupt must end this")

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "out", stop=twice)
    assert not resume_file(tmp_path / "out").exists()
