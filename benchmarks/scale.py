"""Scalability of one driver: `python benchmarks/scale.py`, or `make scale`.

Workers are simulated: packs return at times of a virtual clock, with untrained results of the right shapes. Everything
else is the code of the driver as it runs on a cluster: trial queue, search, packing, ledger with its syncs, progress.
The driver's real time by part and its memory are measured. Of one sweep, every command that reads its directory is
measured as well, each in a fresh process. The overhead of Ray Tune is measured separately, with real workers that train
very little. Results are written to scale.json; docs/scale.md is updated by hand.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
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
from sweeps.experiment.events import Event, SweepStopped, TrialFinished
from sweeps.experiment.listeners import ShowProgress
from sweeps.experiment.prepare import prepare_all
from sweeps.experiment.trial_queue import TrialQueue
from sweeps.store.directory import load_spec, open_directory
from sweeps.store.layout import sweep_directory
from sweeps.store.ledger import Ledger
from sweeps.store.progress import Progress, Publisher
from sweeps.tracking.background import BackgroundTracker
from sweeps.tracking.content import tracked_trial
from sweeps.tracking.null import NullTracking

RESULTS = Path(__file__).with_name("scale.json")
"""The results, and under `before` those of the last version that kept all results in the lines of the ledger."""

PACK_SECONDS = 60.0
"""Virtual training time of a pack. Shorter packs give the driver the same work in less time."""

READ_CASE_SECONDS = 900.0
"""Time limit of the driver of a case whose directory is read afterwards, for which it has to finish."""

COMMAND_SECONDS = 600.0
"""Time limit of a command that reads a sweep directory."""


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
        """Add the time of the block to a part, without the time of nested parts; in the main thread only."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
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


@dataclass(frozen=True)
class Case:
    """One measured sweep of 12,000 runs or more.

    Attributes:
        workers: number of packs that are trained at the same time.
        packs: approximate number of packs, of 12 trials x 5 seeds, or of a proposal batch if that is smaller.
        batch: trials per proposal batch, of each method.
        algorithm: the search algorithm.
        classes, dim: of the feature bank.
        methods: number of candidate methods, which share the trials.
        is_read: whether the commands that read the sweep directory are measured, too.
    """

    workers: int
    packs: int
    batch: int
    algorithm: str = "random"
    classes: int = 100
    dim: int = 64
    methods: int = 1
    is_read: bool = False

    @property
    def trials(self) -> int:
        """Trials of each method."""
        return self.packs * min(12, self.batch) // self.methods


CASES = {
    "1,000 packs, 500 workers, random": Case(500, 1000, 3000),
    "1,000 packs, 500 workers, tpe": Case(500, 1000, 3000, "tpe"),
    "100 packs, 20 workers, tpe": Case(20, 100, 120, "tpe"),
    "1,000 packs, 500 workers, random, 1,000 classes": Case(500, 1000, 3000, classes=1000, is_read=True),
    "1,000 packs, 500 workers, random, 6 methods": Case(500, 1000, 500, methods=6, is_read=True),
    "1,500 packs of 8 trials, 2 workers, random": Case(2, 1500, 8),
    "5,000 packs, 500 workers, random": Case(500, 5000, 3000),
}


def sweep(case: Case, storage: Path) -> SweepSpec:
    """A sweep with packs of 12 trials x 5 seeds. Two proposal batches run at a time and keep every worker busy."""
    methods = [{"name": f"los-{number}", "method": "los"} for number in range(1, case.methods + 1)]
    return load_resolved(
        {
            "version": 1,
            "name": "scale",
            "dataset": {"kind": "arrays", "path": str(storage / "features.npz"), "val_fraction": 0},
            **({"methods": methods} if case.methods > 1 else {"method": "los"}),
            "search": {
                "algorithm": case.algorithm,
                "trials": case.trials,
                "proposal_batch": case.batch,
                "space": {
                    "method.smooth_factor": {"uniform": [0.5, 0.995]},
                    "method.lr": {"loguniform": [1e-5, 1e-1]},
                    "method.weight_decay": {"loguniform": [1e-6, 1e-1]},
                },
            },
            "selection": {"on": "test", "seeds": 5, "finalists": 3, "extended_training": None},
            "resources": {"lanes_per_pack": 60},
            "baselines": [],
            "backend": "inline",
            "tracking": "none",
            "storage": str(storage),
        }
    )


def write_features(file: Path, classes: int, dim: int) -> None:
    """Random features of a long-tailed dataset: 200 to 2 training images and 10 test images per class."""
    rng = np.random.default_rng(0)
    counts = np.geomspace(200, 2, classes).round().astype(np.int64)
    train, test = np.repeat(np.arange(classes), counts), np.repeat(np.arange(classes), 10)
    np.savez(
        file,
        train_features=rng.standard_normal((len(train), dim), np.float32),
        train_labels=train,
        test_features=rng.standard_normal((len(test), dim), np.float32),
        test_labels=test,
        weight=rng.standard_normal((classes, dim), np.float32),
        bias=np.zeros(classes, np.float32),
    )


def simulated_result(run: Run, bank: FeatureBank, rng: np.random.Generator) -> RunResult:
    """A plausible result of a run: 20 epochs, per-class tables, a head."""
    classes = bank.num_classes
    # Best near one learning rate, so that the search has an optimum to find.
    offset = -abs(np.log10(run.method.lane_values()["lr"]) + 3) / 10
    curve = (0.5 + offset + 0.01 * rng.random((20, 4))).astype(np.float32)
    accuracy, loma, std = (rng.random(classes).astype(np.float32) for _ in range(3))
    state = {"weight": np.zeros((classes, bank.feature_dim), np.float32), "bias": np.zeros(classes, np.float32)}
    return RunResult(None, curve, curve[:, 0], SelectedHead(19, accuracy, loma, std, state))


@contextmanager
def open_queue(
    spec: SweepSpec, bank: FeatureBank, ledger: Ledger, publisher: Publisher, clock: Clock
) -> Iterator[TrialQueue]:
    """The trial queue, with its finished trials reported to progress and tracking as in the runner."""
    tracker = BackgroundTracker(lambda: NullTracking().open(None, publisher.directory))  # type: ignore[arg-type]
    show = ShowProgress(spec, publisher)

    def emit(event: Event) -> None:
        with clock.part("listeners"):
            if isinstance(event, TrialFinished):
                tracker.log_trial(lambda: tracked_trial(event.runs, spec))
            show(event)

    try:
        yield TrialQueue(spec, bank, ledger, emit)
    finally:
        tracker.interrupted()
        show(SweepStopped(TimeLimitReached()))


def drive(case: Case, storage: Path, max_seconds: float) -> dict[str, Any]:
    """Run one driver with simulated workers until the sweep ends or the time limit is reached; once per process."""
    write_features(storage / "features.npz", case.classes, case.dim)
    spec = sweep(case, storage)
    bank = prepare_all(spec).bank
    clock, rng = Clock(), np.random.default_rng(0)
    opened = open_directory(spec, bank.fingerprint, None)
    directory = opened.path
    clock.wrap(os, "fsync", "fsync")
    ledger = Ledger(directory, identity=opened.identity)
    publisher = Publisher(Progress(sweep="scale", state="running"))
    publisher.directory = directory
    clock.wrap(ledger, "append", "ledger")
    clock.wrap(ledger, "propose", "ledger")
    clock.wrap(ledger, "drop_heads", "ledger")
    clock.wrap(publisher, "update", "progress")
    clock.wrap(Study, "ask", "search")
    begin, cpu = time.perf_counter(), time.process_time()
    running: list[tuple[float, int, Pack]] = []
    now, done, ends, simulation_cpu = 0.0, 0, [0.0], 0.0
    with open_queue(spec, bank, ledger, publisher, clock) as queue:
        with time_limit(max_seconds - (time.perf_counter() - begin)):
            while not queue.exhausted():
                while len(running) < case.workers:
                    with clock.part("packing"):
                        pack = queue.next_pack()
                    if pack is None:
                        break
                    returns_at = now + PACK_SECONDS * (0.9 + 0.2 * rng.random())
                    heapq.heappush(running, (returns_at, done + len(running), pack))
                now, _, pack = heapq.heappop(running)
                with clock.part("simulation"):
                    before = time.process_time()
                    results = [simulated_result(run, bank, rng) for run in pack.runs]
                    simulation_cpu += time.process_time() - before
                with clock.part("packing"):
                    queue.complete(pack, results, PACK_SECONDS)
                done += 1
                ends.append(time.process_time() - cpu - simulation_cpu)
        cpu_seconds = time.process_time() - cpu - simulation_cpu
    ledger.close()
    publisher.update(at_once=True)
    spent = time.perf_counter() - begin - clock.seconds.pop("simulation", 0.0)
    tenth = max(1, len(ends) // 10)
    return {
        "workers": case.workers,
        "packs": done,
        "trials": len(queue.trials),
        "runs": len(ledger.runs),
        "finished": queue.exhausted(),
        "seconds": spent,
        "cpu_seconds": cpu_seconds,
        "cpu_seconds_per_pack_in_second_tenth": (ends[2 * tenth] - ends[tenth]) / tenth if done > 20 else None,
        "cpu_seconds_per_pack_in_last_tenth": (ends[-1] - ends[-1 - tenth]) / tenth,
        "by_part": dict(clock.seconds),
        "virtual_seconds": now,
        "ledger_bytes": (directory / "ledger.jsonl").stat().st_size,
        "packs_bytes": sum(file.stat().st_size for file in (directory / "packs").glob("*")),
        "heads_bytes": sum(file.stat().st_size for file in (directory / "heads").glob("*")),
        "peak_memory_bytes": peak_memory(),
    }


def reopen(directory: Path) -> dict[str, Any]:
    """Open the ledger of a sweep and create its queue, as a resume does, until it is known what is left to train."""
    spec = load_spec(sweep_directory(directory))
    bank = prepare_all(spec).bank
    publisher = Publisher(Progress(sweep="scale", state="running"))
    begin, cpu = time.perf_counter(), time.process_time()
    ledger = Ledger(directory)
    opened, opened_cpu = time.perf_counter(), time.process_time()
    with open_queue(spec, bank, ledger, publisher, Clock()) as queue:
        ended, ended_cpu = time.perf_counter(), time.process_time()
    ledger.close()
    return {
        "is_finished": queue.exhausted(),
        "ledger_seconds": opened - begin,
        "ledger_cpu_seconds": opened_cpu - cpu,
        "queue_seconds": ended - opened,
        "queue_cpu_seconds": ended_cpu - opened_cpu,
    }


def measure_reads(directory: Path) -> dict[str, Any]:
    """Time and memory of what reads a finished sweep, each in a fresh process and with no file of the sweep cached."""
    program = [sys.executable, "-m", "sweeps"]
    other = directory.with_name("scale-copy")
    commands = {
        "status": [*program, "status", str(directory)],
        "reopen": [sys.executable, __file__, "--reopen", str(directory)],
        "resume": [*program, "resume", str(directory)],
        "table": [*program, "table", str(directory)],
        "report": [*program, "report", str(directory)],
        "compare": [*program, "compare", str(directory), str(other)],
    }
    measured = {}
    for name, command in commands.items():
        if name == "compare":
            shutil.copytree(directory, other, copy_function=os.link)
        measured[name] = measure(command, directory)
        print(name, measured[name], file=sys.stderr, flush=True)
    return measured


def measure(command: Sequence[str], directory: Path) -> dict[str, Any]:
    """Wall time, CPU time and peak memory of a command."""
    drop_from_cache(directory)
    before, begin = _children_cpu_seconds(), time.perf_counter()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.DEVNULL)
        peak = 0
        while process.poll() is None:
            # Not from `wait4`: its peak includes that of the process that started the command.
            peak = max(peak, peak_memory(process.pid))
            if time.perf_counter() - begin > COMMAND_SECONDS:
                process.kill()
            time.sleep(0.02)
        seconds = time.perf_counter() - begin
        output.seek(0)
        printed = output.read().splitlines()
    measured: dict[str, Any] = {
        "exit_code": process.returncode,
        "seconds": seconds,
        "cpu_seconds": _children_cpu_seconds() - before,
        "peak_memory_bytes": peak,
    }
    return measured | (json.loads(printed[-1]) if "--reopen" in command and printed else {})


def _children_cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def peak_memory(process: int | str = "self") -> int:
    """Peak memory of a running process in bytes; 0 if it has ended."""
    with suppress(OSError):
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    return 0


def drop_from_cache(directory: Path) -> None:
    """Remove the files of a directory from the cache of the operating system."""
    for file in directory.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def simulated_bank(classes: int, dim: int) -> FeatureBank:
    """A bank of the given shape without meaningful features."""
    counts = torch.ones(classes, dtype=torch.int64)
    labels = torch.arange(classes)
    features = torch.zeros(1, classes, dim)
    head = torch.zeros(classes, dim), torch.zeros(classes)
    return FeatureBank("simulated", features, labels, None, EvalSet(features, labels), head, counts, counts)


def ray_seconds_per_pack(packs: int) -> float:
    """Seconds of Ray Tune per pack on the cores of this machine, with workers that train very little."""
    from sweeps.backends.ray import RayBackend

    bank = simulated_bank(4, 4)
    bank = replace(bank, class_counts=torch.tensor([200, 90, 30, 5]), split_counts=torch.tensor([200, 90, 30, 5]))
    spec = sweep(Case(1, 1, 1), Path("unused"))
    run = Run(spec.candidates()[0].method, spec.training.model_copy(update={"epochs": 1}), 0)

    class Source:
        """A fixed number of packs with one run each."""

        def __init__(self) -> None:
            self.remaining = packs
            self.completed: list[float] = []

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


def main() -> int:
    """Run every case in a separate process, write scale.json and print tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, help="run one case and print its result as JSON")
    parser.add_argument("--reopen", type=Path, metavar="DIRECTORY", help="reopen a sweep and print the time as JSON")
    parser.add_argument("--scratch", type=Path, default=Path("/var/tmp"), help="where sweeps are written")
    parser.add_argument("--keep", action="store_true", help="with --case: keep the storage in the scratch directory")
    parser.add_argument(
        "--max-seconds",
        type=float,
        default=180.0,
        help="time limit of each case that is not read, in seconds (default: 180)",
    )
    parser.add_argument(
        "--ray-packs", type=int, default=200, help="number of real packs to run with Ray Tune (default: 200)"
    )
    arguments = parser.parse_args()
    if arguments.reopen:
        print(json.dumps(reopen(arguments.reopen)))
        return 0
    if arguments.case:
        print(json.dumps(run_case(CASES[arguments.case], arguments.scratch, arguments.max_seconds, arguments.keep)))
        return 0
    before = json.loads(RESULTS.read_text())["before"]
    document = {"before": before, "ray_seconds_per_pack": ray_seconds_per_pack(arguments.ray_packs), "cases": {}}
    for case in CASES:
        command = [sys.executable, __file__, "--case", case, "--max-seconds", str(arguments.max_seconds)]
        command += ["--scratch", str(arguments.scratch)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        document["cases"][case] = json.loads(done.stdout.splitlines()[-1])
        print(case, document["cases"][case], flush=True)
    RESULTS.write_text(json.dumps(document, indent=1) + "\n")
    show(document)
    return 0


def run_case(case: Case, scratch: Path, max_seconds: float, keep: bool) -> dict[str, Any]:
    """The measurements of one case, in a new storage."""
    scratch.mkdir(parents=True, exist_ok=True)
    storage = Path(tempfile.mkdtemp(prefix="scale-", dir=scratch))
    try:
        measured = drive(case, storage, READ_CASE_SECONDS if case.is_read else max_seconds)
        if case.is_read and measured["finished"]:
            measured["reads"] = measure_reads(storage / "scale")
        return measured
    finally:
        if not keep:
            shutil.rmtree(storage)


def show(document: dict[str, Any]) -> None:
    """Print a table with one row per case, and one with a row for each command of the cases that are read."""
    before = document["before"]
    cases = {f"{name} (commit {before['commit']})": case for name, case in before["cases"].items()} | document["cases"]
    parts = sorted({part for case in cases.values() for part in case["by_part"]})
    sizes = {"ledger MB": "ledger_bytes", "packs MB": "packs_bytes", "memory MB": "peak_memory_bytes"}
    table = Table("case", "packs", "finished", "ms per pack", "CPU, ms", *(f"{part}, ms" for part in parts), *sizes)
    reads = Table("case", "command", "seconds", "CPU seconds", "memory MB")
    for name, case in cases.items():
        row = [_milliseconds(case["by_part"].get(part, 0.0), case) for part in parts]
        times = [_milliseconds(case[key], case) for key in ("seconds", "cpu_seconds")]
        finished = "yes" if case["finished"] else "no"
        table.add_row(
            name, str(case["packs"]), finished, *times, *row, *(f"{case[size] / 1e6:.0f}" for size in sizes.values())
        )
        for command, one in case.get("reads", {}).items():
            numbers = [f"{one[key]:.1f}" for key in ("seconds", "cpu_seconds")]
            ended = numbers if one["exit_code"] == 0 else [f"{numbers[0]}, exit code {one['exit_code']}", numbers[1]]
            reads.add_row(name, command, *ended, f"{one['peak_memory_bytes'] / 1e6:.0f}")
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(table)
    console.print(reads)
    console.print(f"Ray Tune itself: {1000 * document['ray_seconds_per_pack']:.0f} ms per pack")


def _milliseconds(seconds: float, case: dict[str, Any]) -> str:
    return f"{1000 * seconds / case['packs']:.1f}"


if __name__ == "__main__":
    sys.exit(main())
