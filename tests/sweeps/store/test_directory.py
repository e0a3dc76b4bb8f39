"""A sweep's directory: checks, archiving, moving, and one driver at a time."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.ledgers import run_lines

import sweeps
from lt_train.core.errors import DataError, LongtailError, StorageError, UserError
from sweeps.analysis.load import read_sweep
from sweeps.analysis.matrix_table import read_result
from sweeps.analysis.result import Result
from sweeps.cli.app import main
from sweeps.config.matrix import SweepMatrix
from sweeps.config.spec import SweepSpec
from sweeps.store import layout
from sweeps.store.directory import interrupted_sweep, load_matrix_directory, load_spec, save_matrix
from sweeps.store.layout import is_sweep, leases, matrix_sweeps, read_document, sweep_directory, write_document
from sweeps.store.lease import acquire_lease

MakeSweep = Callable[..., SweepSpec]


def test_a_directory_without_a_sweep_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"is not a sweep directory: it has no sweep\.json"):
        sweep_directory(tmp_path)


def test_starting_over_keeps_every_earlier_sweep(small_sweep: MakeSweep, tmp_path: Path):
    for seed in range(3):
        sweeps.run(small_sweep(search={"seed": seed, "trials": 2}), fresh=True)
    for name in ("small", "small.previous-1", "small.previous-2"):
        assert (tmp_path / "runs" / name / "result.json").exists()


def test_starting_over_changes_nothing_if_the_input_is_invalid(small_sweep: MakeSweep, tmp_path: Path):
    sweeps.run(small_sweep(search={"trials": 2}))
    before = (tmp_path / "runs" / "small" / "result.json").read_bytes()
    broken = small_sweep(dataset={"path": str(tmp_path / "missing.npz")})
    for _ in range(2):
        with pytest.raises(DataError, match=r"missing\.npz"):
            sweeps.run(broken, fresh=True)
    assert (tmp_path / "runs" / "small" / "result.json").read_bytes() == before
    assert not (tmp_path / "runs" / "small.previous-1").exists()


def test_a_sweep_in_use_can_neither_be_run_nor_started_over(small_sweep: MakeSweep, tmp_path: Path):
    spec = small_sweep(search={"trials": 2})
    result = sweeps.run(spec)
    with acquire_lease(leases(Path(spec.storage)), spec.name):
        for fresh in (False, True):
            with pytest.raises(UserError, match=rf"sweep small is being run by \S+, process {os.getpid()}, since"):
                sweeps.run(spec, fresh=fresh)
        sweeps.run(small_sweep(name="neighbour", search={"trials": 2}))
    assert (tmp_path / "runs" / "small" / "result.json").exists()
    assert sweeps.run(spec) == result


def test_other_features_under_the_same_spec_are_refused(small_sweep: MakeSweep, features_file: Path, tmp_path: Path):
    own = tmp_path / "own.npz"
    own.write_bytes(features_file.read_bytes())
    spec = small_sweep(dataset={"path": str(own)}, search={"trials": 2})
    first = sweeps.run(spec)
    arrays = dict(np.load(own))
    arrays["train_features"] = arrays["train_features"] + 1
    np.savez(own, **arrays)
    with pytest.raises(UserError, match=r"trained on other features: .*restore them"):
        sweeps.resume(tmp_path / "runs" / "small")
    own.write_bytes(features_file.read_bytes())
    assert sweeps.resume(tmp_path / "runs" / "small") == first


def test_moved_data_is_the_same_sweep(small_sweep: MakeSweep, features_file: Path, tmp_path: Path):
    first = sweeps.run(small_sweep(search={"trials": 2}))
    moved = tmp_path / "moved.npz"
    moved.write_bytes(features_file.read_bytes())
    assert sweeps.run(small_sweep(dataset={"path": str(moved)}, search={"trials": 2})) == first


def test_relative_paths_work_from_any_directory(
    small_sweep: MakeSweep, features_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    first_place, other_place = tmp_path / "first", tmp_path / "other"
    first_place.mkdir()
    other_place.mkdir()
    (first_place / "data.npz").write_bytes(features_file.read_bytes())
    spec = small_sweep(
        storage="runs",
        dataset={"path": "data.npz"},
        search={"trials": 2},
        tracking={"kind": "mlflow", "uri": "sqlite:///runs/track.db"},
    )
    monkeypatch.chdir(first_place)
    first = sweeps.run(spec)
    monkeypatch.chdir(other_place)
    assert sweeps.resume(first_place / "runs" / "small") == first
    assert list(other_place.iterdir()) == []
    monkeypatch.chdir(first_place / "runs" / "small")
    assert sweeps.resume(".") == first


def test_home_is_expanded(small_sweep: MakeSweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    sweeps.run(small_sweep(storage="~/sweeps", search={"trials": 1}))
    assert (tmp_path / "home" / "sweeps" / "small" / "result.json").exists()
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize(
    ("store", "absolute"),
    [("banks", "/here/banks"), ("~/banks", "/home/ann/banks"), ("/nfs/banks", "/nfs/banks"), ("s3://b/c", "s3://b/c")],
)
def test_driver_and_workers_use_the_same_bank_store(
    store: str, absolute: str, small_sweep: MakeSweep, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HOME", "/home/ann")
    spec = small_sweep(backend={"kind": "ray", "bank_store": store}).with_absolute_paths(Path("/here"))
    assert spec.backend.bank_store == absolute


@pytest.mark.parametrize("damaged", ["altered", "cut", "empty", "text"])
def test_a_damaged_identity_is_read_from_its_copy_in_the_ledger(
    damaged: str, small_sweep: MakeSweep, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    spec, file = small_sweep(search={"trials": 1}), tmp_path / "runs" / "small" / "sweep.json"
    result = sweeps.run(spec)
    content, known = file.read_text(), sweep_directory(file.parent)
    altered = content.replace('"trials": 1', '"trials": 2')
    assert altered != content
    written = {"altered": altered, "cut": content[:-10], "empty": "", "text": "no JSON"}[damaged]
    file.write_text(written)
    assert sweep_directory(file.parent) == known
    assert "sweep.json is damaged; its copy in the ledger is used" in caplog.text
    assert load_spec(sweep_directory(file.parent)) == spec
    assert sweeps.run(spec) == result
    assert file.read_text() == content, "it is written again"
    assert file.with_name("sweep.json.damaged").read_text() == written


def test_a_damaged_identity_is_read_once_per_command(
    small_sweep: MakeSweep, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
):
    spec, file = small_sweep(search={"trials": 1}), tmp_path / "runs" / "small" / "sweep.json"
    sweeps.run(spec)
    for command in (
        lambda: read_sweep(file.parent),
        lambda: main(["table", str(file.parent)]),
        lambda: main(["report", str(file.parent)]),
        lambda: main(["status", str(file.parent)]),
        lambda: sweeps.run(spec),
        lambda: sweeps.resume(file.parent),
    ):
        file.write_text("{}")
        caplog.clear()
        capsys.readouterr()
        command()
        # The command line prints it; whether it is propagated to caplog as well depends on the test before.
        printed = capsys.readouterr().err or caplog.text
        assert printed.count("its copy in the ledger is used") == 1


def test_a_sound_identity_is_read_once(small_sweep: MakeSweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    spec, place = small_sweep(search={"trials": 1}), tmp_path / "runs" / "small"
    sweeps.run(spec)
    reads: list[Path] = []

    def counting(path: Path) -> dict[str, Any] | None:
        reads.append(path)
        return read_document(path)

    monkeypatch.setattr(layout, "read_document", counting)
    read_sweep(place)
    assert reads == [place / "sweep.json"]


@pytest.mark.parametrize("without_ledger", [False, True])
def test_a_doubly_damaged_identity_is_reported(without_ledger: bool, small_sweep: MakeSweep, tmp_path: Path):
    spec, place = small_sweep(search={"trials": 1}), tmp_path / "runs" / "small"
    result = sweeps.run(spec)
    (place / "sweep.json").write_text("{")
    content, runs = (place / "ledger.jsonl").read_bytes(), run_lines(place)
    (place / "ledger.jsonl").write_bytes(content.replace(b'{"event":"sweep"', b'{"event":"sweeq"', 1))
    for read in (lambda: sweeps.run(spec), lambda: sweeps.resume(place), lambda: sweeps.report(place)):
        with pytest.raises(UserError, match=r"sweep\.json is damaged; remove it and run the sweep file again, which"):
            read()
    (place / "sweep.json").unlink()
    with pytest.raises(UserError, match=r"sweep\.json is missing; run the sweep file again"):
        sweeps.resume(place)
    if without_ledger:
        (place / "ledger.jsonl").unlink()
    assert sweeps.run(spec).trials == result.trials
    assert [run["at_ms"] for run in run_lines(place)] == [run["at_ms"] for run in runs], "nothing is trained again"


def test_a_damaged_matrix_file_is_reported(tmp_path: Path):
    (tmp_path / "matrix.json").write_text("{}")
    with pytest.raises(UserError, match=r"matrix\.json is damaged .*; `lt-sweep run` with the sweep file recreates it"):
        load_matrix_directory(tmp_path)


@pytest.mark.parametrize("written", ["no check", "format 2"])
def test_a_sweep_of_another_version_is_refused(written: str, small_sweep: MakeSweep, tmp_path: Path) -> None:
    """Its ledger cannot be read by this version, so that all runs would be trained again."""
    spec, place = small_sweep(search={"trials": 1}), tmp_path / "runs" / "small"
    place.mkdir(parents=True)
    (place / "ledger.jsonl").write_text('{"key": "a", "status": "finished"}\n')
    document = {"sweep_id": "a", "spec": spec.resolved()} | (
        {} if written == "no check" else {"format": 2, "check": "a"}
    )
    (place / "sweep.json").write_text(json.dumps(document))
    found = None if written == "no check" else 2
    for read in (lambda: sweeps.run(spec), lambda: sweeps.resume(place), lambda: sweeps.report(place)):
        with pytest.raises(
            UserError, match=rf"sweep\.json has format {found}, and this .* has format 1; use the .*fresh"
        ):
            read()
    assert sorted(file.name for file in place.iterdir()) == ["ledger.jsonl", "sweep.json"]


def test_a_document_of_another_file_is_damaged(small_sweep: MakeSweep, tmp_path: Path) -> None:
    spec, place = small_sweep(search={"trials": 1}), tmp_path / "runs" / "small"
    result, content = sweeps.run(spec), (place / "sweep.json").read_bytes()
    (place / "sweep.json").write_bytes((place / "progress.json").read_bytes())
    assert main(["status", str(place)]) == main(["table", str(place)]) == 0
    assert sweeps.resume(place) == result
    assert (place / "sweep.json").read_bytes() == content
    (tmp_path / "matrix.json").write_bytes(content)
    with pytest.raises(UserError, match=r"matrix\.json is damaged"):
        load_matrix_directory(tmp_path)


def test_the_file_of_another_matrix_is_refused(small_sweep: MakeSweep, tmp_path: Path) -> None:
    specs = {value: small_sweep(name=f"other-{value}") for value in ("1", "2")}
    save_matrix(SweepMatrix("other", "training.epochs", specs), failed={})
    assert list(load_matrix_directory(tmp_path / "runs" / "other").members) == ["1", "2"]
    (tmp_path / "runs" / "other").rename(tmp_path / "runs" / "mine")
    for read in (load_matrix_directory, sweeps.resume, matrix_sweeps):
        with pytest.raises(UserError, match=r"is that of matrix other, not of mine; rename the directory to other, or"):
            read(tmp_path / "runs" / "mine")


def test_an_altered_document_is_not_read(tmp_path: Path):
    file, document = tmp_path / "some.json", {"one": 1, "many": [1, {"two": None}]}
    write_document(file, document)
    content = file.read_bytes()
    assert read_document(file) == document
    for place in range(len(content)):
        for bit in range(8):
            file.write_bytes(content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :])
            assert read_document(file) in (None, document)  # white space does not matter
        file.write_bytes(content[:place])
        assert read_document(file) in (None, document)
    assert read_document(tmp_path / "missing.json") is None
    assert read_document(tmp_path) is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ledger.jsonl", r"ledger\.jsonl (cannot be read \(Is a directory\)|must be a file)"),
        ("result.json", r"result\.json must be a file, but it is a directory; move it away and run again"),
    ],
)
def test_a_directory_in_the_place_of_a_file_is_named(
    name: str, message: str, small_sweep: MakeSweep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    spec, place = small_sweep(search={"trials": 1}), tmp_path / "runs" / "small"
    sweeps.run(spec)
    (place / name).unlink()
    (place / name).mkdir()
    with pytest.raises(LongtailError, match=message):
        sweeps.run(spec)
    for command in ("resume", "status", "table", "report"):
        code = main([command, str(place)])
        printed = "".join(capsys.readouterr())
        assert "Traceback" not in printed
        assert code == 0 or name in printed


@pytest.mark.parametrize("kind", ["file", "broken link"])
def test_a_file_in_the_place_of_a_directory_is_named(
    kind: str, small_sweep: MakeSweep, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    spec = small_sweep(search={"trials": 1})
    result = sweeps.run(spec)

    def replace(place: Path) -> str:
        shutil.rmtree(place)
        place.write_text("") if kind == "file" else place.symlink_to(tmp_path / "missing")
        return f"{place} must be a directory, but it is a {kind}; move it away and run again"

    message = replace(tmp_path / "runs" / "small" / "artifacts")
    assert sweeps.run(spec) == result
    assert message in caplog.text
    for name in ("small", "cache/locks", "cache"):
        message = replace(tmp_path / "runs" / name)
        with pytest.raises(StorageError, match=re.escape(message)):
            sweeps.run(spec)


def test_a_special_file_in_the_place_of_the_result_is_named(small_sweep: MakeSweep, tmp_path: Path):
    spec, file = small_sweep(search={"trials": 1}), tmp_path / "runs" / "small" / "result.json"
    sweeps.run(spec)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(StorageError, match=r"result\.json must be a file, but it is a special file"):
        sweeps.run(spec)


def test_a_directory_in_the_place_of_the_identity_is_set_aside(small_sweep: MakeSweep, tmp_path: Path):
    spec, file = small_sweep(search={"trials": 1}), tmp_path / "runs" / "small" / "sweep.json"
    result, content = sweeps.run(spec), file.read_bytes()
    file.unlink()
    file.mkdir()
    assert sweeps.resume(file.parent) == result
    assert file.read_bytes() == content
    assert file.with_name("sweep.json.damaged").is_dir()


def test_a_result_that_cannot_be_read_is_written_again(
    small_sweep: MakeSweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    spec, file = small_sweep(search={"trials": 1}), tmp_path / "runs" / "small" / "result.json"
    result, content, read_bytes = sweeps.run(spec), file.read_bytes(), Path.read_bytes
    before = file.stat().st_ino

    def refuse(path: Path) -> bytes:
        if path == file:
            raise PermissionError(13, "Permission denied", str(path))
        return read_bytes(path)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", refuse)
        assert sweeps.resume(file.parent) == result
    assert file.stat().st_ino != before
    assert file.read_bytes() == content


def test_a_directory_in_the_place_of_the_progress_is_ignored(small_sweep: MakeSweep, tmp_path: Path):
    spec, place = small_sweep(search={"trials": 1}), tmp_path / "runs" / "small"
    result = sweeps.run(spec)
    (place / "progress.json").unlink()
    (place / "progress.json").mkdir()
    assert sweeps.resume(place) == result


def test_a_repeated_summary_keeps_the_first_result(small_sweep: MakeSweep, tmp_path: Path):
    spec = small_sweep(search={"trials": 2})
    sweeps.run(spec)
    written = (tmp_path / "runs" / "small" / "result.json").read_bytes()
    sweeps.run(spec)
    assert (tmp_path / "runs" / "small" / "result.json").read_bytes() == written


def test_a_missing_gpu_is_reported_before_anything_is_done(small_sweep: MakeSweep, tmp_path: Path):
    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    with pytest.raises(UserError, match="CUDA"):
        sweeps.run(small_sweep(resources={"gpus_per_pack": 1.0}))
    assert not (tmp_path / "runs" / "small").exists()


@pytest.mark.parametrize("by", ["run", "resume"])
def test_a_missing_identity_is_restored_from_the_ledger(by: str, small_sweep: Callable[..., SweepSpec]) -> None:
    spec = small_sweep()
    first = sweeps.run(spec)
    file = Path(spec.storage) / "small" / "sweep.json"
    before = file.read_bytes()
    file.unlink()
    assert (sweeps.run(spec) if by == "run" else sweeps.resume(file.parent)) == first
    assert file.read_bytes() == before


def test_readers_use_the_ledger_if_the_identity_is_missing(
    small_sweep: MakeSweep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    spec, place = small_sweep(search={"trials": 1}), tmp_path / "runs" / "small"
    sweeps.run(spec)
    known = sweep_directory(place)
    (place / "sweep.json").unlink()
    assert is_sweep(place)
    assert isinstance(read_result(spec), Result)
    for words in (["table", str(place)], ["status", str(place)], ["report", str(place)]):
        assert main(words) == 0
    capsys.readouterr()
    assert main(["list", "--storage", str(place.parent), "--json"]) == 0
    assert [row["sweep"] for row in json.loads(capsys.readouterr().out)] == ["small"]
    progress = read_document(place / "progress.json")
    assert progress is not None
    write_document(place / "progress.json", progress | {"state": "running"})
    assert interrupted_sweep(spec) == (spec, known)
