"""MLflow for a team: secrets come from files, reach only the server, and have no defaults."""

from __future__ import annotations

import base64
import configparser
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from infra.manifests import INFRA, documents, pods_of

from sweeps.cluster.environment import SECRET_NAME

MLFLOW = INFRA / "mlflow"
COMPOSE = documents()["mlflow/compose.yaml"]
((_, POD),) = pods_of(documents()["mlflow/kubernetes/mlflow.yaml/Deployment/mlflow"])
SECRETS = {
    "postgres-password": "PGPASSWORD",
    "admin-password": "MLFLOW_AUTH_ADMIN_PASSWORD",
    "session-key": "MLFLOW_FLASK_SERVER_SECRET_KEY",
}
"""Environment variable that serve.sh sets, by file."""


def environment_of_pod() -> dict[str, str]:
    return {one["name"]: one["value"] for one in POD["spec"]["containers"][0]["env"]}


def make_secrets(directory: Path, *names: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([MLFLOW / "new_secrets.sh", directory, *names], capture_output=True, text=True, check=True)


@pytest.fixture
def serve(tmp_path: Path) -> Any:
    """Runs serve.sh with a fake `mlflow` that records its arguments and environment."""
    program = tmp_path / "bin" / "mlflow"
    program.parent.mkdir()
    program.write_text(
        f"#!{sys.executable}\nimport json, os, sys\n"
        f"json.dump([sys.argv[1:], dict(os.environ)], open({str(tmp_path / 'started.json')!r}, 'w'))\n"
    )
    program.chmod(0o755)

    def run(secrets: Path) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": f"{program.parent}:{os.environ['PATH']}", "MLFLOW_SECRETS": str(secrets)}
        return subprocess.run(["sh", MLFLOW / "serve.sh"], env=environment, capture_output=True, text=True, check=False)

    return run


def test_secrets_are_created_once_in_a_private_directory(tmp_path: Path) -> None:
    directory = tmp_path / "secrets"
    printed = make_secrets(directory, *SECRETS).stdout
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    values = {name: (directory / name).read_text() for name in SECRETS}
    assert len({*values.values()}) == len(SECRETS)
    for value in values.values():
        assert len(value) == 32
        assert value.strip() == value
        assert value not in printed
    assert make_secrets(directory, *SECRETS).stdout == ""
    assert {name: (directory / name).read_text() for name in SECRETS} == values


def test_secrets_are_passed_in_the_environment_only(tmp_path: Path, serve: Any) -> None:
    make_secrets(tmp_path / "secrets", *SECRETS)
    done = serve(tmp_path / "secrets")
    assert done.returncode == 0, done.stderr
    arguments, environment = json.loads((tmp_path / "started.json").read_text())
    assert arguments == ["server", "--app-name", "basic-auth"]
    for file, variable in SECRETS.items():
        value = (tmp_path / "secrets" / file).read_text()
        assert environment[variable] == value
        assert value not in done.stdout + done.stderr


@pytest.mark.parametrize("missing", SECRETS)
@pytest.mark.parametrize("how", ["absent", "empty"])
def test_the_server_does_not_start_without_a_secret(tmp_path: Path, serve: Any, missing: str, how: str) -> None:
    make_secrets(tmp_path / "secrets", *SECRETS)
    (tmp_path / "secrets" / missing).unlink()
    if how == "empty":
        (tmp_path / "secrets" / missing).touch()
    assert serve(tmp_path / "secrets").returncode != 0
    assert not (tmp_path / "started.json").exists()


def test_compose_and_kubernetes_have_the_same_settings() -> None:
    compose, pod = COMPOSE["services"]["mlflow"]["environment"], environment_of_pod()
    differ = {name for name in {*compose, *pod} if compose.get(name) != pod.get(name)}
    assert differ == {"MLFLOW_SECRETS", "MLFLOW_SERVER_ALLOWED_HOSTS"}


def test_compose_and_kubernetes_run_serve_sh() -> None:
    service, container = COMPOSE["services"]["mlflow"], POD["spec"]["containers"][0]
    assert service["command"] == container["command"] == ["sh", "/etc/mlflow/serve.sh"]
    for file in ("serve.sh", "auth.ini"):
        assert f"./{file}:/etc/mlflow/{file}:ro" in service["volumes"]
        assert file in documents()["mlflow/kustomization.yaml/Kustomization"]["configMapGenerator"][0]["files"]
    assert {"name": "files", "mountPath": "/etc/mlflow", "readOnly": True} in container["volumeMounts"]
    assert {*service["secrets"]} == {*SECRETS} == {*COMPOSE["secrets"]}
    (generator,) = documents()["mlflow/kustomization.yaml/Kustomization"]["secretGenerator"]
    assert {*generator["files"]} == {f"secrets/{name}" for name in SECRETS}


def test_the_server_reads_all_variables() -> None:
    """MLflow declares its variables in the options of its command line."""
    import mlflow.environment_variables
    from mlflow.cli import server

    known = {name for option in server.params for name in [getattr(option, "envvar", None)] if isinstance(name, str)}
    known |= {*vars(mlflow.environment_variables)}
    assert {*environment_of_pod()} - {"MLFLOW_SECRETS"} <= known
    assert {*SECRETS.values()} - {"PGPASSWORD"} <= known


def test_allowed_hosts_have_a_port_and_no_wildcard() -> None:
    for hosts in (
        COMPOSE["services"]["mlflow"]["environment"]["MLFLOW_SERVER_ALLOWED_HOSTS"],
        environment_of_pod()["MLFLOW_SERVER_ALLOWED_HOSTS"],
    ):
        for host in hosts.split(","):
            assert host.endswith(":5000")
            assert "*" not in host


def test_users_are_in_the_database_without_default_passwords() -> None:
    config = configparser.ConfigParser()
    config.read(MLFLOW / "auth.ini")
    assert config["mlflow"]["database_uri"] == environment_of_pod()["MLFLOW_BACKEND_STORE_URI"]
    assert ":" not in config["mlflow"]["database_uri"].partition("://")[2]  # no password, no port
    assert config["mlflow"]["default_permission"] == "READ"
    assert "admin_password" not in config["mlflow"]


def test_compose_publishes_on_localhost_only() -> None:
    services = COMPOSE["services"]
    assert services["mlflow"]["ports"] == ["127.0.0.1:5000:5000"]
    assert "ports" not in services["postgres"]
    assert services["postgres"]["networks"] == ["database"]
    assert COMPOSE["networks"]["database"] == {"internal": True}


def test_services_have_no_secrets_in_their_environment() -> None:
    for service in COMPOSE["services"].values():
        assert "healthcheck" in service
        for name in service["environment"]:
            assert name.endswith(("_FILE", "_PATH")) or not SECRET_NAME.search(name), name


class Server(BaseHTTPRequestHandler):
    """A fake of MLflow's endpoint for users, which records requests."""

    requests: ClassVar[list[tuple[str, str, Any]]] = []
    users: ClassVar[set[str]] = set()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.requests.append((self.path, self.headers["Authorization"], body))
        twice = body["username"] in self.users
        self.users.add(body["username"])
        self.send_response(400 if twice else 200)
        self.end_headers()
        self.wfile.write(b'{"error_code": "RESOURCE_ALREADY_EXISTS"}' if twice else b"{}")

    def log_message(self, *args: Any) -> None:
        """Log nothing."""


@pytest.fixture
def server() -> Iterator[str]:
    Server.requests, Server.users = [], set()
    listening = HTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{listening.server_port}"
    listening.shutdown()
    listening.server_close()


def test_a_user_is_added_without_a_password_on_the_command_line(tmp_path: Path, server: str) -> None:
    make_secrets(tmp_path, "admin-password", "mine")
    command = [sys.executable, MLFLOW / "add_user.py", "sweeps", tmp_path / "mine", "--server", server]
    command += ["--admin-password-file", tmp_path / "admin-password"]
    for _ in range(2):  # the second call changes nothing
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    path, authorization, user = Server.requests[0]
    assert path == "/api/2.0/mlflow/users/create"
    admin, mine = ((tmp_path / name).read_text() for name in ("admin-password", "mine"))
    assert base64.b64decode(authorization.removeprefix("Basic ")).decode() == f"admin:{admin}"
    assert user == {"username": "sweeps", "password": mine}
    assert mine not in done.stdout + done.stderr


def test_an_unreachable_server_is_an_error(tmp_path: Path) -> None:
    make_secrets(tmp_path, "admin-password", "mine")
    command = [sys.executable, MLFLOW / "add_user.py", "sweeps", tmp_path / "mine", "--server", "http://127.0.0.1:1"]
    command += ["--admin-password-file", tmp_path / "admin-password"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "http://127.0.0.1:1 does not answer" in done.stderr


def test_add_user_waits_for_the_server(tmp_path: Path) -> None:
    """For example for a port-forward in the background."""
    Server.requests, Server.users = [], set()
    make_secrets(tmp_path, "admin-password", "mine")
    with socket.socket() as taken:  # an open port that does not listen
        taken.bind(("127.0.0.1", 0))
        address = taken.getsockname()
        command = [sys.executable, MLFLOW / "add_user.py", "sweeps", tmp_path / "mine", "--wait", "60"]
        command += ["--server", f"http://127.0.0.1:{address[1]}", "--admin-password-file", tmp_path / "admin-password"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(2)
    server = HTTPServer(address, Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        out, _ = process.communicate(timeout=60)
    finally:
        server.shutdown()
        server.server_close()
    assert (process.returncode, out.partition(" at ")[0]) == (0, "created user sweeps")


def test_scripts_are_executable() -> None:
    assert shutil.which("sh")
    for script in MLFLOW.glob("*.sh"):
        assert os.access(script, os.X_OK), script
