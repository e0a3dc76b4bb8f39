"""The file of Ray's launcher: the token on every node, a head without packs, and the files of a node."""

from __future__ import annotations

import re
import shlex

import pytest
from infra.manifests import INFRA, ROOT, documents

CLUSTER = documents()["ray/cluster.yaml"]
STARTS = {
    place: command
    for place in ("head", "worker")
    for command in CLUSTER[f"{place}_start_ray_commands"]
    if "ray start" in command
}


@pytest.mark.parametrize("place", ["head", "worker"])
def test_all_nodes_use_the_token(place: str) -> None:
    command = STARTS[place]
    before, _, _ = command.partition("ray start")
    assert re.search(r'^export PATH="\$HOME/longtail-sweeps/\.venv/bin:\$PATH" ', before)
    assert " RAY_AUTH_MODE=token " in before
    assert "export RAY_enable_metrics_collection=0" in before, "metrics are served without the token"
    if "--head" in command:
        assert " DASHBOARD_METRIC_PORT=-1 AUTOSCALER_METRIC_PORT=-1;" in before, "those of the head, too"
    path = re.search(r'RAY_AUTH_TOKEN_PATH="\$HOME/([^"]+)"', before)
    assert path is not None
    assert f"~/{path[1]}" in CLUSTER["file_mounts"]


def test_the_head_trains_no_packs_and_its_job_api_is_local() -> None:
    options = shlex.split(STARTS["head"].partition("ray start")[2])
    assert {"--head", "--num-cpus=0", "--num-gpus=0", "--dashboard-host=127.0.0.1"} <= {*options}


def test_ray_accepts_the_commands() -> None:
    from ray.scripts.scripts import start

    for place, command in STARTS.items():
        options = shlex.split(command.partition("ray start")[2])
        context = start.make_context("ray start", [option.replace("$RAY_HEAD_IP", "10.0.0.1") for option in options])
        assert context.params["head"] is (place == "head")


def test_nodes_receive_the_files_of_the_environment() -> None:
    """The files of the image, and the Makefile."""
    sent = {
        remote: local for remote, local in CLUSTER["file_mounts"].items() if remote.startswith("~/longtail-sweeps/")
    }
    assert all(remote == f"~/longtail-sweeps/{local}" for remote, local in sent.items())
    assert all((ROOT / local).exists() for local in sent.values())
    copied = re.findall(r"^COPY (.+) \S+$", (INFRA / "docker" / "Dockerfile").read_text(), flags=re.MULTILINE)
    assert {*sent.values()} == {name for line in copied for name in line.split()} | {"Makefile"}
    assert CLUSTER["setup_commands"] == ["make --directory ~/longtail-sweeps env"]
    assert re.search(r"^env:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)


def test_secrets_come_from_outside_the_repository() -> None:
    others = {local for remote, local in CLUSTER["file_mounts"].items() if not remote.startswith("~/longtail-sweeps/")}
    assert others == {"~/.ray/auth_token"}
    assert CLUSTER["auth"]["ssh_private_key"].startswith("~/")


def test_all_ssh_commands_of_the_documentation_name_the_key() -> None:
    lines = (ROOT / "docs" / "cluster.md").read_text().splitlines()
    calls = [line for line in lines if re.search(r"\bssh(-keygen|-copy-id)? -", line)]
    assert len(calls) >= 3
    for line in calls:
        assert re.search(rf"-[if] {CLUSTER['auth']['ssh_private_key']}\b", line), line
