"""Bank stores: a bank arrives whole, once a machine, and trouble is told without keys."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from lt_train.core.errors import BankError, LongtailError, SpecError, StorageError
from lt_train.features.files import open_bank
from sweeps.cluster.bank_store import CACHE_VARIABLE, fetched, obtain, publish
from sweeps.cluster.secret_files import holds_credentials
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


def test_from_a_shared_directory_a_bank_is_opened_where_it_lies(bank: Path, tmp_path: Path, cache: Path) -> None:
    store = str(tmp_path / "shared")
    publish(bank, store)
    publish(bank, store)
    found = obtain(bank.name, store)
    assert found == tmp_path / "shared" / bank.name
    assert contents(found) == contents(bank)
    assert not cache.exists()


def test_from_a_url_a_bank_is_fetched_once_however_many_ask(bank: Path, tmp_path: Path, cache: Path) -> None:
    place = tmp_path / "store"
    place.mkdir()
    publish(bank, f"file://{place}")
    publish(bank, f"file://{place}")
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(obtain(bank.name, f"file://{place}"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(found) == {cache / bank.name}
    assert contents(found[0]) == contents(bank)
    assert open_bank(found[0]).fingerprint == bank.name
    (place / bank.name / "manifest.json").unlink()
    assert obtain(bank.name, f"file://{place}") == found[0], "it is here already"


def test_a_bank_whose_manifest_is_not_there_yet_is_not_there(bank: Path, tmp_path: Path, cache: Path) -> None:
    place = tmp_path / "store"
    place.mkdir()
    publish(bank, f"file://{place}")
    (place / bank.name / "manifest.json").unlink()
    with pytest.raises(LongtailError, match=f"bank {bank.name[:12]} is not in file://"):
        obtain(bank.name, f"file://{place}")
    assert not (cache / bank.name).exists()


def test_a_copy_that_was_damaged_is_fetched_again(bank: Path, tmp_path: Path, cache: Path) -> None:
    """As a cleaner of temporary files leaves it; the machine would fail every pack for ever."""
    place = tmp_path / "store"
    place.mkdir()
    publish(bank, f"file://{place}")
    (obtain(bank.name, f"file://{place}") / "test.safetensors").unlink()
    assert fetched(bank.name, f"file://{place}").fingerprint == bank.name
    (place / bank.name / "test.safetensors").write_bytes(b"no features")
    (cache / bank.name / "test.safetensors").unlink()
    with pytest.raises(BankError, match=r"test\.safetensors"):
        fetched(bank.name, f"file://{place}")


def test_a_store_that_is_away_may_come_back(bank: Path, tmp_path: Path, cache: Path) -> None:
    place = tmp_path / "store"
    place.mkdir()
    publish(bank, f"file://{place}")
    hidden = place / bank.name / "train.safetensors"
    hidden.rename(tmp_path / "hidden")
    hidden.mkdir()
    with pytest.raises(StorageError, match=r"the bank store file://.* cannot be read"):
        obtain(bank.name, f"file://{place}")


def test_what_is_missing_is_said(bank: Path, tmp_path: Path, cache: Path) -> None:
    with pytest.raises(LongtailError, match="is that directory shared by all machines"):
        obtain(bank.name, str(tmp_path / "nothing"))
    with pytest.raises(LongtailError, match="the bank store nosuch://place cannot be written"):
        publish(bank, "nosuch://place")


@pytest.mark.parametrize(
    "store",
    [
        "s3://KEY:sesame@bucket/banks",
        "s3://sesame@bucket",
        "s3://bucket/banks?access_key=KEY&secret_key=sesame",
        "https://ann.blob.core.windows.net/banks?sv=2026&sig=sesame",
    ],
)
def test_keys_have_no_place_in_a_sweep_file(store: str, small_sweep: MakeSweep) -> None:
    assert holds_credentials(store)
    with pytest.raises(SpecError, match="must hold no keys, and got some") as refused:
        small_sweep(backend={"kind": "ray", "bank_store": store})
    assert "sesame" not in str(refused.value)


@pytest.mark.parametrize(
    "store",
    ["s3://bucket/banks?region=eu-1", "gs://bucket", "abfs://banks@ann.dfs.core.windows.net", "/nfs/banks", "/nfs/a@b"],
)
def test_other_addresses_have(store: str, small_sweep: MakeSweep) -> None:
    assert not holds_credentials(store)
    assert small_sweep(backend={"kind": "ray", "bank_store": store}).backend.bank_store == store
