"""Versions in infra/ and docs/ equal those of the lock file, and images contain what is run from them."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from infra.manifests import INFRA, ROOT, documents, pods_of

LOCKED = dict(re.findall(r"^([a-z0-9._-]+)==(\S+)", (ROOT / "requirements.lock").read_text(), flags=re.MULTILINE))
(PYTHON,) = set(re.findall(r"--python-version (\S+)", (ROOT / "Makefile").read_text()))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OURS = f"{PROJECT['name']}:{PROJECT['version']}"
TEXTS = [
    path
    for folder in (INFRA, ROOT / "docs")
    for path in sorted(folder.rglob("*"))
    if path.suffix in (".yaml", ".md", ".sh", ".ini") or path.name == "Dockerfile"
]
MENTIONED = re.compile(
    r"\b(ray|rayVersion|mlflow|torch|python)(?:\[\w+\])?(?: version)?[ :=@]+v?(\d+(?:\.\d+)+)", re.IGNORECASE
)


def wanted(name: str) -> str:
    name = name.lower().removesuffix("version")
    return PYTHON if name == "python" else LOCKED[name]


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_versions_equal_the_lock_file(path: Path) -> None:
    for name, version in MENTIONED.findall(path.read_text()):
        assert version == wanted(name), f"{name} {version}"


def test_versions_are_found() -> None:
    found = {name.lower() for path in TEXTS for name, _ in MENTIONED.findall(path.read_text())}
    assert {"rayversion", "python"} <= found
    assert MENTIONED.findall("ray==1.2.3 python:3.1-slim rayVersion: 2.0.0 kuberay 1.7") == [
        ("ray", "1.2.3"),
        ("python", "3.1"),
        ("rayVersion", "2.0.0"),
    ]


def images() -> dict[str, str]:
    found = {
        f"{name} {pod} {container['name']}": container["image"]
        for name, document in documents().items()
        for pod, template in pods_of(document)
        for container in template["spec"]["containers"]
    }
    services = documents()["mlflow/compose.yaml"]["services"]
    return found | {f"compose {name}": service["image"] for name, service in services.items()}


@pytest.mark.parametrize("place", images())
def test_images_name_no_registry(place: str) -> None:
    image = images()[place]
    if "postgres" in place:
        assert re.fullmatch(r"postgres:\d+", image)
    else:
        assert image == OURS


def test_our_image_has_the_tag_of_the_version() -> None:
    for path in TEXTS:
        for tag in re.findall(r"longtail-sweeps:([\w.-]+)", path.read_text()):
            assert tag == PROJECT["version"], path


def test_there_is_one_database_image() -> None:
    assert len({image for place, image in images().items() if "postgres" in place}) == 1


@pytest.mark.parametrize("package", ["ray", "mlflow", "torch", "flask-wtf", "psycopg-binary", "boto3"])
def test_the_lock_file_has_the_packages_of_the_image(package: str) -> None:
    """For Ray, drivers, and MLflow's server with logins, PostgreSQL and an object store."""
    assert package in LOCKED
