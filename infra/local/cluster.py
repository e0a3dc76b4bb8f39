"""A local copy of a team's cluster, as processes on one machine: `python infra/local/cluster.py up` and `down`.

`up` starts a Ray head and workers with a token, PostgreSQL, an S3 store, and MLflow with passwords. It writes `env.sh`,
to be sourced by a shell, and `demo.yaml`, a sweep to submit. `down` stops the processes that `up` has started. Sweeps,
MLflow's runs, passwords and ports are kept for the next `up`. The content of the S3 store, which is in memory, is lost:
MLflow's artifacts and champions.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from services import Mlflow, Postgres, RayHead, RayWorker, S3Store, Service, ServiceError, free_port

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / ".local-cluster"
DEMO = ROOT / "sweeps" / "specs" / "demo.yaml"


def main() -> int:
    """Start or stop the cluster, or show its status."""
    parser = argparse.ArgumentParser(prog="infra/local/cluster.py", description=__doc__)
    parser.add_argument("action", choices=["up", "down", "status"])
    parser.add_argument("--place", type=Path, default=HERE, help=f"directory of all files (default: {HERE.name})")
    parser.add_argument("--workers", type=int, default=2, help="number of Ray nodes besides the head (default: 2)")
    parser.add_argument("--cpus", type=int, default=1, help="CPUs per worker node (default: 1)")
    given = parser.parse_args()
    place = given.place.resolve()
    if given.action == "up":
        return up(place, given.workers, given.cpus)
    return down(place) if given.action == "down" else status(place)


def up(place: Path, workers: int, cpus: int) -> int:
    """Start all services in the order of their dependencies."""
    if known(place):
        print(f"already running: {', '.join(known(place))}; run `down` first", file=sys.stderr)
        return 2
    make_place(place)
    database, store = Postgres(place=place, port=port(place, "postgres")), S3Store(place=place, port=port(place, "s3"))
    mlflow = Mlflow(place=place, port=port(place, "mlflow"))
    head = RayHead(place=place, port=port(place, "ray"), dashboard_port=port(place, "ray-dashboard"))
    nodes = [RayWorker(name=f"ray-worker-{n}", place=place, head=head, cpus=cpus) for n in range(1, workers + 1)]
    try:
        for service in (database, store):
            begin(service)
        mlflow.backend, mlflow.artifacts = database.uri, f"s3://{store.bucket}/mlflow"
        mlflow.store_environment = store.client_environment()
        for service in (mlflow, head, *nodes):
            begin(service)
    except (ServiceError, KeyboardInterrupt) as error:
        print(str(error) or "interrupted; all services were stopped", file=sys.stderr)
        down(place)
        return 1 if isinstance(error, ServiceError) else 130
    settings = {
        "RAY_API_SERVER_ADDRESS": head.url,
        **head.client_environment(),
        **mlflow.client_environment(),
        **store.client_environment(),
    }
    environment = place / "env.sh"
    environment.touch(mode=0o600)
    environment.write_text("".join(f"export {name}={shlex.quote(value)}\n" for name, value in settings.items()))
    storage, password = place / "storage", place / f"{mlflow.user}.password"
    (place / "demo.yaml").write_text(demo(mlflow.url, storage, cpus))
    print(
        f"started {1 + workers} Ray nodes, with their job API at {head.url}\n"
        f"and MLflow at {mlflow.url}, with user {mlflow.user} and the password in {password}; to run the demo:\n"
        f"  source {environment}\n"
        f"  lt-sweep submit {place / 'demo.yaml'} --watch --env MLFLOW_TRACKING_USERNAME={mlflow.user} \\\n"
        f"    --secret-file MLFLOW_TRACKING_PASSWORD={password}\n"
        f"settings for your own sweep files: tracking: {{uri: {mlflow.url}}}, storage: {storage},\n"
        f"    resources: {{cpus_per_pack: {cpus}}} or less"
    )
    return 0


def make_place(place: Path) -> None:
    """Create the directory. It contains passwords, so git ignores it if it is inside a repository."""
    place.mkdir(parents=True, exist_ok=True)
    place.chmod(0o711)  # PostgreSQL's user must be able to enter it
    (place / ".gitignore").write_text("*\n")


def demo(tracking: str, storage: Path, cpus: int) -> str:
    """The demo's sweep file with the settings of this cluster."""
    ours = ("backend:", "storage:", "tracking:", "# yaml-language-server:")
    kept = [line for line in DEMO.read_text().splitlines() if not line.startswith(ours)]
    kept += [f"tracking: {{uri: '{tracking}'}}", f"storage: '{storage}'", f"resources: {{cpus_per_pack: {cpus}}}"]
    return "\n".join(kept) + "\n"


def port(place: Path, name: str) -> int:
    """The port of a service: chosen at the first start and then kept, because sweep files contain it."""
    file = place / "ports" / name
    if not file.exists():
        file.parent.mkdir(exist_ok=True)
        file.write_text(str(free_port()))
    return int(file.read_text())


def begin(service: Service) -> None:
    """Start one service, and print its name."""
    print(f"starting {service.name}", flush=True)
    service.start()


def down(place: Path) -> int:
    """Stop the services. All files stay until the directory is removed; the content of the S3 store is lost."""
    if not known(place):
        print(f"no services in {place}")
    for name in reversed(known(place)):
        Service(name=name, place=place, port=0).stop()
        print(f"stopped {name}")
    return 0


def status(place: Path) -> int:
    """Print which services are running; returns 1 if there are none."""
    if not known(place):
        print(f"no services in {place}")
    for name in known(place):
        print(name, "running" if Service(name=name, place=place, port=0).processes() else "dead")
    return 0 if known(place) else 1


def known(place: Path) -> list[str]:
    """Names of the services that were started and not stopped, in the order of their start."""
    files = sorted((place / "processes").glob("*.json"), key=lambda file: file.stat().st_mtime)
    return [file.stem for file in files]


if __name__ == "__main__":
    sys.exit(main())
