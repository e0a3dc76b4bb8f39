"""`imported`: any torch model, with weights that others trained, and no change to its code.

Features are what flows into its classifier layer, or layers, caught on the way; the layers' own weights are where
re-training starts. Touch this to change what a user may say: `factory` makes the model, `classifier_layers` finds the
layers, `weights` reads the file, `warm_head` makes one linear head of the layers.
Shapes: B images, C channels, H x W pixels, D features, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, JsonValue, field_validator, model_validator
from torch import Tensor, nn

from lt_train.backbones.base import BackboneSpec, FrozenBackbone
from lt_train.backbones.checkpoint import written_here
from lt_train.backbones.imported.classifier import FeaturesOf, check_classifier, find_classifiers
from lt_train.backbones.imported.factory import make_model
from lt_train.backbones.imported.head import warm_head
from lt_train.backbones.imported.weights import KeyReport, fit_weights, read_weights
from lt_train.core import seeding
from lt_train.core.errors import CheckpointError, UserError, first_line
from lt_train.core.io import sha256_file
from lt_train.core.validation import named

__all__ = ["Imported"]

PerChannel = Annotated[tuple[float, ...], Field(min_length=1)]
Names = Annotated[tuple[str, ...], Field(min_length=1)]


class Imported(BackboneSpec):
    """A model of torchvision or timm by name, or of any package of `--allow-import`, with a checkpoint of its own.

    Its images have as many channels as `mean` has numbers; grey ones are shown to all of them. Without a checkpoint
    it is trained by a stage-1 recipe, with a new classifier in the place of its own.
    """

    kind: Literal["imported"] = "imported"
    factory: str = Field(
        pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$",
        description="what makes the model: torchvision:NAME, timm:NAME, or package.module:function of a package that "
        "--allow-import names",
        examples=["torchvision:resnet18"],
    )
    arguments: dict[str, JsonValue] = Field(
        default_factory=dict, description="what it is called with, such as {num_classes: 100}"
    )
    checkpoint: str | None = Field(
        default=None,
        description="weights: a safetensors file, one of torch.save that holds tensors and plain values alone, or one "
        "of `lt-train backbone` of this factory, which says the other fields itself; null trains the model with the "
        "stage-1 recipe",
    )
    classifier: str | Names | None = Field(
        default=None,
        description="dotted name of the layer whose input is the features, such as fc or heads.head; a list of them "
        "takes the features of all side by side and the mean of their logits; null: the layer whose output the model "
        "returns, or those of whose outputs it returns the mean",
    )
    use_head: bool = Field(
        default=True,
        description="start from the classifier's weights; false takes features alone, and methods say init: random",
    )
    strip_prefix: str | None = Field(
        default=None,
        description="what to take off the names in the checkpoint; null finds module., backbone., model., _orig_mod.",
    )
    allow_missing: tuple[str, ...] = Field(
        default=(), description="patterns of tensors that the checkpoint need not have; they stay as initialised"
    )
    allow_left_over: tuple[str, ...] = Field(
        default=(), description="patterns of tensors in the checkpoint that the model need not have"
    )
    mean: PerChannel = Field(
        default=(0.485, 0.456, 0.406), description="mean a channel, 0..1 scale, of its training; default: ImageNet's"
    )
    std: PerChannel = Field(
        default=(0.229, 0.224, 0.225), description="standard deviation a channel, > 0; default: ImageNet's"
    )

    def __hash__(self) -> int:
        return hash(self.model_dump_json())  # arguments is a mapping, which has no hash

    @field_validator("classifier")
    @classmethod
    def _each_once(cls, names: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        twice = [] if names is None or isinstance(names, str) else [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(f"must name each layer once, got {twice[0]!r} {len(twice)} times")
        return names

    @model_validator(mode="after")
    def _one_of_each_a_channel(self) -> Imported:
        if len(self.mean) != len(self.std):
            raise ValueError(f"std must have as many numbers as mean, {len(self.mean)}, got {len(self.std)}")
        if min(self.std) <= 0:
            raise ValueError(f"std must be above 0 in every channel, got {min(self.std):g}")
        return self

    def build(self, in_channels: int) -> tuple[nn.Module, int]:
        """The model without its classifiers, and its D.

        Linear classifiers that are named say D; else images are tried, in the size that the model says, 224 or 32.
        """
        channels = len(self.mean)
        if in_channels not in (1, channels):
            raise UserError(f"{self.factory} takes images of {channels} channels, or grey ones, got {in_channels}")
        model = make_model(self.factory, self.arguments).eval()
        layers = dict(model.named_modules())
        linear = [layer for name in self._names() if isinstance(layer := layers.get(name), nn.Linear)]
        if linear and len(linear) == len(self._names()):
            network, dims = FeaturesOf(model, self._names(), channels), [layer.in_features for layer in linear]
        else:
            network, dims = self._split(model, _sizes(channels, model, self.arguments))
        network.drop_classifiers(dims)
        return network, sum(dims)

    def read_checkpoint(self, image_shape: tuple[int, int, int]) -> FrozenBackbone | None:
        """See `BackboneSpec.read_checkpoint`.

        Raises:
            CheckpointError: the file is missing, damaged or pickled, or its tensors are not the model's.
            UserError: the model cannot be made or takes other images, or its classifiers are not found or not linear.
        """
        assert self.checkpoint is not None, "only a backbone with a checkpoint has one to read"
        path = Path(self.checkpoint).expanduser()
        if written_here(path):
            return None
        tensors = read_weights(path)
        shape = (len(self.mean), *image_shape[1:])
        with seeding.global_stream("cpu", "imported backbone"):  # weights that are allowed to be missing stay as drawn
            model = make_model(self.factory, self.arguments).eval()
        network, dims = self._split(model, [shape])
        unused = () if self.use_head else network.layers
        try:
            report = fit_weights(
                model, tensors, self.strip_prefix, self.allow_missing, self.allow_left_over, ignored=unused
            )
        except CheckpointError as error:
            raise CheckpointError(f"checkpoint {path} for {self.factory}: {error}") from None
        head = warm_head(network, _images(shape), self.factory) if self.use_head else None
        directions = head.directions if head else ()
        layers = named(network.layers)
        start = head.note if head else f"features are what flows into {layers}, whose weights are not used"
        return FrozenBackbone(
            network=FeaturesOf(model, network.layers, shape[0], directions),
            feature_dim=sum(dims),
            head=(head.weight, head.bias) if head else None,
            in_channels=image_shape[0] if image_shape[0] == 1 else shape[0],
            mean=self.mean,
            std=self.std,
            identity={
                "backbone": self._identity(network.layers, directions, report),
                "checkpoint": sha256_file(path),
            },
            called=f"classifier {layers} of {self.factory}",
            remedy="give arguments and checkpoint of a model for these classes, or use_head: false to take its "
            "features alone",
            notes=(f"backbone {self.factory}: {report}; {start}",),
        )

    def _names(self) -> tuple[str, ...]:
        """The layers that are named."""
        return (self.classifier,) if isinstance(self.classifier, str) else self.classifier or ()

    def _split(self, model: nn.Module, shapes: Iterable[tuple[int, int, int]]) -> tuple[FeaturesOf, list[int]]:
        """The part of the model before its classifiers and the D of each, by images of the first shape it takes."""
        for name in self._names():
            check_classifier(model, name, self.factory, self.use_head)
        problems = []
        for shape in shapes:
            images = _images(shape)
            try:
                layers = self._names() or find_classifiers(model, images, self.factory)
                network = FeaturesOf(model, layers, shape[0])
                with torch.inference_mode():
                    return network, [part.shape[-1] for part in network.run(images)[0]]
            except UserError:
                raise
            except Exception as error:  # whatever the model's own code raises
                size = " x ".join(map(str, shape))
                problems.append(f"images of {size}: {type(error).__name__}: {first_line(error)}")
        raise UserError(f"{self.factory} cannot be run on {'; nor on '.join(problems)}")

    def _identity(self, layers: tuple[str, ...], directions: tuple[str, ...], report: KeyReport) -> dict[str, Any]:
        """What decides the features, beside the bytes of the checkpoint: JSON."""
        document = self.model_dump(mode="json", include={"kind", "factory", "arguments", "use_head"})
        keys = {"prefix": report.prefix, "missing": report.missing, "left_over": report.left_over}
        document["classifier"] = layers[0] if len(layers) == 1 else list(layers)
        if directions:
            document["directions"] = list(directions)
        return document | {"keys": {name: list(values) for name, values in keys.items()}}


def _sizes(channels: int, model: nn.Module, arguments: Mapping[str, Any]) -> list[tuple[int, int, int]]:
    """Shapes of images to try a model on: the one that it was made for where it says so, else the usual ones."""
    timms = (getattr(model, "default_cfg", None) or {}).get("input_size", [None])[-1]
    said = [arguments.get("image_size"), arguments.get("img_size"), getattr(model, "image_size", None), timms]
    stated = [size for size in said if isinstance(size, int)]
    return [(channels, size, size) for size in (stated[:1] or (224, 32))]


def _images(shape: tuple[int, int, int]) -> Tensor:
    """Images of noise, the same every time, in several contrasts so that their features are of several lengths."""
    noise = torch.rand(4, *shape, generator=seeding.generator("imported backbone images"))
    return noise * torch.tensor([1.0, 2.0, 0.5, 0.25]).view(4, 1, 1, 1)
