"""The formats of an export: how its file is written, what it takes, and the Python code that uses it.

A state dict takes what the user's own module takes: normalised images. A graph (pt2, onnx) takes images as Pillow
decodes them, and contains normalisation and, where the sweep tested with it, the mirror image: its predictions are
those that the sweep reports.

Shapes: N images, C channels, H x W pixels, D features, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lt_train.core.errors import LongtailError, first_line
from lt_train.core.imports import require
from lt_train.core.io import atomic_file, write_tensors
from sweeps.analysis.image_classifier import backbone_of, example_images, exported_graph, with_backbone
from sweeps.reporting.export.trained import TrainedHead, whole_model

__all__ = ["FORMATS", "Export", "prepare"]

LARGEST_PROTO = 2**31 - 2**24
"""Bytes of weights that fit into one ONNX file; those of larger models are written to a second file beside it."""


@dataclass(frozen=True)
class Export:
    """A file that is ready to be written.

    Attributes:
        file: its name.
        write: writes it to a path.
        takes: its input, in words.
        code: Python code that loads it from the current directory and computes `logits` of an example.
        mirrored: whether it averages over an image and its mirror image.
        libraries: those that wrote it, beside torch.
    """

    file: str
    write: Callable[[Path], None]
    takes: str
    code: str
    mirrored: bool
    libraries: tuple[str, ...] = ()


def prepare(head: TrainedHead, format: str) -> Export:
    """The export of a head in one of `FORMATS`.

    Raises:
        UserError: see `whole_model` for state dicts, and `backbone_of`; or a library of the format is not installed.
        LongtailError: torch cannot export the model; the message has the reason.
    """
    return FORMATS[format](head)


def _state_dict(head: TrainedHead) -> Export:
    def write(path: Path, tensors: dict[str, Tensor]) -> None:
        torch.save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, path)

    return _weights(head, "model.pt", write, "", 'torch.load("model.pt", weights_only=True)')


def _safetensors(head: TrainedHead) -> Export:
    def write(path: Path, tensors: dict[str, Tensor]) -> None:
        with atomic_file(path) as temporary:  # safetensors itself creates files that only their owner can read
            write_tensors(temporary, tensors, {"format": "pt"})

    imported = "from safetensors.torch import load_file\n"
    return _weights(head, "model.safetensors", write, imported, 'load_file("model.safetensors")')


def _weights(
    head: TrainedHead, file: str, write: Callable[[Path, dict[str, Tensor]], None], imported: str, loading: str
) -> Export:
    whole = whole_model(head)
    code = f"import torch\n{imported}{whole.code}\nmodel.load_state_dict({loading})\nmodel.eval()\n"
    manifest, dim = head.sweep.manifest, head.dims[1]
    if not whole.channels:
        takes = f"features, float32 `[N, {dim}]`"
        code += f"features = torch.zeros(2, {dim})\nlogits = model(features)\n"
    else:
        assert manifest is not None, "the backbone was found by the manifest"
        shape = head.sweep.spec.dataset.image_shape()
        assert shape is not None, "a sweep with a backbone has images"
        size = (whole.channels, *shape[1:])
        takes = f"normalised images, float32 `[N, {', '.join(map(str, size))}]`"
        if shape[0] != whole.channels:
            takes += f" (grey images are repeated in all {whole.channels} channels)"
        transform = manifest.inputs["transform"]
        for name in ("mean", "std"):
            code += f"{name} = torch.tensor({list(transform[name])}).view(-1, 1, 1)\n"
        code += (
            f"images = torch.zeros(2, {', '.join(map(str, size))})  # from 0 to 1, as ToTensor of torchvision returns\n"
            "logits = model((images - mean) / std)\n"
        )
    return Export(file, lambda path: write(path, dict(whole.tensors)), takes, code, mirrored=False)


@dataclass(frozen=True)
class _Graph:
    """A graph with its input: name, dtype, sizes of a row, and what it is in words."""

    program: torch.export.ExportedProgram
    name: str
    dtype: str
    shape: tuple[int, ...]
    takes: str
    mirrored: bool


def _graph(head: TrainedHead) -> _Graph:
    try:
        if head.sweep.spec.backbone is None:
            dim = head.dims[1]
            stream = torch.Generator().manual_seed(0)
            program = exported_graph(head.classifier, torch.zeros(2, dim), torch.randn(3, dim, generator=stream))
            return _Graph(program, "features", "float32", (dim,), f"features, float32 `[N, {dim}]`", mirrored=False)
        frozen, source = backbone_of(head.sweep)
        assert head.sweep.manifest is not None, "the backbone was found by the manifest"
        images = with_backbone(head.classifier, frozen, head.sweep.manifest.inputs, source.shape)
        program = exported_graph(images.module, *example_images(images.shape))
    except LongtailError:
        raise
    except Exception as error:  # of torch, or of the model's own code
        raise LongtailError(f"torch cannot export this model as a graph: {first_line(error)}") from error
    takes = f"images as Pillow decodes them, uint8 `[N, {', '.join(map(str, images.shape))}]`, not normalised"
    return _Graph(program, "images", "uint8", images.shape, takes, images.module.mirrored)


def _pt2(head: TrainedHead) -> Export:
    graph = _graph(head)
    code = (
        'import torch\n\nmodel = torch.export.load("model.pt2").module()\n'
        f"{graph.name} = torch.zeros(2, {', '.join(map(str, graph.shape))}, dtype=torch.{graph.dtype})\n"
        f"logits = model({graph.name})\n"
    )

    def write(path: Path) -> None:
        torch.export.save(graph.program, path)

    return Export("model.pt2", write, graph.takes, code, graph.mirrored)


def _onnx(head: TrainedHead) -> Export:
    require("onnx", "onnxscript")
    graph = _graph(head)
    code = (
        "import numpy as np\nimport onnxruntime\n\n"
        'session = onnxruntime.InferenceSession("model.onnx")\n'
        f"{graph.name} = np.zeros((2, {', '.join(map(str, graph.shape))}), np.{graph.dtype})\n"
        f'(logits,) = session.run(None, {{"{graph.name}": {graph.name}}})\n'
    )

    def write(path: Path) -> None:
        size = sum(tensor.nbytes for tensor in graph.program.state_dict.values())
        try:
            torch.onnx.export(
                graph.program,
                (),
                path,
                input_names=[graph.name],
                output_names=["logits"],
                external_data=size > LARGEST_PROTO,
                verbose=False,
            )
        except OSError:
            raise
        except Exception as error:  # of torch, for operations that ONNX does not have
            raise LongtailError(f"torch cannot convert this model to ONNX: {first_line(error)}; use pt2") from error

    return Export("model.onnx", write, graph.takes, code, graph.mirrored, ("onnx", "onnxscript"))


FORMATS: dict[str, Callable[[TrainedHead], Export]] = {
    "state_dict": _state_dict,
    "safetensors": _safetensors,
    "pt2": _pt2,
    "onnx": _onnx,
}
"""What prepares an export, by the name of its format."""
