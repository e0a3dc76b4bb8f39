"""Checkpoints: a trained classifier in one safetensors file, and the frozen network that a bank is extracted with.

A JSON document in the file describes the classifier and contains a digest of the whole content, which loading verifies.
Files are written atomically and read without pickle. The identity of a checkpoint is a hash of its content, not of the
file: the few flipped bits that do not change the content, such as that from `1e-05` to `1E-05`, are accepted. In a
cache, the document also contains the address that the file is stored under. It is not part of the identity.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt, ValidationError, model_validator
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lt_train.backbones.base import BACKBONES, BackboneSpec, FrozenBackbone, WholeModel
from lt_train.backbones.layers import Classifier
from lt_train.core.code import code_of
from lt_train.core.errors import CheckpointError, SpecError, UserError
from lt_train.core.io import atomic_file, digest_tensors, fingerprint_tensors, parse_json, write_tensors
from lt_train.core.validation import dotted, explain

__all__ = ["ImageSource", "is_own_checkpoint", "load_checkpoint", "load_frozen", "load_whole", "save_checkpoint"]


_KEY = "longtail-sweeps checkpoint"


def save_checkpoint(path: Path, classifier: Classifier, about: Mapping[str, Any]) -> None:
    """Write `classifier` to `path`, atomically.

    Args:
        path: the file; an existing one is replaced.
        classifier: on any device.
        about: further entries of the document, JSON: dataset, recipe, `mean`, `std`, accuracy, and in a cache the
            `address` of the file. The keys `format`, `backbone`, `in_channels`, `num_classes`, `cosine_scale` and
            `digest` are set from the classifier.

    Raises:
        StorageError: the disk is full or not writable; an existing file is kept.
    """
    document = {
        **about,
        "format": 2,
        "backbone": classifier.spec.model_dump(mode="json", exclude={"checkpoint"}),
        "in_channels": classifier.in_channels,
        "num_classes": classifier.num_classes,
        "cosine_scale": classifier.cosine_scale,
    }
    tensors = classifier.state_dict()
    # In the document, because safetensors writes several entries of metadata in any order.
    document["digest"] = _digest(document, tensors)
    with atomic_file(path) as temporary:
        write_tensors(temporary, tensors, {_KEY: json.dumps(document)})


def _digest(document: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """The digest of a checkpoint's content, without the entry of the document that holds it."""
    return digest_tensors(_without(document, "digest"), tensors)


def _without(document: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in document.items() if name not in names}


def load_checkpoint(path: Path, address: str | None = None) -> tuple[Classifier, dict[str, Any]]:
    """The classifier, on the CPU in evaluation mode, and the document it was saved with.

    Args:
        path: the file.
        address: the address that the checkpoint must have been saved for; None accepts any, and none.

    Raises:
        CheckpointError: the file is missing, damaged, of another format or of another address, or its tensors do not
            fit the backbone.
    """
    path = path.expanduser()
    if not path.is_file():
        raise CheckpointError(
            f"checkpoint {path} does not exist; train one with `lt-train backbone` or correct the path"
        )
    try:
        with safe_open(path, framework="pt") as contents:
            metadata = contents.metadata() or {}
            tensors = {name: contents.get_tensor(name) for name in contents.keys()}
    except (SafetensorError, OSError) as error:
        if _is_pickle(path):
            raise CheckpointError(
                f"checkpoint {path} is a PyTorch pickle, which is not supported here; give a safetensors file written "
                "by `lt-train backbone`, or use backbone imported for weights trained elsewhere"
            ) from None
        raise CheckpointError(
            f"checkpoint {path} cannot be read ({error}): it is truncated, altered or not a safetensors file; "
            "train it again"
        ) from None
    if _KEY not in metadata:
        raise CheckpointError(
            f"checkpoint {path} was not written by `lt-train backbone`; train one with that command, or use "
            "backbone imported for weights trained elsewhere"
        )
    document = _document(path, metadata[_KEY])
    if document["digest"] != _digest(document, tensors):
        raise CheckpointError(
            f"checkpoint {path} is altered: its content does not match the digest in it; train it again"
        )
    if address is not None and document.get("address") != address:
        raise CheckpointError(
            f"checkpoint {path} belongs to another training: its address must be {address}, got "
            f"{document.get('address')}; train it again"
        )
    try:
        backbone = BACKBONES.parse(document["backbone"])
    except SpecError as error:
        raise CheckpointError(f"checkpoint {path}: its backbone is not supported by this version: {error}") from None
    try:
        with torch.random.fork_rng(devices=[]):  # initial weights are overwritten; keep the global generator as it is
            classifier = Classifier(
                backbone, document["in_channels"], document["num_classes"], document["cosine_scale"]
            )
        classifier.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(
            f"checkpoint {path}: its tensors do not fit backbone {backbone.kind} with "
            f"{document['num_classes']} classes: {error}"
        ) from None
    return classifier.eval(), document


def is_own_checkpoint(path: Path) -> bool:
    """Whether `path` was written by `save_checkpoint`; its contents are not checked.

    With a damaged key it is recognised by its document, so that it is refused and not read as weights of another tool.
    """
    try:
        with safe_open(path, framework="pt") as contents:
            metadata = contents.metadata() or {}
    except (SafetensorError, OSError):
        return False
    return _KEY in metadata or any('"cosine_scale": ' in text for text in metadata.values())


class _Document(BaseModel):
    """The entries of a checkpoint's document that describe its classifier. Others describe its training."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)

    format: Literal[2]
    backbone: dict[str, Any]
    in_channels: PositiveInt
    num_classes: PositiveInt
    cosine_scale: PositiveFloat | None
    digest: str
    mean: list[float] | None = None
    std: list[float] | None = None

    @model_validator(mode="after")
    def _one_per_channel(self) -> Self:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) != self.in_channels:
                raise ValueError(f"{name} must have one number per input channel, got {values}")
        return self


def _document(path: Path, text: str) -> dict[str, Any]:
    """The JSON document of a checkpoint, validated."""
    try:
        _Document.model_validate_json(text)
        document: dict[str, Any] = parse_json(text)
    except ValidationError as error:
        loc, message = explain(error, _Document)[0]
        field = f"{dotted(loc)}: " if loc else ""
        raise CheckpointError(f"checkpoint {path}: its metadata is invalid: {field}{message}; train it again") from None
    except ValueError as error:
        raise CheckpointError(f"checkpoint {path}: its metadata is invalid: {error}; train it again") from None
    return document


def _is_pickle(path: Path) -> bool:
    """Whether the file was written by `torch.save`: a zip archive, or a bare pickle of old versions."""
    if path.suffix in {".pt", ".pth"}:
        return True
    try:
        with path.open("rb") as file:
            start = file.read(2)
    except OSError:
        return False
    return start == b"PK" or start in {b"\x80\x02", b"\x80\x04"}


def load_frozen(source: Path | BackboneSpec, image_shape: tuple[int, int, int]) -> FrozenBackbone:
    """The network of a checkpoint of `lt-train backbone`, or of a backbone and the checkpoint that it names.

    Args:
        source: the checkpoint or the backbone.
        image_shape: `(C, H, W)` of the images to process.

    Raises:
        CheckpointError: the file is missing, damaged or of another backbone.
        UserError: see `BackboneSpec.read_checkpoint`.
    """
    if isinstance(source, BackboneSpec):
        if source.checkpoint is None:
            raise CheckpointError(f"backbone {source.kind} has no weights; give it a checkpoint")
        if (frozen := source.read_checkpoint(image_shape)) is not None:
            _freeze(frozen.network)
            code = code_of(source)
            return replace(frozen, identity={**frozen.identity, "code": code}) if code else frozen
        path = Path(source.checkpoint).expanduser()
    else:
        path = source.expanduser()
    classifier, about = load_checkpoint(path)
    if isinstance(source, BackboneSpec):
        _refuse_other(source, about["backbone"], path)
    code = code_of(BACKBONES.parse(about["backbone"]))
    content = fingerprint_tensors(_without(about, "digest", "address"), classifier.state_dict())
    _freeze(classifier.backbone)
    return FrozenBackbone(
        network=classifier.backbone,
        feature_dim=classifier.feature_dim,
        head=classifier.linear_head(),
        in_channels=classifier.in_channels,
        mean=about.get("mean"),
        std=about.get("std"),
        identity={"backbone": about["backbone"], "checkpoint": content, **({"code": code} if code else {})},
        display_name=f"checkpoint {path}",
        remedy="train one on this dataset with `lt-train backbone`",
        record={name: about[name] for name in ("recipe", "seed", "accuracy", "curve") if name in about},
    )


def load_whole(
    source: Path | BackboneSpec, image_shape: tuple[int, int, int], head: tuple[Tensor, Tensor]
) -> WholeModel:
    """The model of a source, see `load_frozen`, with another head.

    Args:
        source: the checkpoint or the backbone.
        image_shape: `(C, H, W)` of the images to process.
        head: `(weight [K, D], bias [K])` on the features of `load_frozen`.

    Raises:
        CheckpointError: see `load_frozen`.
        UserError: see `BackboneSpec.with_head`; or the classifier of the checkpoint is a cosine classifier.
    """
    path = source if isinstance(source, Path) else Path(source.checkpoint or "")
    if isinstance(source, BackboneSpec) and not is_own_checkpoint(path.expanduser()):
        whole = source.with_head(image_shape, head, None)
        assert whole is not None, "a kind that reads checkpoints of other tools returns the model"
        return whole
    classifier, _ = load_checkpoint(path)
    if classifier.cosine_scale is not None:
        raise UserError(
            f"the classifier of checkpoint {path} computes cosines, and cannot hold the weights of a linear head"
        )
    whole = classifier.spec.with_head(image_shape, head, classifier.backbone.state_dict())
    if whole is not None:
        return whole
    spec = classifier.spec.model_dump(mode="json", exclude={"checkpoint"})
    code = (
        "from lt_train.backbones.base import BACKBONES\n"
        "from lt_train.backbones.layers import Classifier\n\n"
        f"backbone = BACKBONES.parse({spec!r})\n"
        f"model = Classifier(backbone, in_channels={classifier.in_channels}, num_classes={len(head[0])})"
    )
    state = {**classifier.state_dict(), "head.weight": head[0], "head.bias": head[1]}
    return WholeModel(state, code, classifier.in_channels)


def _refuse_other(wanted: BackboneSpec, found: Mapping[str, Any], path: Path) -> None:
    """Refuse a checkpoint of another kind of backbone or another imported model than `wanted`."""
    for name in ("kind", "factory"):
        expected = getattr(wanted, name, None)
        if expected is not None and expected != found.get(name):
            raise CheckpointError(
                f"checkpoint {path} was trained with another backbone: {name} must be {expected}, got "
                f"{found.get(name)}; change the backbone or the checkpoint"
            )


def _freeze(network: nn.Module) -> None:
    """Set evaluation mode and replace parametrized weights by their values, so that the network can be pickled."""
    network.eval()  # in train mode, some parametrizations change at every access
    for module in list(network.modules()):
        if parametrize.is_parametrized(module):
            for name in list(module.parametrizations):  # type: ignore[arg-type]
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)


@dataclass(frozen=True)
class ImageSource:
    """The source of a bank's features: the backbone, and the shape `(C, H, W)` of its images."""

    backbone: Path | BackboneSpec
    shape: tuple[int, int, int]
