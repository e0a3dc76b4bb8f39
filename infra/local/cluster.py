"""A rehearsal of a team's cluster on one machine: `python infra/local/cluster.py up`, and `down`.

Up starts a Ray head and workers with a token, PostgreSQL, an S3 store and MLflow with passwords, and writes `env.sh`,
which a shell sources to use them. Down ends every process that up has started, by its id. Sweeps, MLflow's runs,
passwords and ports stay for the next up. What MLflow keeps in the S3 store, artifacts and champions, does not: that
store is in memory.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from services import Mlflow, NotUp, Postgres, RayHead, RayWorker, S3Store, Service, free_port

HERE = Path(__file__).resolve().parents[2] / ".local-cluster"


def main() -> int:
    """Bring a cluster up, or take it down."""
    parser = argparse.ArgumentParser(prog="infra/local/cluster.py", description=__doc__)
    parser.add_argument("action", choices=["up", "down", "status"])
    parser.add_argument("--place", type=Path, default=HERE, help=f"where everything lies (default: {HERE.name})")
    parser.add_argument("--workers", type=int, default=2, help="Ray nodes beside the head (default: 2)")
    parser.add_argument("--cpus", type=int, default=1, help="CPUs that each of them offers (default: 1)")
    given = parser.parse_args()
    place = given.place.resolve()
    if given.action == "up":
        return up(place, given.workers, given.cpus)
    return down(place) if given.action == "down" else status(place)


def up(place: Path, workers: int, cpus: int) -> int:
    """Start everything, in the order in which they need one another."""
    if known(place):
        print(f"something of it runs already: {', '.join(known(place))}; take it down first", file=sys.stderr)
        return 2
    place.mkdir(parents=True, exist_ok=True)
    place.chmod(0o711)  # PostgreSQL's own user passes through
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
    except NotUp as error:
        print(error, file=sys.stderr)
        down(place)
        return 1
    settings = {
        "RAY_API_SERVER_ADDRESS": head.url,
        **head.client_environment(),
        **mlflow.client_environment(),
        **store.client_environment(),
    }
    environment = place / "env.sh"
    environment.touch(mode=0o600)
    environment.write_text("".join(f"export {name}={shlex.quote(value)}\n" for name, value in settings.items()))
    storage = place / "storage"
    print(
        f"up: {1 + workers} Ray nodes, job API at {head.url}; MLflow at {mlflow.url}, user {mlflow.user}\n"
        f"  source {environment}\n"
        f"  in a sweep file: tracking: {{uri: {mlflow.url}}}, storage: {storage}, backend: ray,\n"
        f"    resources: {{cpus_per_pack: {cpus}}}, or less\n"
        f"  lt-sweep submit SWEEP.yaml --watch --secret-file MLFLOW_TRACKING_PASSWORD={place / 'sweeps.password'} \\\n"
        f"    --env MLFLOW_TRACKING_USERNAME={mlflow.user}"
    )
    return 0


def port(place: Path, name: str) -> int:
    """A free port the first time, and the same ever after: sweep files name it."""
    file = place / "ports" / name
    if not file.exists():
        file.parent.mkdir(exist_ok=True)
        file.write_text(str(free_port()))
    return int(file.read_text())


def begin(service: Service) -> None:
    """Start one, and say so."""
    print(f"{service.name} ...", flush=True)
    service.start()


def down(place: Path) -> int:
    """End what `up` has started; all but the S3 store's content stays until the directory is removed."""
    for name in reversed(known(place)):
        Service(name=name, place=place, port=0).stop()
        print(f"{name} ended")
    return 0


def status(place: Path) -> int:
    """Which of it runs."""
    for name in known(place):
        print(name, "runs" if Service(name=name, place=place, port=0).processes() else "is gone")
    return 0 if known(place) else 1


def known(place: Path) -> list[str]:
    """Names of the services that were started here and not ended, in the order of their start."""
    files = sorted((place / "processes").glob("*.json"), key=lambda file: file.stat().st_mtime)
    return [file.stem for file in files]


if __name__ == "__main__":
    sys.exit(main())
