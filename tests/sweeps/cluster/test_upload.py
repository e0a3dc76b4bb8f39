"""What travels with a submitted sweep, and what does not belong in an upload."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from lt_train.core.errors import SpecError, UserError
from sweeps.cluster import bundle
from sweeps.cluster.upload import bundled
from sweeps.config.spec import SweepSpec


@pytest.fixture
def write(
    small_sweep: Callable[..., SweepSpec], features_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Path]:
    """A sweep file beside its features, and this directory the current one."""
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


def test_the_file_and_what_it_names_travel_and_nothing_else(write: Callable[..., Path], tmp_path: Path) -> None:
    file = write()
    (tmp_path / "diary.txt").write_text("private")
    with bundled(file) as found:
        place = found.directory / found.place
        there = sorted(str(path.relative_to(place)) for path in found.directory.rglob("*") if path.is_file())
        assert there == ["features/mine.npz", "sweep.yaml"]
        assert (place / found.file).read_text() == file.read_text()
        assert (place / "features/mine.npz").read_bytes() == (tmp_path / "features/mine.npz").read_bytes()
    assert not found.directory.exists()
    assert file.exists()


def test_a_whole_directory_travels_where_it_is_asked_to(write: Callable[..., Path], tmp_path: Path) -> None:
    with bundled(write(), tmp_path) as found:
        assert (found.directory, found.place, found.file) == (tmp_path.resolve(), ".", "sweep.yaml")
    assert tmp_path.exists()
    with (
        pytest.raises(UserError, match=r"does not lie in the working directory .*features"),
        bundled(write(), tmp_path / "features"),
    ):
        pass


def test_absolute_paths_are_the_clusters(write: Callable[..., Path]) -> None:
    with bundled(write("/data/on/the/cluster.npz")) as found:
        assert [path.name for path in (found.directory / found.place).iterdir()] == ["sweep.yaml"]


@pytest.mark.parametrize(
    ("sections", "path", "problem"),
    [
        ({"storage": "runs"}, "features/mine.npz", "storage: runs is relative, and a job's own directory is removed"),
        (
            {},
            "features/other.npz",
            r"dataset\.path: features/other\.npz is not a file here; a path on the cluster must",
        ),
        ({}, "features", r"dataset\.path: features is a directory, which does not travel with a sweep"),
        ({}, "../mine.npz", r"dataset\.path: \.\./mine\.npz leads out of this directory"),
        ({"backend": {"kind": "ray", "bank_store": "banks"}}, "features/mine.npz", "bank_store: banks is relative"),
        ({"backend": {"kind": "ray", "bank_store": "~/banks"}}, "features/mine.npz", "bank_store: ~/banks is relative"),
        ({"backend": {"kind": "inline"}}, "features/mine.npz", "backend: inline would train in the job's driver alone"),
        (
            {"tracking": {"kind": "mlflow", "uri": "sqlite:///mlflow.db"}},
            "features/mine.npz",
            r"tracking\.uri: sqlite:///mlflow\.db is relative",
        ),
    ],
)
def test_what_does_not_belong_in_an_upload_is_told(
    write: Callable[..., Path], sections: dict[str, Any], path: str, problem: str
) -> None:
    with pytest.raises(UserError, match=problem), bundled(write(path, **sections)):
        pass


def test_too_much_is_told_with_the_sizes(write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "MOST_BYTES", 2**10)
    with pytest.raises(
        UserError, match=r"the files that .*sweep\.yaml names take [\d.]+ KiB, and Ray carries no more than 1 KiB"
    ):
        with bundled(write()):
            pass


def test_a_wrong_file_is_told_before_anything_travels(write: Callable[..., Path]) -> None:
    file = write()
    file.write_text(file.read_text().replace("trials: 7", "trials: 0"))
    with pytest.raises(SpecError, match=r"sweep\.yaml:\d+: search\.trials"), bundled(file):
        pass
