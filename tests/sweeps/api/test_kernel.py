"""Sweeps in the process of a notebook, whose event loop runs: progress, an interrupted cell, the next call."""

import json
import queue
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from documentation.pages import ROOT, blocks
from jupyter_client import KernelManager

from sweeps.config.spec import SweepSpec

pytestmark = pytest.mark.slow

Output = dict[str, Any]


class Kernel:
    def __init__(self, directory: Path) -> None:
        self.manager = KernelManager(kernel_name="python3")
        self.manager.start_kernel(cwd=str(directory))
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=120)

    def run(self, code: str, interrupt_at: str = "") -> list[Output]:
        """The outputs of a cell, which is interrupted once it shows a text."""
        request, outputs, end = self.client.execute(code), list[Output](), time.monotonic() + 300
        while time.monotonic() < end:
            try:
                message = self.client.get_iopub_msg(timeout=1)
            except queue.Empty:
                continue
            if message["parent_header"].get("msg_id") != request:
                continue
            if message["content"].get("execution_state") == "idle":
                return outputs
            outputs.append({"type": message["msg_type"], **message["content"]})
            if interrupt_at and interrupt_at in json.dumps(message["content"]):
                self.manager.interrupt_kernel()
                interrupt_at = ""
        raise AssertionError(f"the cell did not end: {outputs[-3:]}")


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Kernel]:
    started = Kernel(tmp_path)
    yield started
    started.client.stop_channels()
    started.manager.shutdown_kernel(now=True)


def texts(outputs: list[Output]) -> list[str]:
    return [one["data"]["text/plain"] for one in outputs if "data" in one]


def test_an_interrupted_cell_leaves_nothing_behind(kernel: Kernel, small_sweep: Callable[..., SweepSpec]) -> None:
    spec = small_sweep(search={"trials": 150}, training={"epochs": 20})
    kernel.run(f"import sweeps\nspec = sweeps.SweepSpec(**{spec.resolved()!r})")
    outputs = kernel.run("sweeps.run(spec)", interrupt_at="best val acc_all")
    assert outputs[-1]["ename"] == "KeyboardInterrupt"
    shown = texts(outputs)
    assert shown[0].startswith("sweep small: 0 of 30")
    assert outputs[-2]["type"] == "update_display_data"
    assert "<progress" in outputs[-2]["data"]["text/html"]
    assert texts(kernel.run("sweep = sweeps.open_sweep(spec)\nsweep.state, len(sweep.trials) < 150")) == [
        "('interrupted', True)"
    ]
    done = "import threading\nresult = sweeps.run(spec)\nthreading.active_count(), result.winner is not None"
    before = kernel.run("import threading\nthreading.active_count()")
    *_, last = texts(kernel.run(done))
    assert last == f"({texts(before)[0]}, True)"


def test_kinds_may_be_defined_in_cells(kernel: Kernel) -> None:
    """One of every group that docs/extending.md shows, used in a sweep of the same notebook."""
    pages = [block.text for block in blocks((ROOT / "docs" / "extending.md").read_text()) if block.language == "python"]
    cells = [text for text in pages if text.startswith("# ") and ".register" in text]
    assert len(cells) == 7
    for cell in cells:
        assert not [one for one in kernel.run(cell) if one["type"] == "error"]
    code = """
    import sweeps
    result = sweeps.run(
        {
            "name": "wine",
            "dataset": "wine",
            "method": {"kind": "poly", "head": "prototypes", "init": "random"},
            "baselines": [{"kind": "ce", "init": "random"}],
            "training": {"epochs": 3},
            "search": {"algorithm": "halton", "trials": 3, "space": {"method.epsilon": {"uniform": [0.0, 4.0]}}},
            "metrics": ["g_mean"],
            "selection": {"metric": "g_mean", "seeds": 2, "extended_training": None},
            "backend": {"kind": "threads", "workers": 2},
            "tracking": "csv_file",
        }
    )
    result.winner.method, sorted(result.winner.mean.metrics)
    """
    outputs = kernel.run(textwrap.dedent(code))
    assert texts(outputs)[-1] == "('poly', ['g_mean'])", outputs[-1]
