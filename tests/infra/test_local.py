"""infra/local/cluster.py, without starting services: its directory, its sweep file, its messages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from infra.manifests import INFRA

import sweeps

sys.path.insert(0, str(INFRA / "local"))

import cluster


def test_git_ignores_the_directory(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    place = tmp_path / ".local-cluster"
    cluster.make_place(place)
    (place / "ray.token").write_text("secret")
    shown = subprocess.run(
        ["git", "-C", tmp_path, "status", "--porcelain"], capture_output=True, text=True, check=True
    ).stdout
    assert shown == ""


def test_its_sweep_can_be_submitted(tmp_path: Path) -> None:
    from sweeps.cluster.upload import prepare_upload

    file = tmp_path / "demo.yaml"
    file.write_text(cluster.demo("http://127.0.0.1:1234", tmp_path / "a place", cpus=3))
    with prepare_upload(file):
        spec = sweeps.load_sweep(file)
    ready = sweeps.load_sweep(cluster.DEMO)
    assert (spec.storage, spec.resources.cpus_per_pack, spec.backend.kind) == (str(tmp_path / "a place"), 3, "ray")
    assert getattr(spec.tracking, "uri", None) == "http://127.0.0.1:1234"
    assert (spec.search, spec.dataset, spec.method) == (ready.search, ready.dataset, ready.method)


def test_status_and_down_without_services(tmp_path: Path) -> None:
    for action, code in (("status", 1), ("down", 0)):
        done = subprocess.run(
            [sys.executable, INFRA / "local" / "cluster.py", action, "--place", tmp_path],
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout) == (code, f"no services in {tmp_path}\n"), done.stderr
