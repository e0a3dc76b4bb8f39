"""Small extractions for tests: an untrained backbone, digits, and the hashes of a bank's files.

As a program, `python extraction.py CHECKPOINT STORE KILL_AFTER` extracts digits and kills itself after that many
images; 0 never does. The journal is synced after every shard instead of every two seconds.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from pathlib import Path

import torch

from lt_train.backbones.base import BACKBONES
from lt_train.backbones.checkpoint import save_checkpoint
from lt_train.backbones.layers import Classifier
from lt_train.datasets.base import DATASETS
from lt_train.features import partial
from lt_train.features.extract import build_bank
from lt_train.features.spec import FeaturesSpec

__all__ = ["DIGITS", "FEATURES", "TOTAL", "broken_inside", "bytes_of", "extract", "write_checkpoint"]

DIGITS = DATASETS.parse({"kind": "digits_lt"})

FEATURES = FeaturesSpec(views=2, test_flip=True, batch_size=50)

TOTAL = 2 * (369 + 140 + 500)
"""Number of images extracted, mirrors and views included."""


def write_checkpoint(file: Path, channels: int = 1, classes: int = 10) -> Path:
    """A checkpoint of a small network with fixed random weights."""
    spec = BACKBONES.parse({"kind": "small_cnn", "width": 4})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        classifier = Classifier(spec, channels, classes)
    mean = [0.5] * channels
    save_checkpoint(file, classifier.eval(), {"mean": mean, "std": mean})
    return file


def extract(checkpoint: Path, store: Path, kill_after: int = 0) -> Path:
    """Extract the bank; send SIGKILL to this process after `kill_after` images."""

    def report(done: int, total: int, note: str) -> None:
        if kill_after and done >= kill_after:
            os.kill(os.getpid(), signal.SIGKILL)

    return build_bank(DIGITS, checkpoint, FEATURES, store, report=report)


def bytes_of(bank: Path) -> dict[str, str]:
    """sha256 of every file of a bank."""
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(bank.iterdir())}


def broken_inside(length: int = 90) -> bytes:
    """Bytes that start and end like a JPEG but are not one."""
    return b"\xff\xd8\xff" + b"\0" * length + b"\xff\xd9"


if __name__ == "__main__":
    partial.SYNC_SECONDS = 0.0
    torch.set_num_threads(1)
    print(extract(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])))
