"""What travels with a submitted sweep: its file, and the files that it names by relative paths.

A relative path is a file on this machine; an absolute one is a place on the cluster. Knows specs and files, no Ray.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lt_train.core.errors import UserError
from sweeps.config.matrix import SweepMatrix, load_file
from sweeps.config.sizes import shown_size
from sweeps.config.spec import SweepSpec

__all__ = ["Upload", "bundled"]

MOST_BYTES = 400 * 2**20
"""Ray takes 500 MiB."""

PLACE = "travelling-files"
"""Directory of an upload that the files lie in. Python looks for modules in the upload itself, so that a file beside it
could be imported by its name; nothing in a directory of this name is."""


@dataclass(frozen=True)
class Upload:
    """A sweep ready to travel.

    Attributes:
        name, storage: of the sweep, or the matrix, that is in the file.
        directory: what is uploaded.
        place: the directory in it that a job runs in, to which the spec's paths are relative.
        file: the sweep file, from there.
    """

    name: str
    storage: str
    directory: Path
    place: str
    file: str


@contextlib.contextmanager
def bundled(file: Path, working_dir: Path | None = None) -> Iterator[Upload]:
    """Everything that the sweep in `file` needs of this machine, in a directory that is removed afterwards.

    Args:
        file: the sweep file.
        working_dir: upload this directory, which `file` lies in, instead of only what the file names.

    Raises:
        SpecError: the file is wrong.
        UserError: results would be lost with the job, or a file is missing or does not belong in an upload.
    """
    loaded = load_file(file)
    sweeps = loaded.sweeps if isinstance(loaded, SweepMatrix) else [loaded]
    for spec in sweeps:
        _check(spec)
    if working_dir is not None:
        root = working_dir.expanduser().resolve()
        if not file.resolve().is_relative_to(root):
            raise UserError(f"{file} does not lie in the working directory {working_dir}")
        yield Upload(loaded.name, loaded.storage, root, ".", str(file.resolve().relative_to(root)))
        return
    with tempfile.TemporaryDirectory(prefix="lt-sweep-") as name:
        directory = Path(name) / PLACE
        directory.mkdir()
        shutil.copyfile(file, directory / file.name)
        local_files = {path: field for spec in sweeps for field, path in _local_files(spec)}
        for path, field in local_files.items():
            (directory / path).parent.mkdir(parents=True, exist_ok=True)
            _copy(field, path, directory / path)
        size = sum(one.stat().st_size for one in directory.rglob("*") if one.is_file())
        if size > MOST_BYTES:
            raise UserError(
                f"the files that {file} names take {shown_size(size)}, and Ray carries no more than "
                f"{shown_size(MOST_BYTES)}; put them where the cluster can read them, and give absolute paths"
            )
        yield Upload(loaded.name, loaded.storage, Path(name), PLACE, file.name)


def _check(spec: SweepSpec) -> None:
    if not Path(spec.storage).is_absolute():
        raise UserError(
            f"storage: {spec.storage} is relative, and a job's own directory is removed with it; give an absolute path "
            "on the cluster, on a disk that outlives its head"
        )
    uri = getattr(spec.tracking, "uri", None) or ""
    if uri.startswith("sqlite:///") and not uri.startswith("sqlite:////"):
        raise UserError(
            f"tracking.uri: {uri} is relative, and a job's own directory is removed with it; give the http:// address "
            "of a tracking server, or sqlite:////absolute/path on the cluster"
        )
    store = getattr(spec.backend, "bank_store", None) or "/"
    if "://" not in store and not Path(store).is_absolute():
        raise UserError(
            f"backend.bank_store: {store} is relative, and workers do not run in the job's own directory; give an "
            "absolute path that all machines of the cluster share, or a URL such as s3://bucket/banks"
        )
    if spec.backend.kind != "ray":
        raise UserError(f"backend: {spec.backend.kind} would train in the job's driver alone; use ray, or leave it out")


def _local_files(spec: SweepSpec) -> Iterator[tuple[str, Path]]:
    """The relative paths that a spec names, by field."""
    for field, text in spec.files().items():
        path = Path(text)
        if path.is_absolute() or text.startswith("~"):
            continue
        if ".." in path.parts:
            raise UserError(f"{field}: {text} leads out of this directory; submit from a directory that holds it")
        yield field, path


def _copy(field: str, path: Path, target: Path) -> None:
    if path.is_dir():
        raise UserError(
            f"{field}: {path} is a directory, which does not travel with a sweep; put it where the cluster can read it "
            "and give the absolute path"
        )
    if not path.is_file():
        raise UserError(f"{field}: {path} is not a file here; a path on the cluster must be absolute")
    shutil.copyfile(path, target)
