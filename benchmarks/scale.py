"""How large a sweep one driver can lead: `python benchmarks/scale.py`, or `make scale`.

Workers are simulated: packs come back when a virtual clock says so, with results of the right shapes that nobody
trained. Everything else is the driver's own code, as a cluster would call it: schedule, search, packing, ledger
with its syncs, progress. What is measured is the driver's real time, by part, and its memory. Ray's own share is
measured for real, with workers that do nothing. Figures go to scale.json, and into docs/scale.md by hand.
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
from sweeps.store.status import Progress, Publisher
from sweeps.tracking.background import BackgroundTracker
from sweeps.tracking.null import NullTracking

HERE = Path(__file__).parent
PACK_SECONDS = 60.0
"""Virtual: how long a worker takes for a pack. Faster packs bring the same work to the driver in less time."""


class TimeUp(Exception):
    """A case has had its seconds; what it has done until then is its measurement."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Leave the block when the seconds are over, from wherever it then is."""

    def stop(*_: object) -> None:
        raise TimeUp

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except TimeUp:
        pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


class Clock:
    """The driver's real seconds by part; a part within a part counts for itself alone."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._open: list[float] = []

    @contextmanager
    def part(self, name: str) -> Any:
        """Everything in the block, less what inner parts took."""
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
        """Count every call of a method."""
        inner = getattr(owner, method)

        def counted(*arguments: Any, **options: Any) -> Any:
            with self.part(name):
                return inner(*arguments, **options)

        setattr(owner, method, counted)


def sweep(trials: int, batch: int, sampler: str, storage: Path, classes: int) -> SweepSpec:
    """Packs of 12 trials with five seeds; two proposal batches, which are in flight together, keep every worker busy."""
    return load_resolved(
        {
            "version": 1,
            "name": "scale",
            "dataset": {"kind": "arrays", "path": "simulated.npz"},
            "method": "los",
            "search": {
                "sampler": sampler,
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
    """A bank that has shapes and nothing else."""
    counts = torch.ones(classes, dtype=torch.int64)
    labels = torch.arange(classes)
    features = torch.zeros(1, classes, dim)
    head = torch.zeros(classes, dim), torch.zeros(classes)
    return FeatureBank("simulated", features, labels, None, EvalSet(features, labels), head, counts, counts)


def simulated_result(run: Run, bank: FeatureBank, chance: np.random.Generator) -> RunResult:
    """What a run would have brought home: 20 epochs, tables by class, a head."""
    classes = bank.num_classes
    # Good near one setting, so that a search has something to find.
    good = -abs(np.log10(run.method.lane_values()["lr"]) + 3) / 10
    curve = (0.5 + good + 0.01 * chance.random((20, 4))).astype(np.float32)
    tables = [chance.random(classes).astype(np.float32) for _ in range(3)]
    state = {"weight": np.zeros((classes, bank.feature_dim), np.float32), "bias": np.zeros(classes, np.float32)}
    return RunResult(None, curve, curve[:, 0], SelectedHead(19, *tables, state))


def lead(spec: SweepSpec, bank: FeatureBank, workers: int, most_seconds: float) -> dict[str, Any]:
    """One driver, leading simulated workers through a sweep, or as far as it comes in time; once a process."""
    clock, chance = Clock(), np.random.default_rng(0)
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
    clock.wrap(watcher, "on_trial", "cards")
    clock.wrap(Study, "ask", "search: ask")
    clock.wrap(Study, "tell", "search: tell")
    begin = time.perf_counter()
    with clock.part("schedule"):
        queue = TrialQueue(spec, bank, ledger, watcher.on_trial)
        watcher.attach(queue)
    now, running, done = 0.0, [], 0
    with at_most(most_seconds - (time.perf_counter() - begin)):
        while not queue.exhausted():
            while len(running) < workers:
                with clock.part("schedule"):
                    pack = queue.next_pack()
                if pack is None:
                    break
                back = now + PACK_SECONDS * (0.9 + 0.2 * chance.random())
                heapq.heappush(running, (back, done + len(running), pack))
            now, _, pack = heapq.heappop(running)
            with clock.part("simulation"):
                results = [simulated_result(run, bank, chance) for run in pack.runs]
            with clock.part("schedule"):
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
        "seconds_a_pack": spent / max(done, 1),
        "by_part": dict(clock.seconds),
        "virtual_seconds": now,
        "ledger_bytes": (directory / "ledger.jsonl").stat().st_size,
        "peak_memory_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }


def ray_seconds_a_pack(packs: int) -> float:
    """What Ray Tune itself takes a pack, on this machine's cores with workers that train next to nothing."""
    from sweeps.backends.ray import RayBackend

    bank = simulated_bank(4, 4)
    bank = replace(bank, class_counts=torch.tensor([200, 90, 30, 5]), split_counts=torch.tensor([200, 90, 30, 5]))
    spec = sweep(1, 1, "random", Path("unused"), 4)
    run = Run(spec.candidates()[0].method, spec.training.model_copy(update={"epochs": 1}), 0)

    class Source:
        """So many packs of one run."""

        def __init__(self) -> None:
            self.left, self.back = packs, []

        def next_pack(self) -> Pack | None:
            self.left -= 1
            return Pack(f"p{self.left}", (run,), spec.selection.epoch_rule()) if self.left >= 0 else None

        def complete(self, pack: Pack, results: list[RunResult], seconds: float) -> None:
            self.back.append(time.perf_counter())

        def failed(self, pack: Pack, why: str, *, own: bool) -> None:
            raise RuntimeError(why)

        def exhausted(self) -> bool:
            return len(self.back) == packs

    source = Source()
    RayBackend().train(bank, source, cpus=1, gpus=0)
    quarter = packs // 4
    return (source.back[-1] - source.back[quarter]) / (packs - 1 - quarter)


CASES: dict[str, tuple[int, int, int, str, int, int]] = {
    # name: workers, packs, trials a proposal batch, sampler, classes, feature dim
    "1,000 packs, 500 workers, random": (500, 1000, 3000, "random", 100, 64),
    "1,000 packs, 500 workers, tpe": (500, 1000, 3000, "tpe", 100, 64),
    "100 packs, 20 workers, tpe": (20, 100, 120, "tpe", 100, 64),
    "1,000 packs, 500 workers, random, 1,000 classes": (500, 1000, 3000, "random", 1000, 64),
    "5,000 packs, 500 workers, random": (500, 5000, 3000, "random", 100, 64),
}


def main() -> int:
    """Lead every case in a process of its own, print a table, write scale.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, help="one case, as JSON on standard output")
    parser.add_argument("--most-seconds", type=float, default=180.0, help="give a case up after these (default 180)")
    parser.add_argument("--ray-packs", type=int, default=200, help="real packs through Ray Tune (default 200)")
    given = parser.parse_args()
    if given.case:
        workers, packs, batch, sampler, classes, dim = CASES[given.case]
        with tempfile.TemporaryDirectory(dir="/var/tmp") as place:
            spec = sweep(packs * 12, batch, sampler, Path(place), classes)
            print(json.dumps(lead(spec, simulated_bank(classes, dim), workers, given.most_seconds)))
        return 0
    document: dict[str, Any] = {"ray_seconds_a_pack": ray_seconds_a_pack(given.ray_packs), "cases": {}}
    for case in CASES:
        command = [sys.executable, __file__, "--case", case, "--most-seconds", str(given.most_seconds)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        document["cases"][case] = json.loads(done.stdout.splitlines()[-1])
        print(case, document["cases"][case], flush=True)
    (HERE / "scale.json").write_text(json.dumps(document, indent=1) + "\n")
    show(document)
    return 0


def show(document: dict[str, Any]) -> None:
    """A line a case."""
    parts = sorted({part for case in document["cases"].values() for part in case["by_part"]})
    table = Table(
        "case", "packs", "to its end", "ms a pack", *(f"{part}, ms" for part in parts), "ledger MB", "memory MB"
    )
    for name, case in document["cases"].items():
        row = [_milliseconds(case["by_part"].get(part, 0.0), case) for part in parts]
        sizes = [f"{case[size] / 1e6:.0f}" for size in ("ledger_bytes", "peak_memory_bytes")]
        ended = "yes" if case["finished"] else "no"
        table.add_row(name, str(case["packs"]), ended, _milliseconds(case["seconds"], case), *row, *sizes)
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(table)
    console.print(f"Ray Tune itself: {1000 * document['ray_seconds_a_pack']:.0f} ms a pack")


def _milliseconds(seconds: float, case: dict[str, Any]) -> str:
    return f"{1000 * seconds / case['packs']:.1f}"


if __name__ == "__main__":
    sys.exit(main())
