"""Checkpoints: an exact round trip, and errors that name the file."""

import contextlib
import json
import os
import random
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from support.damage import damaged_copies, flip_bit, flipped

from lt_train.backbones.base import BACKBONES, BackboneSpec
from lt_train.backbones.checkpoint import is_own_checkpoint, load_checkpoint, load_frozen, save_checkpoint
from lt_train.backbones.layers import Classifier
from lt_train.core.errors import CheckpointError
from lt_train.core.io import digest_tensors


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, Classifier]:
    classifier = Classifier(BACKBONES.parse({"kind": "small_cnn", "width": 3}), 1, 4)
    classifier(torch.randn(8, 1, 8, 8))  # moves the batch norm statistics
    path = tmp_path / "deep" / "stage1.safetensors"
    save_checkpoint(path, classifier, {"mean": [0.5], "accuracy": {"all": 0.25, "few": None}})
    return path, classifier.eval()


def rewrite(path: Path, **changes: object) -> None:
    """Change the document of a checkpoint as another version would, with the digest of the new content."""
    with safe_open(path, framework="pt") as contents:
        ((key, text),) = contents.metadata().items()
    document, tensors = json.loads(text) | changes, load_file(path)
    del document["digest"]
    document["digest"] = digest_tensors(document, tensors)
    save_file(tensors, path, metadata={key: json.dumps(document)})


def test_a_round_trip_gives_the_same_logits_and_document(saved: tuple[Path, Classifier]) -> None:
    path, classifier = saved
    loaded, about = load_checkpoint(path)
    images = torch.randn(5, 1, 8, 8)
    assert not loaded.training
    assert torch.equal(loaded(images), classifier(images))
    assert about["backbone"] == {"kind": "small_cnn", "width": 3}
    assert about["accuracy"] == {"all": 0.25, "few": None}
    assert (about["in_channels"], about["num_classes"], about["mean"]) == (1, 4, [0.5])
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_loading_leaves_the_global_generator_alone(saved: tuple[Path, Classifier]) -> None:
    before = torch.get_rng_state()
    load_checkpoint(saved[0])
    assert torch.equal(before, torch.get_rng_state())


def test_a_checkpoint_of_another_backbone_is_refused(
    saved: tuple[Path, Classifier],
) -> None:
    named = {"checkpoint": str(saved[0])}
    assert load_frozen(BACKBONES.parse({"kind": "small_cnn"} | named), (1, 8, 8)).feature_dim == 12
    for document in ({"kind": "resnet32"}, {"kind": "imported", "factory": "torchvision:resnet18"}):
        with pytest.raises(
            CheckpointError,
            match=rf"stage1\.safetensors was .* another backbone: kind must be {document['kind']}, got small_cnn",
        ):
            load_frozen(BACKBONES.parse(document | named), (1, 8, 8))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"checkpoint {tmp_path}/none does not exist; train one with"):
        load_checkpoint(tmp_path / "none")


@pytest.mark.parametrize("size", [0, 4, 100, -1])
def test_a_truncated_file_is_named(saved: tuple[Path, Classifier], size: int) -> None:
    path = saved[0]
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=rf"checkpoint {path} cannot be read"):
        load_checkpoint(path)


def test_a_flipped_bit_in_a_weight_is_noticed(saved: tuple[Path, Classifier]) -> None:
    path = saved[0]
    flip_bit(path, -5)
    with pytest.raises(CheckpointError, match=rf"checkpoint {path} is altered: .* digest .*; train it again"):
        load_checkpoint(path)


def test_a_flipped_bit_in_the_document_is_noticed(saved: tuple[Path, Classifier]) -> None:
    path = saved[0]
    flip_bit(path, path.read_bytes().index(b"0.25"), 0)  # an accuracy of 1.25
    with pytest.raises(CheckpointError, match=rf"checkpoint {path} is altered: .* digest .*; train it again"):
        load_checkpoint(path)


def test_no_damage_gives_another_classifier(saved: tuple[Path, Classifier]) -> None:
    path = saved[0]
    content, truth = path.read_bytes(), load_checkpoint(path)
    weights, messages = truth[0].state_dict(), list[str]()
    for damaged in damaged_copies(content, flips=200, cuts=10):
        path.write_bytes(damaged)
        try:
            classifier, about = load_checkpoint(path)
        except CheckpointError as error:
            messages.append(str(error))
        else:
            assert about == truth[1]
            assert all(torch.equal(tensor, weights[name]) for name, tensor in classifier.state_dict().items())
    assert len(messages) > 200
    assert all(f"checkpoint {path}" in message for message in messages)


@pytest.mark.slow
def test_every_flipped_bit_is_refused_or_keeps_the_identity(tmp_path: Path) -> None:
    path = tmp_path / "stage1.safetensors"
    classifier = Classifier(BACKBONES.parse({"kind": "small_cnn", "width": 1}), 1, 2)
    # A flipped bit turns 1e-05 into 1E-05, and may change the last digit of 0.30000000000000004 with no effect.
    save_checkpoint(path, classifier, {"recipe": {"lr": 1e-05}, "accuracy": {"all": 0.1 + 0.2}, "notes": ["é"]})
    content, truth = path.read_bytes(), load_frozen(path, (1, 8, 8)).identity
    header = 8 + int.from_bytes(content[:8], "little")
    stream, accepted = random.Random(0), list[bytes]()
    places = [*range(header), *(stream.randrange(header, len(content)) for _ in range(200))]
    with path.open("r+b", buffering=0) as file:
        for place in places:
            for bit in range(8):
                changed = flipped(content, place, bit)
                os.pwrite(file.fileno(), changed[place : place + 1], place)
                with contextlib.suppress(CheckpointError):
                    assert load_frozen(path, (1, 8, 8)).identity == truth, f"bit {bit} of byte {place}"
                    accepted.append(changed)
                assert is_own_checkpoint(path) or not _is_readable(path), f"bit {bit} of byte {place}"
            os.pwrite(file.fileno(), content[place : place + 1], place)
    assert any(b"1E-05" in changed for changed in accepted)


def _is_readable(path: Path) -> bool:
    try:
        load_file(path)
    except SafetensorError:
        return False
    return True


def test_a_file_of_another_tool_is_named(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match=rf"checkpoint {path} was not written by `lt-train backbone`"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"format": 99}, "format: must be 2, got 99"),
        ({"format": "2"}, "format: must be 2, got '2'.*train it again"),
        ({"in_channels": "1"}, "in_channels: .*got '1'"),
        ({"num_classes": 0}, "num_classes: .*got 0"),
        ({"num_classes": True}, "num_classes: .*got true"),
        ({"backbone": None}, "backbone: .*got null"),
        ({"backbone": {"kind": ["small_cnn"]}}, "its backbone is not supported by this version: kind"),
        ({"cosine_scale": -1}, "cosine_scale: .*got -1"),
        ({"cosine_scale": "30"}, "cosine_scale: .*got '30'"),
        ({"cosine_scale": 30.0}, "tensors do not fit backbone small_cnn"),
        ({"mean": 0.5}, "mean: .*got 0.5"),
        ({"mean": [0.5, 0.5]}, "mean must have one number per input channel"),
        ({"std": ["x"]}, r"std\[0\]: .*got 'x'"),
        ({"num_classes": 5}, "tensors do not fit backbone small_cnn with 5 classes"),
        ({"backbone": {"kind": "small_cnn", "width": 4}}, "tensors do not fit backbone small_cnn"),
        ({"backbone": {"kind": "vgg"}}, "its backbone is not supported by this version: .*'vgg'"),
    ],
)
def test_a_document_that_does_not_fit_is_refused(
    saved: tuple[Path, Classifier], changes: dict[str, object], match: str
) -> None:
    rewrite(saved[0], **changes)
    with pytest.raises(CheckpointError, match=match):
        load_checkpoint(saved[0])


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "its metadata is invalid: .*JSON"),
        ("[1]", r"its metadata is invalid: must be a mapping.*got \[1\]"),
        ("{}", "its metadata is invalid: format: is required"),
        ('{"format": 2}', "its metadata is invalid: backbone: is required"),
    ],
)
def test_an_altered_document_is_refused(saved: tuple[Path, Classifier], text: str, match: str) -> None:
    path = saved[0]
    save_file(load_file(path), path, metadata={"longtail-sweeps checkpoint": text})
    with pytest.raises(CheckpointError, match=f"checkpoint {path}: {match}"):
        load_checkpoint(path)


@pytest.mark.parametrize("depth", [150, 300_000])
def test_a_deeply_nested_document_is_refused(saved: tuple[Path, Classifier], depth: int) -> None:
    path = saved[0]
    rewrite(path, notes=0)
    with safe_open(path, framework="pt") as contents:
        ((key, text),) = contents.metadata().items()
    nested = text.replace('"notes": 0', f'"notes": {"[" * depth}{"]" * depth}')
    save_file(load_file(path), path, metadata={key: nested})
    with pytest.raises(CheckpointError, match=f"checkpoint {path}: its metadata is invalid"):
        load_checkpoint(path)


def test_a_checkpoint_of_another_address_is_refused_where_one_is_required(saved: tuple[Path, Classifier]) -> None:
    path, classifier = saved
    with pytest.raises(CheckpointError, match=rf"{path} belongs to another training: .* must be abc, got None; train"):
        load_checkpoint(path, address="abc")
    identity = load_frozen(path, (1, 8, 8)).identity
    save_checkpoint(path, classifier, {"mean": [0.5], "accuracy": {"all": 0.25, "few": None}, "address": "abc"})
    assert load_checkpoint(path)[1]["address"] == load_checkpoint(path, address="abc")[1]["address"] == "abc"
    assert load_frozen(path, (1, 8, 8)).identity == identity, "the same content has the same bank"
    with pytest.raises(CheckpointError, match=r"its address must be abd, got abc"):
        load_checkpoint(path, address="abd")


@pytest.mark.parametrize("name", ["best.pt", "best.safetensors"])
def test_a_pickle_of_torch_is_distinguished_from_a_damaged_file(tmp_path: Path, name: str) -> None:
    torch.save({"weight": torch.zeros(2)}, tmp_path / name)
    with pytest.raises(CheckpointError, match=r"is a PyTorch pickle.*`lt-train backbone`"):
        load_checkpoint(tmp_path / name)


def test_the_description_of_checkpoint_names_the_file_format() -> None:
    description = BackboneSpec.model_fields["checkpoint"].description
    assert description is not None
    assert "safetensors file written by `lt-train backbone`" in description
