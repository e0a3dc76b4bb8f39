"""`imported`: any torch model, with weights that others trained, and no change to its code.

Features are what flows into its classifier layer, caught on the way; the layer's own weights are where re-training
starts. Touch this to change how that layer is found or what it may be; `factory` makes the model and `weights` reads
its file. Shapes: B pictures, C channels, H x W pixels, D features, K classes.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, JsonValue, model_validator
from torch import Tensor, nn

from lt_train import seeding
from lt_train.backbones.base import BackboneSpec, Frozen
from lt_train.backbones.checkpoint import written_here
from lt_train.backbones.factory import make_model
from lt_train.backbones.weights import KeyReport, fit_weights, read_weights
from lt_train.errors import CheckpointError, UserError, first_line
from lt_train.storage import sha256_file

__all__ = ["FeaturesOf", "Imported"]

PerChannel = Annotated[tuple[float, ...], Field(min_length=1)]


class Imported(BackboneSpec):
    """A model of torchvision or timm by name, or of any package of `--allow-import`, with a checkpoint of its own.

    Its pictures have as many channels as `mean` has numbers; grey ones are shown to all of them. Without a checkpoint
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
        "of `lt-train backbone`; null trains the model with the stage-1 recipe",
    )
    classifier: str | None = Field(
        default=None,
        description="dotted name of the layer whose input is the features, such as fc or heads.head; null: the linear "
        "layer whose output the model returns",
    )
    use_head: bool = Field(
        default=True,
        description="start from the classifier's weights; false takes features alone, and methods say init: fresh",
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

    @model_validator(mode="after")
    def _one_of_each_a_channel(self) -> Imported:
        if len(self.mean) != len(self.std):
            raise ValueError(f"std must have as many numbers as mean, {len(self.mean)}, got {len(self.std)}")
        if min(self.std) <= 0:
            raise ValueError(f"std must be above 0 in every channel, got {min(self.std):g}")
        return self

    def build(self, in_channels: int) -> tuple[nn.Module, int]:
        """The model without its classifier, and its D.

        A linear classifier that is named says D; else pictures are tried, in the size that the model says, 224 or 32.
        """
        channels = len(self.mean)
        if in_channels not in (1, channels):
            raise UserError(f"{self.factory} takes pictures of {channels} channels, or grey ones, got {in_channels}")
        model = make_model(self.factory, self.arguments).eval()
        named = dict(model.named_modules()).get(self.classifier or "")
        if self.classifier and isinstance(named, nn.Linear):
            network, dim = FeaturesOf(model, self.classifier, channels), named.in_features
        else:
            network, dim = self._split(model, _sizes(channels, model, self.arguments))
        model.set_submodule(network.layer, nn.Identity())
        return network, dim

    def read_checkpoint(self, picture_shape: tuple[int, int, int]) -> Frozen | None:
        """See `BackboneSpec.read_checkpoint`.

        Raises:
            CheckpointError: the file is missing, damaged or pickled, or its tensors are not the model's.
            UserError: the model cannot be made or takes other pictures, or its classifier is not found or not linear.
        """
        assert self.checkpoint is not None, "only a backbone with a checkpoint has one to read"
        path = Path(self.checkpoint).expanduser()
        if written_here(path):
            return None
        tensors = read_weights(path)
        shape = (len(self.mean), *picture_shape[1:])
        with seeding.global_stream("cpu", "imported backbone"):  # weights that are allowed to be missing stay as drawn
            model = make_model(self.factory, self.arguments).eval()
        network, dim = self._split(model, [shape])
        try:
            report = fit_weights(
                model,
                tensors,
                self.strip_prefix,
                self.allow_missing,
                self.allow_left_over,
                ignored="" if self.use_head else network.layer,
            )
        except CheckpointError as error:
            raise CheckpointError(f"checkpoint {path} for {self.factory}: {error}") from None
        head = self._head(network, shape) if self.use_head else None
        return Frozen(
            network=network,
            feature_dim=dim,
            head=head,
            in_channels=picture_shape[0] if picture_shape[0] == 1 else shape[0],
            mean=self.mean,
            std=self.std,
            identity={"backbone": self._identity(network.layer, report), "checkpoint": sha256_file(path)},
            called=f"classifier {network.layer} of {self.factory}",
            remedy="give arguments and checkpoint of a model for these classes, or use_head: false to take its "
            "features alone",
            notes=(self._note(network, report),),
        )

    def _split(self, model: nn.Module, shapes: Iterable[tuple[int, int, int]]) -> tuple[FeaturesOf, int]:
        """The part of the model before its classifier and its D, by pictures of the first shape that it takes."""
        problems = []
        for shape in shapes:
            try:
                layer = self._layer(model, shape)
                network = FeaturesOf(model, layer, shape[0])
                with torch.inference_mode():
                    return network, int(network(_pictures(shape)).shape[-1])
            except UserError:
                raise
            except Exception as error:  # whatever the model's own code raises
                size = " x ".join(map(str, shape))
                problems.append(f"pictures of {size}: {type(error).__name__}: {first_line(error)}")
        raise UserError(f"{self.factory} cannot be run on {'; nor on '.join(problems)}")

    def _layer(self, model: nn.Module, shape: tuple[int, int, int]) -> str:
        """The name of the classifier layer.

        Raises:
            UserError: there is none of the name that was given, or not exactly one by its output; or it is not linear.
        """
        layers = dict(model.named_modules())
        linear = [name for name, layer in layers.items() if isinstance(layer, nn.Linear)]
        if self.classifier is not None:
            if self.classifier not in layers or not self.classifier:
                raise UserError(
                    f"classifier: {self.factory} has no layer {self.classifier!r}{_nearest(self.classifier, linear)}"
                )
            named = layers[self.classifier]
            if self.use_head and not isinstance(named, nn.Linear):
                raise UserError(
                    f"classifier: {self.classifier} of {self.factory} is a {type(named).__name__} and not linear; the "
                    "head starts from a torch.nn.Linear, whose logits are W f + b. Name one, or set use_head: false to "
                    f"take what flows into {self.classifier} and start afresh{_nearest(self.classifier, linear)}"
                )
            return self.classifier
        found = _makes_output(model, {name: layers[name] for name in linear}, shape)
        if len(found) != 1:
            several = f"{len(found)} linear layers make it: {', '.join(found)}" if found else "no linear layer makes it"
            raise UserError(
                f"classifier: must be named for {self.factory}: its layer is found by the model's output, and "
                f"{several}{_nearest(None, linear)}"
            )
        return found[0]

    def _head(self, network: FeaturesOf, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
        """Weight `[K, D]` and bias `[K]` of the classifier, once its own output is what they say."""
        layer: Any = network.model.get_submodule(network.layer)
        weight = layer.weight.detach().float()
        bias = torch.zeros(len(weight)) if layer.bias is None else layer.bias.detach().float()
        made: list[Tensor] = []
        hook = layer.register_forward_hook(lambda module, inputs, output: made.append(output))
        try:
            with torch.inference_mode():
                features = network(_pictures(shape))
        finally:
            hook.remove()
        if not torch.allclose(nn.functional.linear(features, weight, bias), made[0].float(), rtol=1e-3, atol=1e-4):
            raise UserError(
                f"classifier: {network.layer} of {self.factory} is a {type(layer).__name__} whose output is not W f + "
                "b: it is not linear. Set use_head: false to take what flows into it and start afresh"
            )
        return weight.contiguous(), bias

    def _identity(self, layer: str, report: KeyReport) -> dict[str, Any]:
        """What decides the features, beside the bytes of the checkpoint: JSON."""
        document = self.model_dump(mode="json", include={"kind", "factory", "arguments", "use_head"})
        keys = {"prefix": report.prefix, "missing": report.missing, "left_over": report.left_over}
        return document | {"classifier": layer, "keys": {name: list(values) for name, values in keys.items()}}

    def _note(self, network: FeaturesOf, report: KeyReport) -> str:
        layer: Any = network.model.get_submodule(network.layer)
        if not self.use_head:
            start = f"features are what flows into {network.layer}, whose weights are not used"
        else:
            bias = " without a bias, which starts at 0" if layer.bias is None else ""
            start = f"the head starts from {network.layer} {list(layer.weight.shape)}{bias}"
        return f"backbone {self.factory}: {report}; {start}"


class FeaturesOf(nn.Module):
    """What flows into one layer of a model: `[B, C, H, W] -> [B, D]`; grey pictures are shown to every channel."""

    def __init__(self, model: nn.Module, layer: str, channels: int) -> None:
        super().__init__()
        self.model, self.layer, self.channels = model, layer, channels

    def forward(self, pictures: Tensor) -> Tensor:
        """Features of normalised pictures; the model runs as it is, and what comes after the layer is dropped.

        Raises:
            UserError: the layer is not run exactly once, or on something else than one row a picture.
        """
        if pictures.shape[1] != self.channels:
            pictures = pictures.expand(-1, self.channels, -1, -1)
        caught: list[Any] = []

        def catch(layer: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
            caught.append(next(iter((*positional, *named.values())), None))

        hook = self.model.get_submodule(self.layer).register_forward_pre_hook(catch, with_kwargs=True)
        try:
            self.model(pictures)
        finally:
            hook.remove()
        if len(caught) != 1:
            raise UserError(f"classifier: {self.layer} must run once a forward pass, and runs {len(caught)} times")
        features = caught[0]
        if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != len(pictures):
            shape = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise UserError(
                f"classifier: what flows into {self.layer} must be [B, D], a row a picture, got {shape} for "
                f"{len(pictures)} pictures"
            )
        return features


def _sizes(channels: int, model: nn.Module, arguments: Mapping[str, Any]) -> list[tuple[int, int, int]]:
    """Shapes of pictures to try a model on: the one that it was made for where it says so, else the usual ones."""
    timms = (getattr(model, "default_cfg", None) or {}).get("input_size", [None])[-1]
    said = [arguments.get("image_size"), arguments.get("img_size"), getattr(model, "image_size", None), timms]
    stated = [size for size in said if isinstance(size, int)]
    return [(channels, size, size) for size in (stated[:1] or (224, 32))]


def _pictures(shape: tuple[int, int, int]) -> Tensor:
    """Two pictures of noise, the same every time."""
    return torch.rand(2, *shape, generator=seeding.generator("imported backbone pictures"))


def _makes_output(model: nn.Module, layers: Mapping[str, nn.Module], shape: tuple[int, int, int]) -> list[str]:
    """The layers whose output is what the model returns, or one of the tensors that it returns."""
    made: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda layer, inputs, output: made.__setitem__(name, output)

    hooks = [layer.register_forward_hook(keep(name)) for name, layer in layers.items()]
    try:
        with torch.inference_mode():
            returned = list(_tensors(model(_pictures(shape))))
    finally:
        for hook in hooks:
            hook.remove()
    return [name for name, output in made.items() if any(torch.equal(output, tensor) for tensor in returned)]


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def _nearest(word: str | None, linear: list[str]) -> str:
    """The five linear layers with the nearest names, else the last: a model may have hundreds."""
    if not linear:
        return "; it has no linear layer"
    near = difflib.get_close_matches(word, linear, n=5, cutoff=0.4) if word else []
    what = "with the nearest names" if near else "at its end"
    return f"; linear layers {what}, of {len(linear)}: {', '.join(near or linear[-5:])}"
