"""Who is let in: Ray's job API and MLflow want a token or a password, and answer to their own names alone."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import stat
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from support.world import RayHead, RayWorker, Service, World, basic_auth


def answer(url: str, **headers: str) -> int:
    """The status code of a GET."""
    request = urllib.request.Request(url, headers={name.replace("_", "-"): value for name, value in headers.items()})
    try:
        with urllib.request.urlopen(request, timeout=20) as found:
            return int(found.status)
    except urllib.error.HTTPError as refused:
        return refused.code


@pytest.mark.parametrize("path", ["/api/jobs/", "/api/version", "/nodes?view=summary", "/api/cluster_status"])
def test_ray_wants_its_token(path: str, world: World) -> None:
    token = world.head.token.read_text().strip()
    assert answer(world.head.url + path) == 401
    assert answer(world.head.url + path, Authorization="Bearer 0000") in (401, 403)
    assert answer(world.head.url + path, Authorization=f"Bearer {token}") == 200


def test_a_job_cannot_be_submitted_without_the_token(world: World) -> None:
    request = urllib.request.Request(
        f"{world.head.url}/api/jobs/",
        data=b'{"entrypoint": "id"}',
        headers={"Content-Type": "application/json"},
        method="POST",
    )
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(request, timeout=20)


def test_mlflow_wants_a_password(world: World) -> None:
    url = f"{world.mlflow.url}/api/2.0/mlflow/experiments/search?max_results=1"
    assert answer(url) == 401
    assert answer(url, Authorization=basic_auth("admin", "password1234")) == 401
    assert answer(url, Authorization=basic_auth("admin", world.mlflow.password)) == 200


def test_drivers_cannot_administer_mlflow(world: World) -> None:
    user, password = (world.environment()[f"MLFLOW_TRACKING_{name}"] for name in ("USERNAME", "PASSWORD"))
    api = f"{world.mlflow.url}/api/2.0/mlflow"
    assert answer(f"{api}/experiments/search?max_results=1", Authorization=basic_auth(user, password)) == 200
    assert answer(f"{api}/users/get?username=admin", Authorization=basic_auth(user, password)) == 403
    assert answer(f"{api}/users/get?username=admin", Authorization=basic_auth("admin", world.mlflow.password)) == 200
    for what, body in {
        "users/create": {"username": "other", "password": "0123456789ab"},
        "users/update-admin": {"username": user, "is_admin": True},
    }.items():
        request = urllib.request.Request(
            f"{api}/{what}",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json", "Authorization": basic_auth(user, password)},
            method="POST" if what == "users/create" else "PATCH",
        )
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(request, timeout=20)


def test_mlflow_answers_to_its_own_name_alone(world: World) -> None:
    url = f"{world.mlflow.url}/api/2.0/mlflow/experiments/search?max_results=1"
    known = basic_auth("admin", world.mlflow.password)
    assert answer(url, Authorization=known, Host="evil.example") == 403
    assert answer(url, Authorization=known, Host=f"evil.example:{world.mlflow.port}") == 403
    assert answer(url, Authorization=known, Host=f"localhost:{world.mlflow.port}") == 200


def test_ray_answers_a_foreign_name_only_with_the_token(world: World) -> None:
    """A page that a browser was led to by a foreign name has no token to send."""
    assert answer(f"{world.head.url}/api/jobs/", Host="evil.example") == 401


def listening(service: Service) -> Iterator[tuple[str, int, str]]:
    """Address, port and command line of everything that a service listens on."""
    processes = {process.pid: process for process in service.processes()}
    for connection in psutil.net_connections("inet"):
        if connection.pid in processes and connection.status == psutil.CONN_LISTEN:
            with contextlib.suppress(psutil.NoSuchProcess):
                command = " ".join(processes[connection.pid].cmdline()).strip()
                yield connection.laddr.ip, connection.laddr.port, command


def gives_something(url: str) -> bool:
    """Whether a GET without a token is answered with more than a refusal."""
    try:
        return answer(url) not in (401, 403)
    except (OSError, http.client.HTTPException):  # no HTTP: gRPC
        return False


RAYS_OWN = re.compile(
    r"(\S*/raylet|\S*/gcs_server|ray::\S+|.* -m ray\.util\.client\.server|.*/default_worker\.py)( |$)"
)
"""Command lines of the processes by which Ray nodes speak to one another and to drivers."""


def test_everything_listens_on_this_machine_alone(world: World) -> None:
    """But for Ray's own ports, which give nothing without the token."""
    ours = {service.port for service in (world.mlflow, world.postgres, world.s3)} | {world.head.dashboard_port}
    found = set()
    for service in world.services:
        for address, port, command in listening(service):
            found.add(port)
            if address in ("127.0.0.1", "::1", "::ffff:127.0.0.1"):
                continue
            where = f"{service.name}: {command[:200]} listens on {address}:{port}"
            assert port not in ours, where
            assert isinstance(service, RayHead | RayWorker), where
            assert RAYS_OWN.match(command), where
            host = "127.0.0.1" if address in ("::", "0.0.0.0") else address.removeprefix("::ffff:")
            assert not gives_something(f"http://{host}:{port}/"), where
    assert ours <= found


def test_secrets_are_for_their_owner_and_in_no_command_line(world: World) -> None:
    names = ("mlflow.password", "sweeps.password", "postgres.password")
    secrets = [world.head.token, *(world.place / name for name in names)]
    for path in secrets:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
        text = path.read_text().strip()
        assert len(text) >= 12
        for service in world.services:
            for process in service.processes():
                assert text not in " ".join(process.cmdline()), f"{service.name} shows {path.name} to everybody"
        for log in (world.place / "logs").glob("*.log"):
            assert text.encode() not in Path(log).read_bytes(), f"{log.name} holds {path.name}"
