"""Access control: Ray's job API and MLflow require a token or a password, and refuse foreign host names."""

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
from support.cluster import LocalCluster, RayHead, RayWorker, Service, basic_auth


def answer(url: str, **headers: str) -> int:
    """The status code of a GET."""
    request = urllib.request.Request(url, headers={name.replace("_", "-"): value for name, value in headers.items()})
    try:
        with urllib.request.urlopen(request, timeout=20) as found:
            return int(found.status)
    except urllib.error.HTTPError as refused:
        return refused.code


@pytest.mark.parametrize("path", ["/api/jobs/", "/api/version", "/nodes?view=summary", "/api/cluster_status"])
def test_ray_requires_its_token(path: str, cluster: LocalCluster) -> None:
    token = cluster.head.token.read_text().strip()
    assert answer(cluster.head.url + path) == 401
    assert answer(cluster.head.url + path, Authorization="Bearer 0000") in (401, 403)
    assert answer(cluster.head.url + path, Authorization=f"Bearer {token}") == 200


def test_a_job_cannot_be_submitted_without_the_token(cluster: LocalCluster) -> None:
    request = urllib.request.Request(
        f"{cluster.head.url}/api/jobs/",
        data=b'{"entrypoint": "id"}',
        headers={"Content-Type": "application/json"},
        method="POST",
    )
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(request, timeout=20)


def test_mlflow_requires_a_password(cluster: LocalCluster) -> None:
    url = f"{cluster.mlflow.url}/api/2.0/mlflow/experiments/search?max_results=1"
    assert answer(url) == 401
    assert answer(url, Authorization=basic_auth("admin", "password1234")) == 401
    assert answer(url, Authorization=basic_auth("admin", cluster.mlflow.password)) == 200


def test_drivers_cannot_administer_mlflow(cluster: LocalCluster) -> None:
    user, password = (cluster.environment()[f"MLFLOW_TRACKING_{name}"] for name in ("USERNAME", "PASSWORD"))
    api = f"{cluster.mlflow.url}/api/2.0/mlflow"
    assert answer(f"{api}/experiments/search?max_results=1", Authorization=basic_auth(user, password)) == 200
    assert answer(f"{api}/users/get?username=admin", Authorization=basic_auth(user, password)) == 403
    assert answer(f"{api}/users/get?username=admin", Authorization=basic_auth("admin", cluster.mlflow.password)) == 200
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


def test_mlflow_refuses_foreign_host_names(cluster: LocalCluster) -> None:
    url = f"{cluster.mlflow.url}/api/2.0/mlflow/experiments/search?max_results=1"
    known = basic_auth("admin", cluster.mlflow.password)
    assert answer(url, Authorization=known, Host="evil.example") == 403
    assert answer(url, Authorization=known, Host=f"evil.example:{cluster.mlflow.port}") == 403
    assert answer(url, Authorization=known, Host=f"localhost:{cluster.mlflow.port}") == 200


def test_ray_requires_the_token_for_foreign_host_names(cluster: LocalCluster) -> None:
    """A web page in a browser (DNS rebinding) has no token to send."""
    assert answer(f"{cluster.head.url}/api/jobs/", Host="evil.example") == 401


def listening(service: Service) -> Iterator[tuple[str, int, str]]:
    """Address, port and command line of everything that a service listens on."""
    processes = {process.pid: process for process in service.processes()}
    for connection in psutil.net_connections("inet"):
        if connection.pid in processes and connection.status == psutil.CONN_LISTEN:
            with contextlib.suppress(psutil.NoSuchProcess):
                command = " ".join(processes[connection.pid].cmdline()).strip()
                yield connection.laddr.ip, connection.laddr.port, command


def answers_without_token(url: str) -> bool:
    """Whether a GET without a token succeeds."""
    try:
        return answer(url) not in (401, 403)
    except (OSError, http.client.HTTPException):  # gRPC instead of HTTP
        return False


RAYS_OWN = re.compile(
    r"(\S*/raylet|\S*/gcs_server|ray::\S+|.* -m ray\.util\.client\.server|.*/default_worker\.py)( |$)"
)
"""Command lines of Ray processes that communicate with other nodes and with drivers."""


def test_services_listen_on_localhost_only(cluster: LocalCluster) -> None:
    """Except for Ray's ports between nodes, which refuse requests without the token."""
    ours = {service.port for service in (cluster.mlflow, cluster.postgres, cluster.s3)} | {cluster.head.dashboard_port}
    found = set()
    for service in cluster.services:
        for address, port, command in listening(service):
            found.add(port)
            if address in ("127.0.0.1", "::1", "::ffff:127.0.0.1"):
                continue
            where = f"{service.name}: {command[:200]} listens on {address}:{port}"
            assert port not in ours, where
            assert isinstance(service, RayHead | RayWorker), where
            assert RAYS_OWN.match(command), where
            host = "127.0.0.1" if address in ("::", "0.0.0.0") else address.removeprefix("::ffff:")
            assert not answers_without_token(f"http://{host}:{port}/"), where
    assert ours <= found


def test_secrets_are_private_and_in_no_command_line_or_log(cluster: LocalCluster) -> None:
    names = ("mlflow.password", "sweeps.password", "postgres.password")
    secrets = [cluster.head.token, *(cluster.place / name for name in names)]
    for path in secrets:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
        text = path.read_text().strip()
        assert len(text) >= 12
        for service in cluster.services:
            for process in service.processes():
                assert text not in " ".join(process.cmdline()), f"{service.name} has {path.name} in its command line"
        for log in (cluster.place / "logs").glob("*.log"):
            assert text.encode() not in Path(log).read_bytes(), f"{log.name} contains {path.name}"
