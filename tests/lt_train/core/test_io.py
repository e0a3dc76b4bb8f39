"""Files are complete or absent, also after exceptions, races and on a full disk; tensor files."""

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from lt_train.core.errors import StorageError
from lt_train.core.io import (
    allocate,
    atomic_directory,
    atomic_file,
    digest,
    digest_file,
    digest_tensors,
    fingerprint,
    fingerprint_tensors,
    parse_json,
    set_aside,
    sha256_file,
    write_tensors,
    writing,
)


class Interruption(BaseException):
    """Like KeyboardInterrupt: not caught by `except Exception`."""


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


def test_a_file_appears_whole_and_replaces_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file.json"
    for text in ("first", "second"):
        with atomic_file(path) as temporary:
            assert temporary.parent == path.parent
            temporary.write_text(text)
            assert not path.exists() or path.read_text() == "first"
        assert path.read_text() == text
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError("stop"), Interruption("stop")])
def test_an_exception_leaves_no_file_and_keeps_the_old_one(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "file"

    def write() -> None:
        with atomic_file(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(type(error), match="stop"):
        write()
    assert list(tmp_path.iterdir()) == []
    path.write_text("old")
    with pytest.raises(type(error), match="stop"):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError("stop"), Interruption("stop")])
def test_an_exception_leaves_no_directory(tmp_path: Path, error: BaseException) -> None:
    def write() -> None:
        with atomic_directory(tmp_path / "bank") as temporary:
            (temporary / "inner").mkdir()
            (temporary / "inner" / "part").write_text("half")
            raise error

    with pytest.raises(type(error), match="stop"):
        write()
    assert list(tmp_path.iterdir()) == []


def test_a_directory_appears_whole(tmp_path: Path) -> None:
    path = tmp_path / "store" / "bank"
    with atomic_directory(path) as temporary:
        (temporary / "inner").mkdir()
        (temporary / "inner" / "part").write_text("whole")
        assert not path.exists()
    assert (path / "inner" / "part").read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


def test_the_directory_that_was_finished_first_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "bank"
    with atomic_directory(path) as slow:
        (slow / "part").write_text("slow")
        with atomic_directory(path) as fast:
            (fast / "part").write_text("fast")
    assert (path / "part").read_text() == "fast"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_the_umask_is_not_set_to_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Setting the umask would affect all threads of the process."""
    calls: list[int] = []
    monkeypatch.setattr(os, "umask", calls.append)
    with atomic_file(tmp_path / "file") as temporary:
        temporary.write_text("whole")
    assert calls == []


@pytest.mark.usefixtures("umask")
def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    """Temporary files are private; finished files follow the umask."""
    with atomic_file(tmp_path / "file") as temporary:
        assert temporary.stat().st_mode & 0o777 == 0o600
    with atomic_directory(tmp_path / "bank") as directory:
        (directory / "part").touch(0o600)
        assert directory.stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "bank").stat().st_mode & 0o777 == 0o750
    assert (tmp_path / "bank" / "part").stat().st_mode & 0o777 == 0o640
    assert os.umask(0o027) == 0o027


def test_a_full_disk_is_a_storage_error_that_names_the_path(small_disk: Callable[[str], Path]) -> None:
    disk = small_disk("64k")
    path = disk / "file"
    path.write_text("old")
    with (
        pytest.raises(StorageError, match=f"cannot write {path}: the disk is full; free some space and run"),
        atomic_file(path) as temporary,
    ):
        temporary.write_bytes(b"x" * 100_000)
    assert path.read_text() == "old"
    assert list(disk.iterdir()) == [path]

    bank = disk / "bank"
    with (
        pytest.raises(StorageError, match=f"cannot write {bank}: the disk is full; free some space and run"),
        atomic_directory(bank) as directory,
    ):
        (directory / "part").write_bytes(b"x" * 100_000)
    assert list(disk.iterdir()) == [path]
    with atomic_file(path) as temporary:
        temporary.write_bytes(b"x" * 20_000)
    assert path.stat().st_size == 20_000


def test_a_path_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "below"
    with pytest.raises(StorageError, match=f"cannot write {path}: .*; make it writable"), atomic_file(path):
        pytest.fail("nothing can be written below a file")
    with pytest.raises(StorageError, match=f"cannot write {path}: .*; make it writable"), atomic_directory(path):
        pytest.fail("nothing can be written below a file")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_all_errors_that_mean_a_full_disk(number: int) -> None:
    with pytest.raises(StorageError, match="cannot write there: the disk is full") as caught, writing(Path("there")):
        raise OSError(number, os.strerror(number))
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.exit_code == 1


def test_fingerprints_are_canonical_and_reject_nan() -> None:
    assert fingerprint({"a": 1, "b": [1.5, None]}) == fingerprint({"b": [1.5, None], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 1.0})
    assert fingerprint([]) == hashlib.sha256(b"[]").hexdigest()
    with pytest.raises(ValueError, match="not JSON compliant"):
        fingerprint(float("nan"))


def test_the_fingerprint_of_tensors_is_sha256_of_document_and_tensors() -> None:
    expected = hashlib.sha256(b'{"a": 1}["x", "torch.float32", [1]]' + bytes(4)).hexdigest()
    assert fingerprint_tensors({"a": 1}, {"x": torch.zeros(1)}) == expected


def test_sha256_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc" * 100_000)
    assert sha256_file(tmp_path / "file") == hashlib.sha256(b"abc" * 100_000).hexdigest()


def test_digests_are_xxh3_128(tmp_path: Path) -> None:
    assert digest(b"") == "99aa06d3014798d86001c324468d497f"  # the published value
    for size in (0, 5, 2**20, 2**20 + 1):
        content = os.urandom(size)
        (tmp_path / "file").write_bytes(content)
        assert digest_file(tmp_path / "file") == digest(content)
    with pytest.raises(FileNotFoundError):
        digest_file(tmp_path / "none")


def test_a_digest_of_tensors_depends_on_everything_that_is_read_back(tmp_path: Path) -> None:
    document = {"epoch": 3, "classes": (1, 2), "names": {7: "seven"}}
    tensors = {
        "weight": torch.arange(6.0).view(2, 3),
        "turned": torch.arange(6.0).view(3, 2).T,
        "half": torch.ones(3, dtype=torch.bfloat16),
        "count": torch.tensor(5),
        "mask": torch.tensor([True, False]),
        "nothing": torch.empty(0, 4),
    }
    expected = digest_tensors(document, tensors)
    write_tensors(tmp_path / "file", tensors)
    assert digest_tensors(json.loads(json.dumps(document)), load_file(tmp_path / "file")) == expected
    assert digest_tensors(document, dict(reversed(tensors.items()))) == expected
    weight = tensors["weight"]
    changes: list[dict[str, torch.Tensor]] = [
        {"weight": weight.view(3, 2)},
        {"weight": weight.view(torch.int32)},
        {"weight": weight + torch.tensor([0, 0, 1e-6])},
        {"nothing": torch.empty(4, 0)},
        {"more": torch.empty(0)},
    ]
    others = [digest_tensors(document, tensors | change) for change in changes]
    others.append(digest_tensors(document | {"epoch": 4}, tensors))
    others.append(digest_tensors(document, {f"{name}s": tensor for name, tensor in tensors.items()}))
    assert len({expected, *others}) == len(others) + 1


def test_a_damaged_file_or_directory_is_set_aside_and_replaces_an_earlier_one(tmp_path: Path) -> None:
    for kind in ("file", "directory", "directory", "file"):
        path = tmp_path / "bank"
        if kind == "file":
            path.write_text("x")
        else:
            path.mkdir()
            (path / "inner").write_text("x")
        assert set_aside(path) == tmp_path / "bank.damaged"
        assert [entry.name for entry in tmp_path.iterdir()] == ["bank.damaged"]
        assert (tmp_path / "bank.damaged").is_dir() == (kind == "directory")
    set_aside(tmp_path / "gone")  # by another process


def test_known_tensors_are_written_again_and_others_kept(tmp_path: Path) -> None:
    file, later = tmp_path / "file", {"features": (torch.float32, (5,))}
    write_tensors(file, {"labels": torch.arange(3), "features": torch.ones(5)})
    content = file.read_bytes()
    for damaged in (b"\xff" * (len(content) - 20) + content[-20:], content + b"more"):
        file.write_bytes(damaged)
        allocate(file, {"labels": torch.arange(3)}, later, keep=True)
        assert file.read_bytes() == content
    file.write_bytes(content[:-4])
    allocate(file, {"labels": torch.arange(3)}, later, keep=True)
    assert file.read_bytes() == content[:-4] + bytes(4)


def test_one_module_under_two_names_is_written_under_both(tmp_path: Path) -> None:
    network = nn.ModuleDict({"stem": nn.Linear(3, 2)})
    network["again"] = network["stem"]
    write_tensors(tmp_path / "file", network.state_dict())
    found = load_file(tmp_path / "file")
    assert set(found) == {"stem.weight", "stem.bias", "again.weight", "again.bias"}
    assert all(torch.equal(found[name], tensor) for name, tensor in network.state_dict().items())


def test_views_of_one_tensor_are_written_separately(tmp_path: Path) -> None:
    whole = torch.arange(12.0).view(3, 4)
    parts = {"whole": whole, "row": whole[1], "turned": whole.T, "empty": whole[:0], "nothing": torch.empty(0)}
    write_tensors(tmp_path / "file", parts)
    found = load_file(tmp_path / "file")
    assert set(found) == set(parts)
    assert all(torch.equal(found[name], tensor) for name, tensor in parts.items())


def test_a_json_document_that_is_nested_too_deeply_is_not_json() -> None:
    assert parse_json('{"a": [1, {"b": null}]}') == {"a": [1, {"b": None}]}
    assert parse_json("[" * 100 + "]" * 100)
    for text in ("[" * 101 + "]" * 101, '{"a": ' * 300 + "1" + "}" * 300, "[" * 300_000, "{"):
        with pytest.raises(ValueError):  # noqa: PT011
            parse_json(text)
