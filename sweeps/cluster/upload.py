"""The upload of a submitted sweep: its file, and the local files that it names.

A relative path names a file on this machine, which is uploaded. An absolute path names a file on the cluster.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lt_train.core.errors import UserError
from lt_train.core.text import format_bytes
from sweeps.config.matrix import load_file, sweeps_of
from sweeps.config.spec import SweepSpec
from sweeps.store.directory import check_name

__all__ = ["Upload", "prepare_upload"]

MAX_BYTES = 400 * 2**20
"""Limit of an upload; Ray's own is 500 MiB."""

FILES_DIRECTORY = "local-files"
"""Directory in an upload that contains the files. The upload itself is on Python's import path, so that its files could
be imported as modules; the hyphen in this name makes its content unimportable."""


@dataclass(frozen=True)
class Upload:
    """A sweep that is ready to be submitted.

    Attributes:
        name, storage: of the sweep or sweep matrix in the file.
        directory: the directory to upload.
        place: the job's working directory, relative to `directory`; the spec's paths are relative to it.
        file: the sweep file, relative to `place`.
    """

    name: str
    storage: str
    directory: Path
    place: str
    file: str


@contextlib.contextmanager
def prepare_upload(file: Path, working_dir: Path | None = None) -> Iterator[Upload]:
    """Collect the sweep file and its local files in a directory that is removed at the end of the block.

    Args:
        file: the sweep file.
        working_dir: a directory that contains `file`; uploaded as a whole, instead of only the files that `file` names.

    Raises:
        SpecError: the file is invalid.
        UserError: results would be lost with the job, or a file is missing or cannot be uploaded.
    """
    loaded = load_file(file)
    sweeps = sweeps_of(loaded)
    for spec in sweeps:
        _check(spec)
    if working_dir is not None:
        root = working_dir.expanduser().resolve()
        if not file.resolve().is_relative_to(root):
            raise UserError(f"{file} must be in the working directory {working_dir}")
        yield Upload(loaded.name, loaded.storage, root, ".", str(file.resolve().relative_to(root)))
        return
    with tempfile.TemporaryDirectory(prefix="lt-sweep-") as name:
        directory = Path(name) / FILES_DIRECTORY
        directory.mkdir()
        shutil.copyfile(file, directory / file.name)
        local_files = {path: field for spec in sweeps for field, path in _local_files(spec)}
        for path, field in local_files.items():
            (directory / path).parent.mkdir(parents=True, exist_ok=True)
            _copy(field, path, directory / path)
        size = sum(one.stat().st_size for one in directory.rglob("*") if one.is_file())
        if size > MAX_BYTES:
            raise UserError(
                f"the local files of {file} must be at most {format_bytes(MAX_BYTES)} in total, "
                f"got {format_bytes(size)}; "
                "put them where the cluster can read them, and give absolute paths"
            )
        yield Upload(loaded.name, loaded.storage, Path(name), FILES_DIRECTORY, file.name)


def _check(spec: SweepSpec) -> None:
    check_name(spec)
    if not Path(spec.storage).is_absolute():
        raise UserError(
            f"storage must be an absolute path for a submitted sweep, got {spec.storage}; a job's own directory is "
            "removed with the job; use a disk of the cluster that outlives its head node"
        )
    for problem in (spec.tracking.submission_problem(), spec.backend.submission_problem()):
        if problem:
            raise UserError(problem)


def _local_files(spec: SweepSpec) -> Iterator[tuple[str, Path]]:
    """Fields of a spec with relative paths, and the paths."""
    for field, text in spec.files().items():
        path = Path(text)
        if path.is_absolute() or text.startswith("~"):
            continue
        if ".." in path.parts:
            raise UserError(f"{field}: {text} is outside this directory; submit from a directory that contains it")
        yield field, path


def _copy(field: str, path: Path, target: Path) -> None:
    if path.is_dir():
        raise UserError(
            f"{field}: {path} is a directory, and directories are not uploaded; put it where the cluster can read it "
            "and give the absolute path"
        )
    if not path.is_file():
        raise UserError(f"{field}: {path} is not a file on this machine; a path on the cluster must be absolute")
    shutil.copyfile(path, target)
