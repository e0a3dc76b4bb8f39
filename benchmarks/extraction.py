"""Part (e): a whole extraction against the bare forward pass of the same network on the same images.

Both sides alternate in one process. The bare side calls `network(batch)` on batches that are already normalised and in
the right memory layout. The other side is `build_bank` with an empty store, which also reads the checkpoint, hashes the
images, and writes, syncs and hashes the bank. Only the first images of the test set are used, so that the fixed cost of
a bank is not amortised over more images than a small dataset has.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from measure import interleaved, ratio
from settings import Settings

from lt_train.backbones.base import BACKBONES
from lt_train.backbones.checkpoint import load_checkpoint, save_checkpoint
from lt_train.backbones.layers import Classifier
from lt_train.datasets._images.transform import normalise
from lt_train.datasets.base import DATASETS, ImageData
from lt_train.datasets.longtail import take
from lt_train.features.extract import build_bank
from lt_train.features.shards import Throughput
from lt_train.features.spec import FeaturesSpec

__all__ = ["extraction"]

BATCH_SIZE = 256


def extraction(settings: Settings) -> dict[str, Any]:
    """`extraction_over_forward`: images per second of an extraction, relative to the bare forward pass."""
    dataset = DATASETS.parse({"kind": settings.extraction_dataset})
    data = dataset.load()
    assert isinstance(data, ImageData)
    first = torch.arange(min(settings.extraction_test_images, len(data.test)))
    data = replace(data, test=take(data.test, first))
    features, throughputs = FeaturesSpec(batch_size=BATCH_SIZE), list[Throughput]()
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        spec = BACKBONES.parse({"kind": settings.extraction_backbone})
        classifier = Classifier(spec, data.train.inputs.shape[1], data.num_classes)
        save_checkpoint(place / "stage1", classifier, {"mean": list(data.mean), "std": list(data.std)})
        batches = _batches(data, settings.device)
        network: Any = load_checkpoint(place / "stage1")[0].backbone
        network.to(device=settings.device, memory_format=torch.channels_last)

        @torch.inference_mode()
        def forward() -> None:
            for batch in batches:
                network(batch)

        def extract() -> None:
            throughputs.append(Throughput())
            store = place / f"banks{len(throughputs)}"
            build_bank(
                dataset,
                place / "stage1",
                features,
                store,
                device=settings.device,
                data=data,
                throughput=throughputs[-1],
            )

        sides = {"extraction": extract, "forward": forward}
        times = interleaved(sides, settings.extraction_repeats, settings.device, first=True)
    images = sum(map(len, batches))
    assert all(one.images == images for one in throughputs)
    found = ratio(times["forward"], times["extraction"])
    details = {
        "dataset": settings.extraction_dataset,
        "backbone": settings.extraction_backbone,
        "images": images,
        "batch_size": BATCH_SIZE,
        "seconds": times,
        "paces": [one.document() for one in throughputs[1:]],
    }
    return {"values": {"extraction_over_forward": found}, "timings": {"extraction_over_forward": details}}


def _batches(data: ImageData, device: str) -> list[torch.Tensor]:
    """Normalised batches in the sizes and memory layout of an extraction, including mirrored test images."""
    views = [data.train.inputs]
    for part in (data.val, data.test):
        views += [part.inputs] if part is not None else []
        views += [part.inputs[:].flip(-1)] if part is not None and data.augmentation.flip else []
    return [
        normalise(view[start : start + BATCH_SIZE].to(device), data.mean, data.std).contiguous(
            memory_format=torch.channels_last
        )
        for view in views
        for start in range(0, len(view), BATCH_SIZE)
    ]
