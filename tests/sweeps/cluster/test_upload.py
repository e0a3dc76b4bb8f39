"""Files that a submitted sweep uploads, and files that it must not upload."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from lt_train.core.errors import SpecError, UserError
from sweeps.cluster import upload
from sweeps.cluster.upload import prepare_upload
from sweeps.config.spec import SweepSpec


@pytest.fixture
def write(
    small_sweep: Callable[..., SweepSpec], features_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Path]:
    """Writes a sweep file next to its features, in the working directory."""
    (tmp_path / "features").mkdir()
    (tmp_path / "features" / "mine.npz").write_bytes(features_file.read_bytes())
    monkeypatch.chdir(tmp_path)

    def make(path: str = "features/mine.npz", **sections: Any) -> Path:
        spec = small_sweep(**{"storage": "/shared/runs", "backend": {"kind": "ray"}, **sections})
        document = spec.resolved()
        document["dataset"]["path"] = path
        file = tmp_path / "sweep.yaml"
        file.write_text("# mine\n" + yaml.safe_dump(document, sort_keys=False))
        return file

    return make


def test_the_file_and_its_local_files_are_uploaded_and_nothing_else(write: Callable[..., Path], tmp_path: Path) -> None:
    file = write()
    (tmp_path / "diary.txt").write_text("private")
    with prepare_upload(file) as found:
        place = found.directory / found.place
        there = sorted(str(path.relative_to(place)) for path in found.directory.rglob("*") if path.is_file())
        assert there == ["features/mine.npz", "sweep.yaml"]
        assert (place / found.file).read_text() == file.read_text()
        assert (place / "features/mine.npz").read_bytes() == (tmp_path / "features/mine.npz").read_bytes()
    assert not found.directory.exists()
    assert file.exists()


def test_a_whole_directory_is_uploaded_on_request(write: Callable[..., Path], tmp_path: Path) -> None:
    with prepare_upload(write(), tmp_path) as found:
        assert (found.directory, found.place, found.file) == (tmp_path.resolve(), ".", "sweep.yaml")
    assert tmp_path.exists()
    with (
        pytest.raises(UserError, match=r"must be in the working directory .*features"),
        prepare_upload(write(), tmp_path / "features"),
    ):
        pass


def test_absolute_paths_are_not_uploaded(write: Callable[..., Path]) -> None:
    with prepare_upload(write("/data/on/the/cluster.npz")) as found:
        assert [path.name for path in (found.directory / found.place).iterdir()] == ["sweep.yaml"]


@pytest.mark.parametrize(
    ("sections", "path", "problem"),
    [
        ({"storage": "runs"}, "features/mine.npz", "storage must be an absolute path .* got runs"),
        ({}, "features/other.npz", r"dataset\.path: features/other\.npz is not a file .* must be absolute"),
        ({}, "features", r"dataset\.path: features is a directory"),
        ({}, "../mine.npz", r"dataset\.path: \.\./mine\.npz is outside this directory"),
        ({"backend": {"kind": "ray", "bank_store": "banks"}}, "features/mine.npz", "bank_store must be .* got banks"),
        ({"backend": {"kind": "ray", "bank_store": "~/b"}}, "features/mine.npz", "bank_store must be .* got ~/b"),
        (
            {"backend": {"kind": "inline"}},
            "features/mine.npz",
            "backend must be one that trains on the cluster .* got inline",
        ),
        (
            {"tracking": {"kind": "mlflow", "uri": "sqlite:///mlflow.db"}},
            "features/mine.npz",
            r"tracking\.uri must not be a relative path .* got sqlite:///mlflow\.db",
        ),
    ],
)
def test_sweeps_that_cannot_be_submitted_are_refused(
    write: Callable[..., Path], sections: dict[str, Any], path: str, problem: str
) -> None:
    with pytest.raises(UserError, match=problem), prepare_upload(write(path, **sections)):
        pass


def test_the_size_of_an_upload_is_limited(write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "MAX_BYTES", 2**10)
    with (
        pytest.raises(UserError, match=r"sweep\.yaml must be at most 1 KiB in total, got [\d.]+ KiB"),
        prepare_upload(write()),
    ):
        pass


def test_an_invalid_file_is_refused_first(write: Callable[..., Path]) -> None:
    file = write()
    file.write_text(file.read_text().replace("trials: 7", "trials: 0"))
    with pytest.raises(SpecError, match=r"sweep\.yaml:\d+: search\.trials"), prepare_upload(file):
        pass
