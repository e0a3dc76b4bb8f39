"""Bank stores: complete downloads, once per machine; errors without credentials."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from lt_train.core.errors import BankError, LongtailError, SpecError, StorageError
from lt_train.features.files import bank_fingerprint, open_bank, read_manifest
from sweeps.cluster.bank_store import CACHE_VARIABLE, fetch_bank, open_published_bank, publish_bank
from sweeps.cluster.environment import holds_credentials
from sweeps.config.spec import SweepSpec
from sweeps.experiment.prepare import prepare

MakeSweep = Callable[..., SweepSpec]


@pytest.fixture
def bank(small_sweep: MakeSweep) -> Path:
    path = prepare(small_sweep()).path
    assert path is not None
    return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def contents(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.iterdir()}


def test_a_bank_in_a_shared_directory_is_opened_in_place(bank: Path, tmp_path: Path, cache: Path) -> None:
    store = str(tmp_path / "shared")
    publish_bank(bank, store)
    publish_bank(bank, store)
    found = fetch_bank(bank.name, store)
    assert found == tmp_path / "shared" / bank.name
    assert contents(found) == contents(bank)
    assert not cache.exists()


def test_concurrent_readers_download_a_bank_once(bank: Path, tmp_path: Path, cache: Path) -> None:
    place = tmp_path / "store"
    place.mkdir()
    publish_bank(bank, f"file://{place}")
    publish_bank(bank, f"file://{place}")
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(fetch_bank(bank.name, f"file://{place}"))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(found) == {cache / bank.name}
    assert contents(found[0]) == contents(bank)
    assert open_bank(found[0]).fingerprint == bank.name
    (place / bank.name / "manifest.json").unlink()
    assert fetch_bank(bank.name, f"file://{place}") == found[0], "the copy is used without the store"


def test_a_bank_without_a_manifest_is_not_published(bank: Path, tmp_path: Path, cache: Path) -> None:
    place = tmp_path / "store"
    place.mkdir()
    publish_bank(bank, f"file://{place}")
    (place / bank.name / "manifest.json").unlink()
    with pytest.raises(LongtailError, match=f"bank {bank.name[:12]} is not in file://"):
        fetch_bank(bank.name, f"file://{place}")
    assert not (cache / bank.name).exists()


def test_a_damaged_copy_is_downloaded_again(bank: Path, tmp_path: Path, cache: Path) -> None:
    """A cleaner of temporary files may remove a part of it; the machine would fail all further packs."""
    place = tmp_path / "store"
    place.mkdir()
    publish_bank(bank, f"file://{place}")
    (fetch_bank(bank.name, f"file://{place}") / "test.safetensors").unlink()
    assert open_published_bank(bank.name, f"file://{place}").fingerprint == bank.name
    (place / bank.name / "test.safetensors").write_bytes(b"no features")
    (cache / bank.name / "test.safetensors").unlink()
    with pytest.raises(BankError, match=r"test\.safetensors"):
        open_published_bank(bank.name, f"file://{place}")


@pytest.mark.parametrize("scheme", ["", "file://"])
@pytest.mark.parametrize("fault", ["another bank", "nested too deeply"])
def test_a_published_bank_that_is_damaged_or_another_is_named_and_published_again(
    bank: Path, tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture, scheme: str, fault: str
) -> None:
    place = tmp_path / "shared"
    place.mkdir()
    store = f"{scheme}{place}"
    publish_bank(bank, store)
    text = "[" * 300_000
    if fault == "another bank":
        inputs = {"dataset": "another"}
        changes = {"inputs": inputs, "fingerprint": bank_fingerprint(inputs)}
        text = read_manifest(bank).model_copy(update=changes).sealed().model_dump_json()
    (place / bank.name / "manifest.json").write_text(text)
    with pytest.raises(BankError, match=f"{bank.name}: manifest.json"):
        open_published_bank(bank.name, store)
    publish_bank(bank, store)
    (warning,) = caplog.messages
    assert warning.startswith(f"bank {bank.name} in {store} is damaged (manifest.json ")
    found = open_published_bank(bank.name, store)
    assert found.fingerprint == bank.name
    assert (place / f"{bank.name}.damaged").exists() == (not scheme)
    publish_bank(bank, store)
    assert len(caplog.messages) == 1


def test_an_unreachable_store_is_a_storage_error(bank: Path, tmp_path: Path, cache: Path) -> None:
    place = tmp_path / "store"
    place.mkdir()
    publish_bank(bank, f"file://{place}")
    hidden = place / bank.name / "train.safetensors"
    hidden.rename(tmp_path / "hidden")
    hidden.mkdir()
    with pytest.raises(StorageError, match=r"cannot read from the bank store file://"):
        fetch_bank(bank.name, f"file://{place}")


def test_missing_banks_and_unknown_schemes(bank: Path, tmp_path: Path, cache: Path) -> None:
    with pytest.raises(LongtailError, match="all machines must share that directory"):
        fetch_bank(bank.name, str(tmp_path / "nothing"))
    with pytest.raises(LongtailError, match="cannot write to the bank store nosuch://place"):
        publish_bank(bank, "nosuch://place")


@pytest.mark.parametrize(
    "store",
    [
        "s3://KEY:sesame@bucket/banks",
        "s3://sesame@bucket",
        "s3://bucket/banks?access_key=KEY&secret_key=sesame",
        "https://ann.blob.core.windows.net/banks?sv=2026&sig=sesame",
    ],
)
def test_a_store_url_must_not_contain_credentials(store: str, small_sweep: MakeSweep) -> None:
    assert holds_credentials(store)
    with pytest.raises(SpecError, match=r"backend.*must not contain keys") as refused:
        small_sweep(backend={"kind": "ray", "bank_store": store})
    assert "sesame" not in str(refused.value)


@pytest.mark.parametrize(
    "store",
    ["s3://bucket/banks?region=eu-1", "gs://bucket", "abfs://banks@ann.dfs.core.windows.net", "/nfs/banks", "/nfs/a@b"],
)
def test_stores_without_credentials_are_accepted(store: str, small_sweep: MakeSweep) -> None:
    assert not holds_credentials(store)
    assert small_sweep(backend={"kind": "ray", "bank_store": store}).backend.bank_store == store
