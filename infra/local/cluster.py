"""A rehearsal of a team's cluster on one machine: `python infra/local/cluster.py up`, and `down`.

Up starts a Ray head and workers with a token, PostgreSQL, an S3 store and MLflow with passwords, and writes `env.sh`,
which a shell sources to use them, and `demo.yaml`, a sweep that is ready to be submitted. Down ends every process that
up has started, by its id. Sweeps, MLflow's runs, passwords and ports stay for the next up. What MLflow keeps in the S3
store, artifacts and champions, does not: that store is in memory.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from services import Mlflow, NotUp, Postgres, RayHead, RayWorker, S3Store, Service, free_port

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / ".local-cluster"
DEMO = ROOT / "sweeps" / "specs" / "demo.yaml"


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
        print(f"it was brought up already ({', '.join(known(place))}); take it down first", file=sys.stderr)
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
    except (NotUp, KeyboardInterrupt) as error:
        print(str(error) or "interrupted; what had begun is ended", file=sys.stderr)
        down(place)
        return 1 if isinstance(error, NotUp) else 130
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
        f"up: {1 + workers} Ray nodes, job API at {head.url}\n"
        f"    MLflow at {mlflow.url}, user {mlflow.user}, its password in {password}\n"
        f"  source {environment}\n"
        f"  lt-sweep submit {place / 'demo.yaml'} --watch --env MLFLOW_TRACKING_USERNAME={mlflow.user} \\\n"
        f"    --secret-file MLFLOW_TRACKING_PASSWORD={password}\n"
        f"in a sweep file of your own: tracking: {{uri: {mlflow.url}}}, storage: {storage},\n"
        f"    resources: {{cpus_per_pack: {cpus}}} or less"
    )
    return 0


def make_place(place: Path) -> None:
    """The directory of it all, which holds passwords: it is no part of the repository that it may lie in."""
    place.mkdir(parents=True, exist_ok=True)
    place.chmod(0o711)  # PostgreSQL's own user passes through
    (place / ".gitignore").write_text("*\n")


def demo(tracking: str, storage: Path, cpus: int) -> str:
    """The demo's sweep file, for this cluster instead of a laptop."""
    ours = ("backend:", "storage:", "tracking:", "# yaml-language-server:")
    kept = [line for line in DEMO.read_text().splitlines() if not line.startswith(ours)]
    kept += [f"tracking: {{uri: '{tracking}'}}", f"storage: '{storage}'", f"resources: {{cpus_per_pack: {cpus}}}"]
    return "\n".join(kept) + "\n"


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
    if not known(place):
        print(f"nothing was brought up in {place}")
    for name in reversed(known(place)):
        Service(name=name, place=place, port=0).stop()
        print(f"{name} ended")
    return 0


def status(place: Path) -> int:
    """Which of it runs."""
    if not known(place):
        print(f"nothing was brought up in {place}")
    for name in known(place):
        print(name, "runs" if Service(name=name, place=place, port=0).processes() else "is gone")
    return 0 if known(place) else 1


def known(place: Path) -> list[str]:
    """Names of the services that were started here and not ended, in the order of their start."""
    files = sorted((place / "processes").glob("*.json"), key=lambda file: file.stat().st_mtime)
    return [file.stem for file in files]


if __name__ == "__main__":
    sys.exit(main())
