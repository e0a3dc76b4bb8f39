"""Stage 1 learns, is reproducible, and gives the same weights after a kill at any time."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.damage import damaged_copies, flip_bit

from lt_train.backbones.base import BACKBONES
from lt_train.backbones.checkpoint import load_checkpoint
from lt_train.core.errors import SpecError, UserError
from lt_train.datasets.base import ImageData
from lt_train.pretrain.recipes import RECIPES
from lt_train.pretrain.train import StateFile, resume_file, train_backbone

BACKBONE = {"kind": "small_cnn", "width": 8}
SLOW = """
import sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from lt_train.backbones.base import BACKBONES
from lt_train.datasets.base import DATASETS
from lt_train.pretrain.recipes import RECIPES
from lt_train.pretrain.train import train_backbone

def report(done, total, note):
    print(done, flush=True)
    time.sleep(0.3 if done else 0.0)  # time for the test to kill this process between two epochs

train_backbone(
    DATASETS.parse({"kind": "digits_lt"}).load(), BACKBONES.parse({"kind": "small_cnn", "width": 8}),
    RECIPES.parse({"kind": "ce", "epochs": 4}), Path(sys.argv[1]), report=report,
)
"""


pytestmark = pytest.mark.usefixtures("one_thread")


def train(data: ImageData, out: Path, epochs: int = 4, seed: int = 0, stop_after: int | None = None) -> list[str]:
    """Train; `stop_after` interrupts when that epoch is done. Returns the notes that were reported."""
    notes = []

    def report(done: int, total: int, note: str) -> None:
        notes.append(note)
        if done == stop_after:
            raise KeyboardInterrupt("stopped")

    recipe = RECIPES.parse({"kind": "ce", "epochs": epochs})
    train_backbone(data, BACKBONES.parse(BACKBONE), recipe, out, seed=seed, about={"dataset": "digits"}, report=report)
    return notes


def same_weights(first: Path, second: Path) -> bool:
    one, other = load_file(first), load_file(second)
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


def test_the_head_is_long_tailed_after_stage_1(digits: ImageData, tmp_path: Path) -> None:
    notes = train(digits, tmp_path / "out", epochs=20)
    accuracy = load_checkpoint(tmp_path / "out")[1]["accuracy"]
    assert accuracy["all"] > 0.6
    assert accuracy["many"] > accuracy["few"] + 0.1
    assert float(notes[-1].removeprefix("loss ")) < float(notes[1].removeprefix("loss ")) / 3


def test_the_checkpoint_describes_the_training(digits: ImageData, tmp_path: Path) -> None:
    train(digits, tmp_path / "out", epochs=1)
    about = load_checkpoint(tmp_path / "out")[1]
    assert about["dataset"] == "digits"
    assert about["recipe"]["epochs"] == 1
    assert about["mean"] == list(digits.mean)
    assert set(about["accuracy"]) == {"all", "many", "medium", "few"}
    assert not resume_file(tmp_path / "out").exists()


def test_the_seed_determines_every_bit_and_the_global_generator_none(digits: ImageData, tmp_path: Path) -> None:
    torch.manual_seed(1)
    train(digits, tmp_path / "one", epochs=1)
    state = torch.get_rng_state()
    torch.manual_seed(2)
    train(digits, tmp_path / "two", epochs=1)
    train(digits, tmp_path / "three", epochs=1, seed=1)
    assert same_weights(tmp_path / "one", tmp_path / "two")
    assert not same_weights(tmp_path / "one", tmp_path / "three")
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state())


def test_an_interrupted_training_ends_with_the_same_weights(digits: ImageData, tmp_path: Path) -> None:
    train(digits, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt, match="stopped"):
        train(digits, tmp_path / "resumed", stop_after=2)
    assert resume_file(tmp_path / "resumed").exists()
    assert not (tmp_path / "resumed").exists()
    notes = train(digits, tmp_path / "resumed")
    assert notes[0] == "resumed after epoch 2"
    assert len(notes) == 3
    assert same_weights(tmp_path / "whole", tmp_path / "resumed")
    assert not resume_file(tmp_path / "resumed").exists()


def test_a_killed_process_ends_with_the_same_weights(digits: ImageData, tmp_path: Path) -> None:
    train(digits, tmp_path / "whole")
    out = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, "-c", SLOW, str(out)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line == "2\n":
            break
    time.sleep(0.31)  # somewhere in epoch 3
    os.kill(process.pid, signal.SIGKILL)
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL
    assert not out.exists()
    notes = train(digits, out)
    assert notes[0] in ("resumed after epoch 2", "resumed after epoch 3")
    assert same_weights(tmp_path / "whole", out)


def test_the_first_report_of_a_resumed_training_counts_finished_epochs(digits: ImageData, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt, match="stopped"):
        train(digits, tmp_path / "out", stop_after=3)
    reports: list[tuple[int, int, str]] = []
    job = digits, BACKBONES.parse(BACKBONE), RECIPES.parse({"kind": "ce", "epochs": 4})
    train_backbone(
        *job, tmp_path / "out", about={"dataset": "digits"}, report=lambda *progress: reports.append(progress)
    )
    assert reports[0] == (3, 4, "resumed after epoch 3")


@pytest.mark.parametrize("other", ["another training", "damaged"])
def test_the_state_of_another_training_is_ignored_with_a_note(digits: ImageData, tmp_path: Path, other: str) -> None:
    train(digits, tmp_path / "whole", epochs=2)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt, match="stopped"):
        train(digits, out, epochs=2, seed=1, stop_after=1)
    state = resume_file(out)
    if other == "damaged":
        state.write_bytes(state.read_bytes()[:200])
    notes = train(digits, out, epochs=2)
    assert notes[0].endswith("is ignored")
    assert str(state) in notes[0]
    assert same_weights(tmp_path / "whole", out)


def test_a_damaged_state_is_set_aside_and_training_starts_over(
    digits: ImageData, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(digits, tmp_path / "whole", epochs=2)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt, match="stopped"):
        train(digits, out, epochs=2, stop_after=1)
    state = resume_file(out)
    flip_bit(state, -5)
    content = state.read_bytes()
    notes = train(digits, out, epochs=2)
    assert notes[0] == f"{state} is altered: its content does not match the digest in it and is ignored"
    assert same_weights(tmp_path / "whole", out)
    place = state.with_name(state.name + ".damaged")
    assert place.read_bytes() == content
    (warning,) = caplog.messages
    assert str(state) in warning
    assert place.name in warning


def test_no_damage_gives_another_state(tmp_path: Path) -> None:
    file = StateFile(tmp_path / "state", "this training")
    tensors = {"weight": torch.arange(6.0), "count": torch.tensor(3)}
    file.save(tensors, {"epoch": 1, "curve": [0.5]})
    content, ignored = file.path.read_bytes(), 0
    for damaged in damaged_copies(content, flips=300, cuts=10):
        file.path.write_bytes(damaged)
        found, note = file.load()
        if found is None:
            assert str(file.path) in note
            ignored += 1
        else:
            assert found[1] == {"epoch": 1, "curve": [0.5]}
            assert all(torch.equal(tensor, tensors[name]) for name, tensor in found[0].items())
            assert set(found[0]) == set(tensors)
    assert ignored > 300


def test_a_last_batch_of_one_image_is_dropped(digits: ImageData, tmp_path: Path) -> None:
    recipe = RECIPES.parse({"kind": "ce", "epochs": 1, "batch_size": len(digits.train) - 1})
    train_backbone(digits, BACKBONES.parse(BACKBONE), recipe, tmp_path / "out")
    assert (tmp_path / "out").exists()


def test_a_training_without_momentum_resumes(digits: ImageData, tmp_path: Path) -> None:
    recipe = RECIPES.parse({"kind": "ce", "epochs": 2, "momentum": 0})

    def stop(done: int, total: int, note: str) -> None:
        if done == 1:
            raise KeyboardInterrupt("stopped")

    train_backbone(digits, BACKBONES.parse(BACKBONE), recipe, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt, match="stopped"):
        train_backbone(digits, BACKBONES.parse(BACKBONE), recipe, tmp_path / "resumed", report=stop)
    train_backbone(digits, BACKBONES.parse(BACKBONE), recipe, tmp_path / "resumed")
    assert same_weights(tmp_path / "whole", tmp_path / "resumed")


def test_a_recipe_that_needs_all_classes_is_refused(digits: ImageData, tmp_path: Path) -> None:
    data = dataclasses.replace(digits, num_classes=12)
    recipe = RECIPES.parse({"kind": "ldam_drw", "epochs": 1})
    with pytest.raises(UserError, match=r"recipe ldam_drw: .* 2 of 12 .*10, 11"):
        train_backbone(data, BACKBONES.parse(BACKBONE), recipe, tmp_path / "out")


def test_recipe_fields_are_checked() -> None:
    with pytest.raises(SpecError, match=r"ce\.lr"):
        RECIPES.parse({"kind": "ce", "lr": 0})
    with pytest.raises(SpecError, match=r"'sce' is unknown; did you mean 'ce'\?"):
        RECIPES.parse({"kind": "sce"})


@pytest.mark.parametrize("text", ["{", "[1]", "[" * 300_000])
def test_a_state_with_an_altered_document_is_ignored_with_a_note(digits: ImageData, tmp_path: Path, text: str) -> None:
    out = tmp_path / "out"
    save_file({"x": torch.zeros(1)}, resume_file(out), metadata={"longtail-sweeps training state": text})
    assert train(digits, out, epochs=1)[0].endswith("is ignored")


def test_a_directory_cannot_be_written_as_a_checkpoint(digits: ImageData, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{tmp_path} is a directory"):
        train(digits, tmp_path, epochs=1)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_in_the_place_of_the_state_is_set_aside(digits: ImageData, tmp_path: Path) -> None:
    out = tmp_path / "out"
    resume_file(out).mkdir()
    assert train(digits, out, epochs=1)[0] == f"{resume_file(out)} is not a file and is ignored"
    assert {entry.name for entry in tmp_path.iterdir()} == {"out", "out.resume.damaged"}
