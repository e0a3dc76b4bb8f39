"""Whether torch can hold a champion as a graph, and which champion it is. Knows torch; no MLflow.

A graph has no code in it that loading would run, and needs none of ours; so a champion is kept as nothing else.

Torch's first export imports its compiler, which takes modules of Python's own (`_operator`) out of `sys.modules` for a
moment; another thread that unpickles then fails. So nothing is exported before training is over.
"""

from __future__ import annotations

import hashlib

import torch

from lt_train.core.errors import first_line
from lt_train.core.progress import tell
from sweeps.config.tracking import Champion, ImageModel

__all__ = ["digest_of", "exportable"]

CLOSE = 1e-3
"""How far logits of the graph may be from the module's, as a share of the largest."""


def digest_of(champion: Champion, logged: str) -> str:
    """Of everything that decides the models: the head's numbers, the bank its backbone is of, what is logged of it."""
    hasher = hashlib.sha256(f"{champion.bank} {logged}".encode())
    for name, tensor in champion.classifier.state_dict().items():
        hasher.update(name.encode() + tensor.numpy().tobytes())
    return hasher.hexdigest()[:16]


def exportable(images: ImageModel) -> bool:
    """Whether torch can trace the module into a graph that does the same, for any number of images.

    Somebody's model may do what no graph can hold; that is told, and costs the sweep nothing else.
    """
    shape = images.shape
    example = torch.zeros(2, *shape, dtype=torch.uint8)
    pixels = torch.arange(3 * shape[0] * shape[1] * shape[2], dtype=torch.int64) * 37 % 256
    others = pixels.to(torch.uint8).view(3, *shape)
    try:
        graph = torch.export.export(images.module, (example,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
        with torch.no_grad():
            expected, found = images.module(others), graph.module()(others)
        problem = "" if (found - expected).abs().max() <= CLOSE * expected.abs().max() else "its logits change"
    except Exception as error:  # of torch, or of the model's own code
        problem = first_line(error)
    if problem:
        tell(f"the champion is logged without its backbone, which torch cannot export: {problem}")
    return not problem
