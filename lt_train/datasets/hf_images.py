"""`hf_images`: a Hugging Face image dataset that is on disk already, as its parquet files; nothing is downloaded.

An image is an element of a column of structs `{bytes, path}`, a label one of a column of integers, as `datasets`
writes them; that package is not needed. A row group cannot be read in part, so encoded images are held in memory.
"""

from __future__ import annotations

import bisect
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field

from lt_train.core.errors import DataError, first_line
from lt_train.core.validation import named
from lt_train.datasets._images.listing import Listed, Listing
from lt_train.datasets._images.spec import CutImagesSpec

__all__ = ["HfImages"]

_PARTS = ("train", "val", "test")


class HfImages(CutImagesSpec):
    """Parquet files whose name, or the name of a folder above them, begins with train, val or test."""

    kind: Literal["hf_images"] = "hf_images"
    root: Annotated[str, Field(description="folder with the parquet files, at any depth")]
    image: Annotated[str, Field(description="column of the images")] = "image"
    label: Annotated[str, Field(description="column of the labels, whole numbers from 0")] = "label"
    encoded_in_memory: Annotated[
        int,
        Field(ge=1, description="bytes of parquet files that may be held in memory; of more, write an image folder"),
    ] = 2**33

    def identity(self) -> dict[str, Any]:
        """The spec without where files are and what they may take of memory."""
        return {name: value for name, value in super().identity().items() if name != "encoded_in_memory"}

    def listing(self) -> Listing:
        """What the parquet files hold, in the order of their names.

        Raises:
            DataError: there are no such files or columns, or they are too large.
        """
        root = Path(self.root).expanduser()
        files: dict[str, list[Path]] = {part: [] for part in _PARTS}
        for file in sorted(root.rglob("*.parquet")):
            part = _part(file.relative_to(root))
            if part:
                files[part].append(file)
        if not files["train"]:
            raise DataError(f"root {root} must hold parquet files named, or in folders named, train..., and holds none")
        size = sum(file.stat().st_size for file in itertools.chain(*files.values()))
        if size > self.encoded_in_memory:
            raise DataError(
                f"{root}: parquet files are held in memory up to encoded_in_memory {self.encoded_in_memory} bytes, and "
                f"these have {size}; raise it where there is as much memory, or write the images to an image_folder"
            )
        notes = []
        if not files["test"]:
            if not files["val"]:
                raise DataError(f"root {root} must hold parquet files of a test or val part, and holds of train only")
            files["test"], files["val"] = files["val"], []
            notes.append(f"{root} has no test files, so val is the test set")
        train, classes = self._read(root, files["train"])
        val = self._read(root, files["val"])[0] if files["val"] else None
        test, _ = self._read(root, files["test"])
        if classes:
            notes.append(f"classes are named: {named([f'{k} {name}' for k, name in enumerate(classes)])}")
        return Listing(train, val, test, classes, tuple(notes))

    def _read(self, root: Path, files: list[Path]) -> tuple[Listed, tuple[str, ...]]:
        """The images and labels of one part, and the names of the classes where the files have them."""
        # Here, not above: most datasets do without pyarrow.
        import pyarrow
        import pyarrow.parquet

        chunks, names, labels = list[Any](), list[str](), list[Any]()
        classes: tuple[str, ...] = ()
        for file in files:
            try:
                schema = pyarrow.parquet.read_schema(file)
                self._check(file, schema)
                table = pyarrow.parquet.read_table(file, columns=[self.image, self.label], partitioning=None)
            except (pyarrow.ArrowException, OSError) as error:
                raise DataError(f"{file} cannot be read ({first_line(error)}); get it again") from None
            classes = classes or _class_names(schema, self.label)
            if table.column(self.label).null_count:
                raise DataError(f"{file}: every row of {self.label} must be a label, and some are null")
            labels.append(table.column(self.label).to_numpy().astype(np.int64))
            chunks += [chunk.field("bytes") for chunk in table.column(self.image).chunks]
            names += [f"{file.relative_to(root).as_posix()}#{row}" for row in range(len(table))]
        stops = list(itertools.accumulate(len(chunk) for chunk in chunks))
        return Listed(_Rows(names, chunks, stops), torch.from_numpy(np.concatenate(labels))), classes

    def _check(self, file: Path, schema: Any) -> None:
        import pyarrow

        for column in (self.image, self.label):
            if column not in schema.names:
                raise DataError(f"{file} must have a column {column!r}, and has {', '.join(schema.names)}")
        kind = schema.field(self.image).type
        inside = [kind.field(i).name for i in range(kind.num_fields)] if pyarrow.types.is_struct(kind) else []
        if "bytes" not in inside:
            raise DataError(f"{file}: column {self.image!r} must hold structs {{bytes, path}}, got {kind}")
        if not pyarrow.types.is_integer(schema.field(self.label).type):
            raise DataError(
                f"{file}: column {self.label!r} must hold whole numbers, got {schema.field(self.label).type}; "
                "name another with label"
            )


@dataclass(frozen=True)
class _Rows:
    """Images that are rows of parquet files: `chunks` hold their bytes, `stops` is where each ends."""

    names: Sequence[str]
    chunks: list[Any]
    stops: list[int]

    def read(self, index: int) -> bytes:
        """The row's bytes."""
        chunk = bisect.bisect_right(self.stops, index)
        content: bytes | None = self.chunks[chunk][index - (self.stops[chunk - 1] if chunk else 0)].as_py()
        if content is None:
            raise FileNotFoundError(f"{self.names[index]} has no bytes, only a path")
        return content

    def ends(self, index: int) -> tuple[int, bytes, bytes]:
        """Size, first three bytes and last two."""
        content = self.read(index)
        return len(content), content[:3], content[-2:]


def _part(file: Path) -> str | None:
    """The part that a file is of: what its name begins with, or that of the nearest folder above it."""
    return next((part for piece in reversed(file.parts) for part in _PARTS if piece.startswith(part)), None)


def _class_names(schema: Any, label: str) -> tuple[str, ...]:
    """Names of the classes as `datasets` writes them beside the schema; none where they are not there."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(map(str, features[label]["names"]))
    except (KeyError, TypeError, ValueError):
        return ()
