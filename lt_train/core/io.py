"""Durable files: a file or directory is either complete or absent, whenever the process dies. Also tensor files.

A file or directory is written beside its final name, synced and renamed. A full disk raises a `StorageError` that names
the path, and leaves nothing behind. Tensors go to safetensors files, at once (`write_tensors`) or piece by piece
(`allocate`); write them to the temporary path of `atomic_file` or `atomic_directory`, and read them with
`safetensors.safe_open`. torch is imported only when tensors are written.

Two kinds of hashes: identities, which decide whether two things are the same, are sha256 (`fingerprint`,
`fingerprint_tensors`, `sha256_file`). Damage to a file is detected with XXH3-128 (`digest`, `digest_file`,
`digest_tensors`), which is several times faster.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lt_train.core.errors import StorageError, UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = [
    "allocate",
    "atomic_directory",
    "atomic_file",
    "check_output",
    "digest",
    "digest_file",
    "digest_tensors",
    "fingerprint",
    "fingerprint_tensors",
    "parse_json",
    "remove",
    "set_aside",
    "sha256_file",
    "sync",
    "tensor_offsets",
    "write_tensors",
    "writing",
]

_UMASK_LOCK = threading.Lock()

_LONGEST_NAME = 220
"""Bytes: the limit of file systems (255) minus the suffixes of temporary files and of interrupted work."""

_DEEPEST_JSON = 100
"""Levels of lists and mappings; our own documents have fewer than ten, and Python fails at about a thousand."""


def check_output(path: Path) -> None:
    """Reject a path that no file can be written to, before the work whose result it is to hold.

    Raises:
        UserError: `path` names a directory, or its name is too long.
    """
    if path.name in ("", "..") or path.is_dir():
        raise UserError(f"{path} is a directory, but the output must be a file; add a file name, such as {path}/out")
    size = len(os.fsencode(path.name))
    if size > _LONGEST_NAME:
        raise UserError(f"a file name must be at most {_LONGEST_NAME} bytes long, got {size} ({path.name})")


def fingerprint(document: Any) -> str:
    """sha256 (hex) of a JSON document in canonical form: sorted keys, no white space, no NaN."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """sha256 (hex) of a file's bytes, for files whose contents are part of an identity."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(data: bytes) -> str:
    """XXH3-128 (32 hex digits) of `data`, to detect damage."""
    import xxhash

    return xxhash.xxh3_128_hexdigest(data)


def digest_file(path: Path) -> str:
    """XXH3-128 (32 hex digits) of a file's bytes, to detect damage.

    Raises:
        OSError: the file cannot be read.
    """
    import xxhash

    hasher, block = xxhash.xxh3_128(), memoryview(bytearray(2**20))
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(block):
            hasher.update(block[:size])
    return hasher.hexdigest()


def digest_tensors(document: Any, tensors: Mapping[str, Tensor]) -> str:
    """XXH3-128 (32 hex digits) of a JSON document and of the name, dtype, shape and bytes of each tensor.

    Equal for what is written to a file and what is read from it: the order of keys and names, the memory layout and
    types that JSON does not have, such as tuples, have no effect.
    """
    import xxhash

    hasher = xxhash.xxh3_128()
    _add_tensors(hasher.update, document, tensors)
    return hasher.hexdigest()


def fingerprint_tensors(document: Any, tensors: Mapping[str, Tensor]) -> str:
    """sha256 (hex) of the same content as in `digest_tensors`, where it is part of an identity."""
    hasher = hashlib.sha256()
    _add_tensors(hasher.update, document, tensors)
    return hasher.hexdigest()


def _add_tensors(update: Callable[[Any], object], document: Any, tensors: Mapping[str, Tensor]) -> None:
    """Pass a document and tensors to a hash, block by block."""
    import torch

    update(json.dumps(json.loads(json.dumps(document)), sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        # As bytes, because numpy has no bfloat16; only a tensor with a dimension can be viewed as another dtype.
        update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)


def parse_json(text: str | bytes) -> Any:
    """Parse a JSON document from a file that may be damaged.

    Raises:
        ValueError: it is not JSON, or is nested too deeply to be processed further.
    """
    try:
        document = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    level = [document]
    for _ in range(_DEEPEST_JSON):
        parts = (one.values() if isinstance(one, dict) else one for one in level if isinstance(one, (dict, list)))
        level = [part for inner in parts for part in inner if isinstance(part, (dict, list))]
        if not level:
            return document
    raise ValueError("nested too deeply")


def remove(path: Path) -> None:
    """Remove a file, a link or a directory with its content, if it exists.

    Raises:
        StorageError: it could not be removed.
    """
    with writing(path):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def set_aside(path: Path) -> Path:
    """Rename a damaged file or directory to `<name>.damaged`, which replaces an earlier one, and return that path.

    Raises:
        StorageError: it could not be renamed.
    """
    place = path.with_name(f"{path.name}.damaged")
    remove(place)
    with writing(place), contextlib.suppress(FileNotFoundError):  # another process has set it aside
        path.rename(place)
    return place


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Convert an operating system error while writing `path` into a StorageError with advice.

    Raises:
        StorageError: the disk is full, read-only or over quota, or the directory is not writable.
    """
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        why = "the disk is full" if full else (error.strerror or str(error))
        advice = "free some space" if full else "make it writable"
        raise StorageError(
            f"cannot write {path}: {why}; {advice} and run the same command again. No finished work was lost"
        ) from error


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success, sync it and rename it to `path`.

    Raises:
        StorageError: the file could not be written; the temporary file is removed and `path` is unchanged.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            temporary.chmod(0o666 & ~_umask())
            sync(temporary)
            temporary.replace(path)
            sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary directory beside `path`; on success, sync its files and rename it to `path`.

    If another process has finished the same directory first, its directory is kept: contents are addressed by name.

    Raises:
        StorageError: a file in it could not be written; the temporary directory is removed.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        try:
            yield temporary
            temporary.chmod(0o777 & ~_umask())
            for file in temporary.rglob("*"):
                if file.is_file():  # a library may have made it private
                    file.chmod(0o666 & ~_umask())
                sync(file)
            try:
                temporary.rename(path)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            sync(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _umask() -> int:
    """The umask of the process, for finished files; temporary files are private.

    Read from /proc where possible: `os.umask` changes it for a moment, which other threads could observe.
    """
    with contextlib.suppress(OSError, StopIteration), open("/proc/self/status") as status:
        return int(next(line for line in status if line.startswith("Umask:")).split()[1], 8)
    with _UMASK_LOCK:
        mask = os.umask(0)
        os.umask(mask)
        return mask


def sync(path: Path) -> None:
    """Force a file or directory to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_tensors(file: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write `tensors`, from any device and in any memory layout, to `file`. Tensors may share memory.

    Raises:
        OSError: the disk is full or not writable. The error of safetensors, which only has the number in its text, is
            converted.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    apart: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        memory = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone() if memory in seen else tensor
        seen.add(memory)
    try:
        save_file(apart, file, metadata)
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(file)) from error


def allocate(
    file: Path,
    known: Mapping[str, Tensor],
    later: Mapping[str, tuple[torch.dtype, Sequence[int]]],
    *,
    keep: bool = False,
) -> None:
    """Create `file` in its full length with the tensors in `known`; the others are zeros, to be written in place.

    The bytes equal those of `write_tensors`. Disk space is reserved for the whole file where the system supports that.

    Args:
        file: replaced if it exists, unless `keep` is set.
        known: tensors on the CPU, int64, float32 or float16.
        later: dtype and shape of the other tensors.
        keep: write the header and the tensors in `known` to the existing file; the bytes of the other tensors are kept.

    Raises:
        OSError: the disk is full or not writable.
    """
    import torch

    # In the order in which safetensors lays tensors out, by alignment.
    names = {torch.int64: "I64", torch.float32: "F32", torch.float16: "F16"}
    about = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in known.items()}
    about |= {name: (dtype, tuple(shape)) for name, (dtype, shape) in later.items()}
    header, starts, end = {}, {}, 0
    for name in sorted(about, key=lambda name: (list(names).index(about[name][0]), name)):
        dtype, shape = about[name]
        starts[name], end = end, end + dtype.itemsize * torch.Size(shape).numel()
        header[name] = {"dtype": names[dtype], "shape": shape, "data_offsets": [starts[name], end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("r+b" if keep and file.exists() else "wb") as opened:
        opened.write(len(text).to_bytes(8, "little") + text)
        opened.flush()
        size = opened.tell() + end
        if os.fstat(opened.fileno()).st_size != size:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(opened.fileno(), 0, size)
            opened.truncate(size)
        for name, tensor in known.items():
            opened.seek(8 + len(text) + starts[name])
            opened.write(tensor.contiguous().numpy().data)


def tensor_offsets(file: Path) -> dict[str, int]:
    """Offset of each tensor in a safetensors file, in bytes."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = parse_json(opened.read(length))
    return {name: 8 + length + about["data_offsets"][0] for name, about in header.items() if name != "__metadata__"}
