"""`hf_images`: a Hugging Face image dataset on disk, read from its parquet files; nothing is downloaded.

Images are a column of structs `{bytes, path}` and labels a column of integers, as the package `datasets` writes them;
that package is not needed. A row group cannot be read in part, so the encoded images are held in memory.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from lt_train.core.errors import DataError, first_line
from lt_train.core.fields import NOT_IDENTITY, PATH
from lt_train.core.imports import torch
from lt_train.core.io import parse_json
from lt_train.core.validation import named
from lt_train.datasets._images.checks import ListedImages, Listing
from lt_train.datasets._images.spec import CutImagesSpec
from lt_train.datasets.base import DATASETS

__all__ = ["HfImages"]

_PARTS = ("train", "val", "test")


@DATASETS.register
class HfImages(CutImagesSpec):
    """Parquet files whose name, or the name of a folder above them, starts with train, val or test."""

    kind: Literal["hf_images"] = "hf_images"
    root: Annotated[str, PATH, NOT_IDENTITY, Field(description="folder with the parquet files, at any depth")]
    image: Annotated[str, Field(description="column of the images")] = "image"
    label: Annotated[str, Field(description="column of the labels, integers from 0")] = "label"
    encoded_in_memory: Annotated[
        int,
        NOT_IDENTITY,
        Field(ge=1, description="maximum total size of the parquet files, in bytes, because they are kept in memory"),
    ] = 2**33

    def listing(self) -> Listing:
        """The rows of the parquet files, in the order of file names.

        Raises:
            DataError: files or columns are missing, or the files are too large.
        """
        root = Path(self.root).expanduser()
        files: dict[str, list[Path]] = {part: [] for part in _PARTS}
        for file in sorted(root.rglob("*.parquet")):
            part = _part(file.relative_to(root))
            if part:
                files[part].append(file)
        if not files["train"]:
            raise DataError(f"root {root} must contain parquet files whose name or folder starts with train, got none")
        size = sum(file.stat().st_size for file in itertools.chain(*files.values()))
        if size > self.encoded_in_memory:
            raise DataError(
                f"{root}: parquet files must have at most encoded_in_memory {self.encoded_in_memory} bytes, got "
                f"{size}; raise it if there is enough memory, or write the images to an image_folder"
            )
        notes = []
        if not files["test"]:
            if not files["val"]:
                raise DataError(f"root {root} must contain parquet files of a test or val part, got only train")
            files["test"], files["val"] = files["val"], []
            notes.append(f"{root} has no test files, so val is the test set")
        train, classes = self._read(root, files["train"])
        val = self._read(root, files["val"])[0] if files["val"] else None
        test, _ = self._read(root, files["test"])
        if classes:
            notes.append(f"class names: {named([f'{k} {name}' for k, name in enumerate(classes)])}")
        return Listing(train, val, test, classes, tuple(notes))

    def _read(self, root: Path, files: list[Path]) -> tuple[ListedImages, tuple[str, ...]]:
        """The images and labels of one part, and the names of the classes if the files have them."""
        # Imported here because most datasets do not need pyarrow.
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
                raise DataError(f"{file} cannot be read ({first_line(error)}); download it again") from None
            classes = classes or _class_names(schema, self.label)
            if table.column(self.label).null_count:
                raise DataError(f"{file}: column {self.label!r} must contain a label in every row, got null in some")
            labels.append(table.column(self.label).to_numpy().astype(np.int64))
            chunks += [chunk.field("bytes") for chunk in table.column(self.image).chunks]
            names += [f"{file.relative_to(root).as_posix()}#{row}" for row in range(len(table))]
        stops = list(itertools.accumulate(len(chunk) for chunk in chunks))
        return ListedImages(_Rows(names, chunks, stops), torch.from_numpy(np.concatenate(labels))), classes

    def _check(self, file: Path, schema: Any) -> None:
        import pyarrow

        for column in (self.image, self.label):
            if column not in schema.names:
                raise DataError(f"{file} must have a column {column!r}, got {', '.join(schema.names)}")
        kind = schema.field(self.image).type
        inside = [kind.field(i).name for i in range(kind.num_fields)] if pyarrow.types.is_struct(kind) else []
        if "bytes" not in inside:
            raise DataError(f"{file}: column {self.image!r} must contain structs {{bytes, path}}, got {kind}")
        if not pyarrow.types.is_integer(schema.field(self.label).type):
            raise DataError(
                f"{file}: column {self.label!r} must contain integers, got {schema.field(self.label).type}; "
                "set label to another column"
            )


@dataclass(frozen=True)
class _Rows:
    """Images in rows of parquet files: `chunks` hold their bytes, `stops` are the row numbers where chunks end."""

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
    """The part that the name of a file, or of the nearest folder above it, starts with."""
    return next((part for piece in reversed(file.parts) for part in _PARTS if piece.startswith(part)), None)


def _class_names(schema: Any, label: str) -> tuple[str, ...]:
    """Names of the classes as `datasets` writes them in the schema's metadata; empty if missing."""
    try:
        features = parse_json((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(map(str, features[label]["names"]))
    except (KeyError, TypeError, ValueError):
        return ()
