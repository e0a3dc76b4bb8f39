"""Scalability of one driver: `python benchmarks/scale.py`, or `make scale`.

Workers are simulated: packs return at times of a virtual clock, with untrained results of the right shapes. Everything
else is the code of the driver as it runs on a cluster: trial queue, search, packing, ledger with its syncs, progress.
The driver's real time by part and its memory are measured. The overhead of Ray Tune is measured separately, with real
workers that train very little. Results are written to scale.json; docs/scale.md is updated by hand.
"""

from __future__ import annotations

import argparse
import heapq
import json
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from lt_train.features.bank import EvalSet, FeatureBank
from lt_train.retrain.base import Pack, Run, RunResult, SelectedHead
from sweeps.config.spec import SweepSpec, load_resolved
from sweeps.config.trials import Study
from sweeps.experiment.trial_queue import TrialQueue
from sweeps.experiment.watcher import Watcher
from sweeps.store.ledger import Ledger
from sweeps.store.progress import Progress, Publisher
from sweeps.tracking.background import BackgroundTracker
from sweeps.tracking.null import NullTracking

HERE = Path(__file__).parent
PACK_SECONDS = 60.0
"""Virtual training time of a pack. Shorter packs give the driver the same work in less time."""


class TimeLimitReached(Exception):
    """The time limit of a case has passed; its measurement covers the work until then."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Leave the block after `seconds`, wherever it is then."""

    def stop(*_: object) -> None:
        raise TimeLimitReached

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except TimeLimitReached:
        pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


class Clock:
    """Real seconds of the driver by part; the time of a nested part is not included in the outer part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._open: list[float] = []

    @contextmanager
    def part(self, name: str) -> Any:
        """Add the time of the block to a part, without the time of nested parts."""
        begin = time.perf_counter()
        self._open.append(0.0)
        try:
            yield
        finally:
            took = time.perf_counter() - begin
            inner = self._open.pop()
            self.seconds[name] += took - inner
            if self._open:
                self._open[-1] += took

    def wrap(self, owner: Any, method: str, name: str) -> None:
        """Add the time of every call of a method to a part."""
        inner = getattr(owner, method)

        def timed(*arguments: Any, **options: Any) -> Any:
            with self.part(name):
                return inner(*arguments, **options)

        setattr(owner, method, timed)


def sweep(trials: int, batch: int, algorithm: str, storage: Path, classes: int) -> SweepSpec:
    """A sweep with packs of 12 trials x 5 seeds. Two proposal batches run at a time and keep every worker busy."""
    return load_resolved(
        {
            "version": 1,
            "name": "scale",
            "dataset": {"kind": "arrays", "path": "simulated.npz"},
            "method": "los",
            "search": {
                "algorithm": algorithm,
                "trials": trials,
                "proposal_batch": batch,
                "space": {
                    "method.smooth_factor": {"uniform": [0.5, 0.995]},
                    "method.lr": {"loguniform": [1e-5, 1e-1]},
                    "method.weight_decay": {"loguniform": [1e-6, 1e-1]},
                },
            },
            "selection": {"on": "test", "seeds": 5, "finalists": 3, "extended_training": None},
            "resources": {"lanes_per_pack": 60},
            "baselines": [],
            "tracking": "none",
            "storage": str(storage),
        }
    )


def simulated_bank(classes: int, dim: int) -> FeatureBank:
    """A bank of the given shape without meaningful features."""
    counts = torch.ones(classes, dtype=torch.int64)
    labels = torch.arange(classes)
    features = torch.zeros(1, classes, dim)
    head = torch.zeros(classes, dim), torch.zeros(classes)
    return FeatureBank("simulated", features, labels, None, EvalSet(features, labels), head, counts, counts)


def simulated_result(run: Run, bank: FeatureBank, rng: np.random.Generator) -> RunResult:
    """A plausible result of a run: 20 epochs, per-class tables, a head."""
    classes = bank.num_classes
    # Best near one learning rate, so that the search has an optimum to find.
    offset = -abs(np.log10(run.method.lane_values()["lr"]) + 3) / 10
    curve = (0.5 + offset + 0.01 * rng.random((20, 4))).astype(np.float32)
    tables = [rng.random(classes).astype(np.float32) for _ in range(3)]
    state = {"weight": np.zeros((classes, bank.feature_dim), np.float32), "bias": np.zeros(classes, np.float32)}
    return RunResult(None, curve, curve[:, 0], SelectedHead(19, *tables, state))


def drive(spec: SweepSpec, bank: FeatureBank, workers: int, max_seconds: float) -> dict[str, Any]:
    """Run one driver with simulated workers until the sweep ends or the time limit is reached; once per process."""
    clock, rng = Clock(), np.random.default_rng(0)
    directory = Path(spec.storage) / spec.name
    directory.mkdir(parents=True)
    ledger = Ledger(directory)
    publisher = Publisher(Progress(sweep="scale", state="running"))
    publisher.directory = directory
    tracker = BackgroundTracker(lambda: NullTracking().open(None, directory))  # type: ignore[arg-type]
    watcher = Watcher(spec, tracker, lambda *_: None, publisher)
    clock.wrap(ledger, "append", "ledger")
    clock.wrap(ledger, "drop_heads", "ledger")
    clock.wrap(publisher, "update", "progress")
    clock.wrap(watcher, "on_trial", "tracker events")
    clock.wrap(Study, "ask", "search: ask")
    clock.wrap(Study, "tell", "search: tell")
    begin = time.perf_counter()
    with clock.part("packing"):
        queue = TrialQueue(spec, bank, ledger, watcher.on_trial)
        watcher.attach(queue)
    now, running, done = 0.0, [], 0
    with time_limit(max_seconds - (time.perf_counter() - begin)):
        while not queue.exhausted():
            while len(running) < workers:
                with clock.part("packing"):
                    pack = queue.next_pack()
                if pack is None:
                    break
                returns_at = now + PACK_SECONDS * (0.9 + 0.2 * rng.random())
                heapq.heappush(running, (returns_at, done + len(running), pack))
            now, _, pack = heapq.heappop(running)
            with clock.part("simulation"):
                results = [simulated_result(run, bank, rng) for run in pack.runs]
            with clock.part("packing"):
                queue.complete(pack, results, PACK_SECONDS)
            done += 1
    tracker.interrupted()
    ledger.close()
    publisher.update(state="finished")
    simulation = clock.seconds.pop("simulation", 0.0)
    spent = time.perf_counter() - begin - simulation
    return {
        "workers": workers,
        "packs": done,
        "trials": len(queue.trials),
        "finished": queue.exhausted(),
        "seconds": spent,
        "seconds_per_pack": spent / max(done, 1),
        "by_part": dict(clock.seconds),
        "virtual_seconds": now,
        "ledger_bytes": (directory / "ledger.jsonl").stat().st_size,
        "peak_memory_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }


def ray_seconds_per_pack(packs: int) -> float:
    """Seconds of Ray Tune per pack on the cores of this machine, with workers that train very little."""
    from sweeps.backends.ray import RayBackend

    bank = simulated_bank(4, 4)
    bank = replace(bank, class_counts=torch.tensor([200, 90, 30, 5]), split_counts=torch.tensor([200, 90, 30, 5]))
    spec = sweep(1, 1, "random", Path("unused"), 4)
    run = Run(spec.candidates()[0].method, spec.training.model_copy(update={"epochs": 1}), 0)

    class Source:
        """A fixed number of packs with one run each."""

        def __init__(self) -> None:
            self.remaining, self.completed = packs, []

        def next_pack(self) -> Pack | None:
            self.remaining -= 1
            return Pack(f"p{self.remaining}", (run,), spec.selection.epoch_rule()) if self.remaining >= 0 else None

        def complete(self, pack: Pack, results: list[RunResult], seconds: float) -> None:
            self.completed.append(time.perf_counter())

        def failed(self, pack: Pack, why: str, *, own: bool) -> None:
            raise RuntimeError(why)

        def exhausted(self) -> bool:
            return len(self.completed) == packs

    source = Source()
    RayBackend().train(bank, source, cpus=1, gpus=0)
    quarter = packs // 4
    return (source.completed[-1] - source.completed[quarter]) / (packs - 1 - quarter)


CASES: dict[str, tuple[int, int, int, str, int, int]] = {
    # name: workers, packs, trials per proposal batch, search algorithm, classes, feature dimension
    "1,000 packs, 500 workers, random": (500, 1000, 3000, "random", 100, 64),
    "1,000 packs, 500 workers, tpe": (500, 1000, 3000, "tpe", 100, 64),
    "100 packs, 20 workers, tpe": (20, 100, 120, "tpe", 100, 64),
    "1,000 packs, 500 workers, random, 1,000 classes": (500, 1000, 3000, "random", 1000, 64),
    "5,000 packs, 500 workers, random": (500, 5000, 3000, "random", 100, 64),
}


def main() -> int:
    """Run every case in a separate process, write scale.json and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, help="run one case and print its result as JSON")
    parser.add_argument(
        "--max-seconds", type=float, default=180.0, help="time limit of each case in seconds (default: 180)"
    )
    parser.add_argument(
        "--ray-packs", type=int, default=200, help="number of real packs to run with Ray Tune (default: 200)"
    )
    arguments = parser.parse_args()
    if arguments.case:
        workers, packs, batch, algorithm, classes, dim = CASES[arguments.case]
        with tempfile.TemporaryDirectory(dir="/var/tmp") as place:
            spec = sweep(packs * 12, batch, algorithm, Path(place), classes)
            print(json.dumps(drive(spec, simulated_bank(classes, dim), workers, arguments.max_seconds)))
        return 0
    document: dict[str, Any] = {"ray_seconds_per_pack": ray_seconds_per_pack(arguments.ray_packs), "cases": {}}
    for case in CASES:
        command = [sys.executable, __file__, "--case", case, "--max-seconds", str(arguments.max_seconds)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        document["cases"][case] = json.loads(done.stdout.splitlines()[-1])
        print(case, document["cases"][case], flush=True)
    (HERE / "scale.json").write_text(json.dumps(document, indent=1) + "\n")
    show(document)
    return 0


def show(document: dict[str, Any]) -> None:
    """Print a table with one row per case."""
    parts = sorted({part for case in document["cases"].values() for part in case["by_part"]})
    table = Table(
        "case", "packs", "finished", "ms per pack", *(f"{part}, ms" for part in parts), "ledger MB", "memory MB"
    )
    for name, case in document["cases"].items():
        row = [_milliseconds(case["by_part"].get(part, 0.0), case) for part in parts]
        sizes = [f"{case[size] / 1e6:.0f}" for size in ("ledger_bytes", "peak_memory_bytes")]
        finished = "yes" if case["finished"] else "no"
        table.add_row(name, str(case["packs"]), finished, _milliseconds(case["seconds"], case), *row, *sizes)
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(table)
    console.print(f"Ray Tune itself: {1000 * document['ray_seconds_per_pack']:.0f} ms per pack")


def _milliseconds(seconds: float, case: dict[str, Any]) -> str:
    return f"{1000 * seconds / case['packs']:.1f}"


if __name__ == "__main__":
    sys.exit(main())
