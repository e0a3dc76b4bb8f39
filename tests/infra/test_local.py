"""The cluster on one machine, before anything of it runs: what it leaves beside the repository, and its ready sweep."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from infra.manifests import INFRA

import sweeps

sys.path.insert(0, str(INFRA / "local"))

import cluster


def test_its_passwords_are_nothing_that_git_would_take(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    place = tmp_path / ".local-cluster"
    cluster.make_place(place)
    (place / "ray.token").write_text("secret")
    shown = subprocess.run(
        ["git", "-C", tmp_path, "status", "--porcelain"], capture_output=True, text=True, check=True
    ).stdout
    assert shown == ""


def test_its_sweep_is_ready_to_be_submitted(tmp_path: Path) -> None:
    from sweeps.cluster.upload import bundled

    file = tmp_path / "demo.yaml"
    file.write_text(cluster.demo("http://127.0.0.1:1234", tmp_path / "a place", cpus=3))
    with bundled(file):  # a job refuses what would be lost with it
        spec = sweeps.load(file)
    ready = sweeps.load(cluster.DEMO)
    assert (spec.storage, spec.resources.cpus_per_pack, spec.backend.kind) == (str(tmp_path / "a place"), 3, "ray")
    assert getattr(spec.tracking, "uri", None) == "http://127.0.0.1:1234"
    assert (spec.search, spec.dataset, spec.method) == (ready.search, ready.dataset, ready.method)


def test_what_was_not_brought_up_is_told(tmp_path: Path) -> None:
    for action, code in (("status", 1), ("down", 0)):
        done = subprocess.run(
            [sys.executable, INFRA / "local" / "cluster.py", action, "--place", tmp_path],
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout) == (code, f"nothing was brought up in {tmp_path}\n"), done.stderr
