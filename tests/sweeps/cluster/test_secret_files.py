"""Secrets are read from files, and refused in a job's environment."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lt_train.core.errors import UserError
from sweeps.cluster.environment import SECRET_FILE_PREFIX, checked_environment, load_secret_files, secret_files


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
def test_variables_without_secrets_are_accepted(pair: str) -> None:
    name, _, value = pair.partition("=")
    assert checked_environment([pair]) == {name: value}


@pytest.mark.parametrize(
    "name",
    [
        "MLFLOW_TRACKING_PASSWORD",
        "WANDB_API_KEY",
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
def test_variables_named_like_secrets_are_refused_without_their_value(name: str) -> None:
    with pytest.raises(UserError, match=rf"--env {name}: .* --secret-file {name}=/path") as caught:
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
def test_urls_with_secrets_are_refused_without_their_value(value: str) -> None:
    with pytest.raises(UserError, match=r"--env PLACE: .* --secret-file PLACE=/path") as caught:
        checked_environment([f"PLACE={value}"])
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("pair", ["NAME", "1NAME=x", "=x", "A B=x"])
def test_malformed_pairs_are_refused_without_their_value(pair: str) -> None:
    with pytest.raises(UserError, match="--env must be NAME=VALUE"):
        checked_environment([pair])


def test_secrets_are_read_from_their_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_secrets_of_a_job_add_to_those_of_its_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_malformed_secret_files_are_refused(pair: str) -> None:
    with pytest.raises(UserError, match="--secret-file must be NAME=/path of a file on the cluster"):
        secret_files([pair])


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    with pytest.raises(UserError, match=rf"cannot read the secret NAME from {missing}: No such file"):
        load_secret_files({f"{SECRET_FILE_PREFIX}NAME": str(missing)})
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="it is not text"):
        load_secret_files({f"{SECRET_FILE_PREFIX}NAME": str(tmp_path / "binary")})
