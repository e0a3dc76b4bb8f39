"""`imported`: any torch model with weights trained elsewhere, without changes to its code.

Features are the inputs of the model's classifier layer or layers, captured by hooks; re-training starts from the
weights of these layers. `classifier` finds the layers and turns them into one linear head, `weights` reads the
checkpoint. `make_model` creates the model. A sweep file must not be able to run arbitrary code, so a factory is a model
of torchvision's or timm's registry, without their arguments for downloading or reading weights, or a function of a
package given with `--allow-import`.

Shapes: B images, C channels, H x W pixels, D features, K classes.
"""

from __future__ import annotations

import importlib
import itertools
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, JsonValue, field_validator, model_validator

from lt_train.backbones.base import BACKBONES, BackboneSpec, FrozenBackbone, WholeModel
from lt_train.core import seeding
from lt_train.core.errors import CheckpointError, UserError, first_line
from lt_train.core.fields import NOT_IDENTITY, PATH
from lt_train.core.imports import nn, torch
from lt_train.core.io import sha256_file
from lt_train.core.plugins import allowed_names, is_in, module_path
from lt_train.core.validation import named, nearest

if TYPE_CHECKING:
    from torch import Tensor

    from lt_train.backbones.imported.classifier import FeaturesOf
    from lt_train.backbones.imported.weights import KeyReport

__all__ = ["Imported", "make_model"]


_LOADERS = re.compile(r"weights\w*|pretrained\w*|checkpoint_path|cache_dir")
"""Arguments with which torchvision and timm download or read weights themselves."""


def make_model(factory: str, arguments: Mapping[str, Any]) -> nn.Module:
    """The model of `factory`, with its own initialisation from torch's global generator.

    A model in half precision is converted to float32.

    Raises:
        UserError: the package is not allowed or not installed, has no such model or function, rejects the arguments,
            or does not return a torch.nn.Module.
    """
    package, _, name = factory.partition(":")
    makers = {"torchvision": _of_torchvision, "timm": _of_timm}
    if package in makers:
        for argument in arguments:
            if _LOADERS.fullmatch(argument):
                raise UserError(
                    f"arguments of {factory} must not include {argument}; weights are read from checkpoint only"
                )
        make = makers[package](factory, name)
    else:
        make = _of_package(factory, package, name)
    try:
        model = make(**arguments)
    except Exception as error:  # the model's own code may raise anything
        raise UserError(
            f"{factory} cannot be created with arguments {dict(arguments)}: {type(error).__name__}: {first_line(error)}"
        ) from error
    if not isinstance(model, nn.Module):
        raise UserError(f"{factory} must return a torch.nn.Module, got {type(model).__name__}")
    tensors = itertools.chain(model.parameters(), model.buffers())
    half = (torch.float16, torch.bfloat16)  # features and heads are float32
    return model.float() if any(tensor.dtype in half for tensor in tensors) else model


def _of_torchvision(factory: str, name: str) -> Callable[..., Any]:
    import torchvision

    known = torchvision.models.list_models(module=torchvision.models)  # classifiers only; detectors download weights
    if name not in known:
        raise UserError(f"{factory}: torchvision has no model {name!r}{nearest(name, known)}")
    return lambda **arguments: torchvision.models.get_model(name, **arguments)


def _of_timm(factory: str, name: str) -> Callable[..., Any]:
    try:
        import timm
    except ImportError:
        raise UserError(f"{factory} needs timm, which is not installed; install it with `pip install timm`") from None
    if not timm.is_model(name):
        raise UserError(f"{factory}: timm has no model {name!r}{nearest(name, timm.list_models())}")
    return lambda **arguments: timm.create_model(name, **arguments)


def _of_package(factory: str, module: str, name: str) -> Callable[..., Any]:
    """A function defined in an allowed package; imported ones, such as `os.system`, are refused."""
    package = next((one for one in allowed_names() if is_in(one, module)), None)
    if package is None:
        raise UserError(
            f"factory must name torchvision, timm or a package that --allow-import names, got {factory}; "
            f"`--allow-import {module.partition('.')[0]}` allows the code of that package to run"
        )
    module_path(package)
    try:
        function: Any = getattr(importlib.import_module(module), name, None)
    except Exception as error:  # the package's own code may raise anything
        raise UserError(
            f"factory {factory}: {module} cannot be imported: {type(error).__name__}: {first_line(error)}"
        ) from error
    home = getattr(function, "__module__", None) or ""
    if not callable(function) or not is_in(package, home):
        raise UserError(f"factory {factory}: {module} must define a function or class {name}, but does not")
    return lambda **arguments: function(**arguments)


def _creating(factory: str, arguments: Mapping[str, Any], num_classes: int) -> str:
    """Python code that creates the model of a factory as `model`."""
    package, _, name = factory.partition(":")
    if "num_classes" in arguments:  # `use_head: false` accepts a model for other classes
        arguments = {**arguments, "num_classes": num_classes}
    given = "".join(f", {argument}={value!r}" for argument, value in arguments.items())
    if package == "torchvision":
        return f"from torchvision.models import get_model\n\nmodel = get_model({name!r}{given})"
    if package == "timm":
        return f"import timm\n\nmodel = timm.create_model({name!r}{given})"
    return f"from {package} import {name}\n\nmodel = {name}({given.removeprefix(', ')})"


PerChannel = Annotated[tuple[float, ...], Field(min_length=1)]
Names = Annotated[tuple[str, ...], Field(min_length=1)]


@BACKBONES.register
class Imported(BackboneSpec):
    """A model of torchvision or timm, or of a package given with `--allow-import`, with its own checkpoint.

    The number of channels is the length of `mean`; grey images are repeated in all channels. Without a checkpoint the
    model is trained with the stage-1 recipe, and its classifier is replaced by a new one.
    """

    kind: Literal["imported"] = "imported"
    factory: str = Field(
        pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$",
        description="torchvision:NAME, timm:NAME, or package.module:function of a package given with --allow-import",
        examples=["torchvision:resnet18"],
    )
    arguments: dict[str, JsonValue] = Field(
        default_factory=dict, description="arguments of the factory, such as {num_classes: 100}"
    )
    checkpoint: Annotated[str | None, PATH, NOT_IDENTITY] = Field(
        default=None,
        description="weights: a safetensors file, a file of torch.save with tensors and plain values only, or a "
        "checkpoint of `lt-train backbone` with this factory, which sets the other fields itself; null: train the "
        "model with the stage-1 recipe",
    )
    classifier: str | Names | None = Field(
        default=None,
        description="dotted name of the layer whose input is the features, such as fc or heads.head; with a list of "
        "names, the features of all are concatenated and their logits averaged; null: the layer whose output the model "
        "returns, or the layers whose mean output it returns",
    )
    use_head: bool = Field(
        default=True,
        description="start from the classifier's weights; false: use its features only, with init: random in methods",
    )
    strip_prefix: str | None = Field(
        default=None,
        description="prefix to remove from the names in the checkpoint; null: detect module., backbone., model. and "
        "_orig_mod.",
    )
    allow_missing: tuple[str, ...] = Field(
        default=(),
        description="patterns of tensors that may be missing in the checkpoint; they keep their initial values",
    )
    allow_left_over: tuple[str, ...] = Field(
        default=(),
        description="patterns of tensors in the checkpoint that are ignored if the model has none of that name",
    )
    mean: PerChannel = Field(
        default=(0.485, 0.456, 0.406),
        description="mean per channel that the model was trained with, on the 0..1 scale; default: ImageNet's",
    )
    std: PerChannel = Field(
        default=(0.229, 0.224, 0.225), description="standard deviation per channel, > 0; default: ImageNet's"
    )

    def __hash__(self) -> int:
        return hash(self.model_dump_json())  # arguments is a mapping, which is not hashable

    @field_validator("classifier")
    @classmethod
    def _names_are_unique(cls, names: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        repeated = [] if names is None or isinstance(names, str) else [name for name in names if names.count(name) > 1]
        if repeated:
            raise ValueError(f"must name each layer once, got {repeated[0]!r} {len(repeated)} times")
        return names

    @model_validator(mode="after")
    def _mean_and_std_per_channel(self) -> Imported:
        if len(self.mean) != len(self.std):
            raise ValueError(f"std must have as many numbers as mean, {len(self.mean)}, got {len(self.std)}")
        if min(self.std) <= 0:
            raise ValueError(f"std must be above 0 in every channel, got {min(self.std):g}")
        return self

    def build(self, in_channels: int) -> tuple[nn.Module, int]:
        """The model without its classifiers, and its D.

        D is read from named linear classifiers, or found by running the model on images of its own size, 224 or 32.
        """
        from lt_train.backbones.imported.classifier import FeaturesOf

        channels = len(self.mean)
        if in_channels not in (1, channels):
            raise UserError(f"{self.factory} takes images with {channels} channels or 1 channel, got {in_channels}")
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
            CheckpointError: the file is missing, damaged or pickled, or its tensors do not fit the model.
            UserError: the model cannot be created or run on these images, or its classifiers are missing or not linear.
        """
        from lt_train.backbones.checkpoint import is_own_checkpoint
        from lt_train.backbones.imported.classifier import FeaturesOf, warm_head

        assert self.checkpoint is not None, "called for a backbone with a checkpoint"
        path = Path(self.checkpoint).expanduser()
        if is_own_checkpoint(path):
            return None
        shape = (len(self.mean), *image_shape[1:])
        network, dims, report = self._loaded(path, shape)
        head = warm_head(network, _images(shape), self.factory) if self.use_head else None
        normalised = head.normalised if head else ()
        layers = named(network.layers)
        start = head.note if head else f"features are the inputs of {layers}, whose weights are not used"
        return FrozenBackbone(
            network=FeaturesOf(network.model, network.layers, shape[0], normalised),
            feature_dim=sum(dims),
            head=(head.weight, head.bias) if head else None,
            in_channels=image_shape[0] if image_shape[0] == 1 else shape[0],
            mean=self.mean,
            std=self.std,
            identity={
                "backbone": self._identity(network.layers, normalised, report),
                "checkpoint": sha256_file(path),
            },
            display_name=f"classifier {layers} of {self.factory}",
            remedy="give arguments and checkpoint of a model for these classes, or set use_head: false to use only "
            "its features",
            notes=(f"backbone {self.factory}: {report}; {start}",),
        )

    def calls(self) -> tuple[str, ...]:
        """The factory, if it is code of the user; see `lt_train.core.code.code_of`."""
        return () if self.factory.partition(":")[0] in ("torchvision", "timm") else (self.factory,)

    def with_head(
        self, image_shape: tuple[int, int, int], head: tuple[Tensor, Tensor], trained: Mapping[str, Tensor] | None
    ) -> WholeModel | None:
        """See `BackboneSpec.with_head`: the model that the factory creates, under its own names.

        Raises:
            CheckpointError: see `read_checkpoint`.
            UserError: the model cannot be created, or its classifiers cannot compute the logits of the head.
        """
        from lt_train.backbones.imported.replace import replace_head
        from lt_train.backbones.imported.weights import fit_weights

        shape = (len(self.mean), *image_shape[1:])
        if trained is None:
            assert self.checkpoint is not None, "called for a backbone with a checkpoint"
            network, _, _ = self._loaded(Path(self.checkpoint).expanduser(), shape)
        else:  # of stage 1, which trained the model without its classifiers
            network, _ = self._created(shape)
            own = {name.partition("model.")[2]: tensor for name, tensor in trained.items()}
            fit_weights(network.model, own, "", ignored=network.layers)
        replace_head(network, head, _images(shape), self.factory)
        return WholeModel(network.model.state_dict(), _creating(self.factory, self.arguments, len(head[0])), shape[0])

    def _created(self, shape: tuple[int, int, int]) -> tuple[FeaturesOf, list[int]]:
        """The model with the initial values of weights that a checkpoint lacks, and the D of each classifier."""
        with seeding.global_stream("cpu", "imported backbone"):
            model = make_model(self.factory, self.arguments).eval()
        return self._split(model, [shape])

    def _loaded(self, path: Path, shape: tuple[int, int, int]) -> tuple[FeaturesOf, list[int], KeyReport]:
        """The model with the weights of the file, the D of each classifier, and which tensors match."""
        from lt_train.backbones.imported.weights import fit_weights, read_weights

        tensors = read_weights(path)
        network, dims = self._created(shape)
        unused = () if self.use_head else network.layers
        try:
            report = fit_weights(
                network.model, tensors, self.strip_prefix, self.allow_missing, self.allow_left_over, ignored=unused
            )
        except CheckpointError as error:
            raise CheckpointError(f"checkpoint {path} for {self.factory}: {error}") from None
        return network, dims, report

    def _names(self) -> tuple[str, ...]:
        """The names of the given layers, possibly none."""
        return (self.classifier,) if isinstance(self.classifier, str) else self.classifier or ()

    def _split(self, model: nn.Module, shapes: Iterable[tuple[int, int, int]]) -> tuple[FeaturesOf, list[int]]:
        """The model up to its classifiers and the D of each, found with images of the first shape that it accepts."""
        from lt_train.backbones.imported.classifier import FeaturesOf, check_classifier, find_classifiers

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
            except Exception as error:  # the model's own code may raise anything
                size = " x ".join(map(str, shape))
                problems.append(f"images of {size}: {type(error).__name__}: {first_line(error)}")
        raise UserError(f"{self.factory} cannot be run on {'; '.join(problems)}")

    def _identity(self, layers: tuple[str, ...], normalised: tuple[str, ...], report: KeyReport) -> dict[str, Any]:
        """What determines the features besides the bytes of the checkpoint, as JSON."""
        document = self.model_dump(mode="json", include={"kind", "factory", "arguments", "use_head"})
        keys = {"prefix": report.prefix, "missing": report.missing, "left_over": report.left_over}
        document["classifier"] = layers[0] if len(layers) == 1 else list(layers)
        if normalised:
            document["normalised"] = list(normalised)
        return document | {"keys": {name: list(values) for name, values in keys.items()}}


def _sizes(channels: int, model: nn.Module, arguments: Mapping[str, Any]) -> list[tuple[int, int, int]]:
    """Shapes of images to try: the model's own size if it is stated, else the usual ones."""
    timm_size = (getattr(model, "default_cfg", None) or {}).get("input_size", [None])[-1]
    sizes = [arguments.get("image_size"), arguments.get("img_size"), getattr(model, "image_size", None), timm_size]
    stated = [size for size in sizes if isinstance(size, int)]
    return [(channels, size, size) for size in (stated[:1] or (224, 32))]


def _images(shape: tuple[int, int, int]) -> Tensor:
    """Reproducible noise images of several contrasts, so that their features differ in length."""
    noise = torch.rand(4, *shape, generator=seeding.generator("imported backbone images"))
    return noise * torch.tensor([1.0, 2.0, 0.5, 0.25]).view(4, 1, 1, 1)
