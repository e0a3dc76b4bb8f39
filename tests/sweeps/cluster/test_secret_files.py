"""Secrets come out of files; what everybody can read is refused to hold them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lt_train.core.errors import UserError
from sweeps.cluster.secret_files import FILE_PREFIX, checked_environment, load_secret_files, secret_files


@pytest.mark.parametrize(
    "pair",
    [
        "MLFLOW_TRACKING_USERNAME=ann",
        "OMP_NUM_THREADS=2",
        "EMPTY=",
        "X=a=b",
        "MONKEY=1",
        "AUTHOR=ann",
        "SIGNAL=TERM",
        "PWD=/home/ann",
        "GOOGLE_APPLICATION_CREDENTIALS=/keys/gs.json",
        "AWS_SHARED_CREDENTIALS_FILE=/keys/aws",
        "PGPASSFILE=/keys/pgpass",
        "RAY_AUTH_TOKEN_PATH=/keys/ray",
        "HTTPS_PROXY=http://proxy.example:3128",
        "MLFLOW_TRACKING_URI=postgresql://ann@db.example/mlflow",
        "NO_PROXY=localhost,ann@home",
    ],
)
def test_plain_variables_pass(pair: str) -> None:
    name, _, value = pair.partition("=")
    assert checked_environment([pair]) == {name: value}


@pytest.mark.parametrize(
    "name",
    [
        "MLFLOW_TRACKING_PASSWORD",
        "AWS_SECRET_ACCESS_KEY",
        "HF_TOKEN",
        "API_KEY",
        "GOOGLE_APPLICATION_CREDENTIALS",
        "db_pass",
        "DB_PWD",
        "OPENAI_APIKEY",
        "URL_SIG",
    ],
)
def test_secrets_are_refused_by_their_names_and_not_repeated(name: str) -> None:
    with pytest.raises(UserError, match=rf"--env {name}: everybody .* --secret-file {name}=/path") as caught:
        checked_environment([f"{name}=hunter2"])
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "value",
    [
        "http://ann:hunter2@proxy.example:3128",
        "https://hunter2@git.example",
        "http://one.example,http://ann:hunter2@two.example",
        "postgresql://ann@db.example/mlflow?password=hunter2",
    ],
)
def test_secrets_are_refused_in_addresses_and_not_repeated(value: str) -> None:
    with pytest.raises(UserError, match=r"--env PLACE: everybody .* --secret-file PLACE=/path") as caught:
        checked_environment([f"PLACE={value}"])
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("pair", ["NAME", "1NAME=x", "=x", "A B=x"])
def test_no_pair_is_refused_without_its_value(pair: str) -> None:
    with pytest.raises(UserError, match="--env takes NAME=VALUE"):
        checked_environment([pair])


def test_a_secret_is_read_where_it_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_text("hunter2\n")
    other.write_text(" with space \n\n")
    environment = secret_files([f"LT_TEST_ONE={one}", f"LT_TEST_OTHER={other}"])
    assert "hunter2" not in str(environment)
    for name in ("LT_TEST_ONE", "LT_TEST_OTHER"):
        monkeypatch.delenv(name, raising=False)
    load_secret_files(environment)
    assert os.environ.pop("LT_TEST_ONE") == "hunter2"
    assert os.environ.pop("LT_TEST_OTHER") == " with space \n"
    assert secret_files([]) == {}
    load_secret_files({})


def test_a_jobs_secrets_are_beside_those_of_its_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of_the_pod, of_the_job = tmp_path / "pod", tmp_path / "a,b"
    of_the_pod.write_text("one")
    of_the_job.write_text("other")
    for name in ("LT_TEST_ONE", "LT_TEST_OTHER"):
        monkeypatch.delenv(name, raising=False)
    pod, job = secret_files([f"LT_TEST_ONE={of_the_pod}"]), secret_files([f"LT_TEST_OTHER={of_the_job}"])
    load_secret_files({**pod, **job})
    assert os.environ.pop("LT_TEST_ONE") == "one"
    assert os.environ.pop("LT_TEST_OTHER") == "other"


@pytest.mark.parametrize("pair", ["NAME", "NAME=relative", "NAME=", "A B=/x"])
def test_what_is_no_file_of_the_cluster_is_refused(pair: str) -> None:
    with pytest.raises(UserError, match="--secret-file takes NAME=/path of a file on the cluster"):
        secret_files([pair])


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    with pytest.raises(UserError, match=rf"the secret NAME cannot be read from {missing}: No such file"):
        load_secret_files({f"{FILE_PREFIX}NAME": str(missing)})
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="it is not text"):
        load_secret_files({f"{FILE_PREFIX}NAME": str(tmp_path / "binary")})
