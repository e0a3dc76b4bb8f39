"""MLflow's pages of a sweep in a headless Chromium, served by `lt-sweep ui`.

Skipped if there is no Chromium; CI installs one. Screenshots are kept as test output. Those of the documentation are
also copied to the directory in LT_SCREENSHOTS:

    LT_SCREENSHOTS=docs/images python -m pytest tests/sweeps/tracking/test_mlflow_in_a_browser.py
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.devtools import CHROMIUM, Tab, opened

import sweeps
from sweeps.analysis.result import Result
from sweeps.config.spec import load_resolved

pytestmark = [pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine"), pytest.mark.slow]

OF_THE_DOCS = ("runs", "compare")

DOCS = Path(__file__).parents[3] / "docs" / "mlflow.md"

TABLE = "document.querySelectorAll('.ag-center-cols-container .ag-row').length > 10"

AXES = "[...document.querySelectorAll('.dimension text.label')].map(e => e.textContent)"

LINKS = "[...document.querySelectorAll('.ag-row a[href*=\"/runs/\"]')].map(e => [e.innerText, e.href])"

CLOSED = """localStorage.setItem('mlflow.assistant.panelOpen_v1', 'false');
localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true'); true"""
"""Closes MLflow's assistant, which otherwise opens beside every page."""


@dataclass(frozen=True)
class Shown:
    """A finished sweep in a browser; `pages` are the URLs that `lt-sweep ui` printed, by description."""

    result: Result
    pages: dict[str, str]
    tab: Tab
    keep: Callable[[str], None]
    place: Path

    def visit(self, page: str, until: str) -> Any:
        self.tab.visit(self.pages.get(page, page))
        return self.tab.until(until)

    def text(self) -> str:
        return str(self.tab.ask("document.body.innerText"))

    def column(self, name: str) -> list[str]:
        """The visible cells of a column of the runs table, from the top."""
        cells = f"""[...document.querySelectorAll('.ag-row [col-id="{name}"]')]
          .map(e => [+e.closest('.ag-row').getAttribute('row-index'), e.innerText.trim().split('\\n').pop()])
          .sort((a, b) => a[0] - b[0]).map(e => e[1])"""
        return list(self.tab.ask(cells))


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    place = tmp_path_factory.mktemp("mlflow")
    space = {
        "method.smooth_factor": {"uniform": [0.2, 0.98]},
        "method.lr": {"loguniform": [1e-4, 1e-1]},
        "method.weight_decay": {"loguniform": [1e-6, 1e-2]},
    }
    spec = load_resolved(
        {
            "version": 1,
            "name": "digits",
            "dataset": "digits_lt",
            "backbone": {"kind": "small_cnn", "width": 8},
            "stage1": {"kind": "ce", "epochs": 8},
            "methods": ["los", "ce"],
            "training": {"epochs": 10},
            "search": {"trials": 12, "space": space},
            "selection": {"seeds": 3, "finalists": 2},
            "backend": "inline",
            "tracking": {"kind": "mlflow", "flush_timeout": 0.0},
            "storage": str(place / "runs"),
        }
    )
    result = sweeps.run(spec)
    output = place / "images"
    output.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "sweeps", "ui", str(place / "runs" / "digits"), "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        lines = [server.stdout.readline().strip() for _ in range(5)]
        assert lines.pop() == "(Ctrl-C stops the server)"
        pages = {about[1:-1]: address for address, about in (line.split(maxsplit=1) for line in lines)}
        with opened(CHROMIUM, place / "profile") as tab:
            tab.visit(f"http://127.0.0.1:{port}/")
            tab.ask(CLOSED)

            def keep(name: str) -> None:
                file = output / f"mlflow-{name}.png"
                with Image.open(BytesIO(tab.image())) as image:  # fewer colours take a third of the bytes
                    image.convert("RGB").quantize(128, dither=Image.Dither.NONE).save(file, optimize=True)
                if name in OF_THE_DOCS and "LT_SCREENSHOTS" in os.environ:
                    shutil.copy(file, os.environ["LT_SCREENSHOTS"])

            yield Shown(result, pages, tab, keep, place)
    finally:
        server.terminate()
        server.wait(60)


def test_the_runs_table_shows_the_best_first(shown: Shown):
    shown.visit("runs, best first", TABLE)
    headers = shown.tab.ask("""[...document.querySelectorAll('.ag-header-cell')]
      .sort((a, b) => a.getAttribute('aria-colindex') - b.getAttribute('aria-colindex'))
      .map(e => e.getAttribute('col-id'))""")
    wanted = ["params.`method`", "params.`phase`", "metrics.`val_acc_all`"]
    wanted += [f"metrics.`acc_{split}`" for split in ("all", "many", "medium", "few")]
    columns = [name for name in headers if name.startswith(("params.", "metrics."))]
    assert columns[: len(wanted)] == wanted[: len(columns)], "the visible columns"
    assert len(columns) >= 5
    ranks = [float(value) for value in shown.column("metrics.`val_acc_all`")]
    assert len(ranks) > 10
    assert ranks == sorted(ranks, reverse=True)
    assert shown.result.winner is not None
    assert ranks[0] == pytest.approx(shown.result.methods[0].objective, abs=1e-5)
    names = shown.column("attributes.`Run Name`")
    assert "digits" in names[: ranks.count(ranks[0])], "the sweep's own run has the rank of its winner"
    assert any(re.match(r"los d=0\.\d+ lr=\S+ wd=\S+", name) for name in names)
    assert "30 matching runs" in shown.text(), "the sweep, a baseline, 24 trials, 4 finalists"
    shown.keep("runs")


def test_searched_parameters_are_columns(shown: Shown):
    shown.visit("runs, best first", TABLE)
    shown.tab.ask("document.querySelector('.ag-body-horizontal-scroll-viewport').scrollLeft = 1e6")
    for name in ("smooth_factor", "lr", "weight_decay"):
        shown.tab.until(f"!!document.querySelector('.ag-header-cell[col-id=\"params.`{name}`\"]')")


def test_trials_are_nested_below_the_sweeps_run(shown: Shown):
    shown.visit("trials below the sweep's run", "document.querySelectorAll('.ag-row button').length > 0")
    assert shown.column("attributes.`Run Name`") == ["digits"]
    shown.tab.ask("document.querySelector('.ag-row button').click()")
    shown.tab.until(TABLE)


def test_charts_show_parallel_coordinates_of_searched_parameters(shown: Shown):
    shown.visit("charts of searched parameters", f"{AXES}.length >= 11")
    assert shown.tab.ask(AXES) == [
        *("smooth_factor", "log10_lr", "log10_weight_decay", "acc_few", "acc_all", "val_acc_all"),
        *("log10_lr", "log10_weight_decay", "acc_few", "acc_all", "val_acc_all"),
    ], "one chart for each set of parameters: ce has no smooth factor"
    assert shown.tab.ask("document.querySelectorAll('canvas.foreground').length") == 2
    assert "Searched parameters (2)" in " ".join(shown.text().split())
    shown.keep("compare")


def test_charts_show_each_parameter_against_the_ranking_metric(shown: Shown):
    shown.visit("charts of searched parameters", f"{AXES}.length >= 11")
    heading = "[...document.querySelectorAll('*')].filter(e => e.innerText == 'Each parameter against val_acc_all')"
    shown.tab.until(f"{heading}.length > 0 && ({heading}.pop().scrollIntoView(), true)")
    shown.tab.until("document.body.innerText.includes('log10_lr vs. val_acc_all')")
    shown.tab.until("document.querySelectorAll('.js-plotly-plot .scatterlayer .point').length > 10")


def test_selected_runs_are_compared_in_parallel_coordinates(shown: Shown):
    shown.visit("runs, best first", TABLE)
    hrefs = [href for name, href in shown.tab.ask(LINKS) if name.startswith("los")][:5]
    runs = [href.partition("/runs/")[2].partition("?")[0] for href in hrefs]
    experiment = hrefs[0].partition("/experiments/")[2].partition("/")[0]
    query = f"?runs={json.dumps(runs)}&experiments={json.dumps([experiment])}"
    page = f"{hrefs[0].partition('#')[0]}#/compare-runs{query}"
    shown.visit(page, "document.querySelectorAll('.js-plotly-plot .parcoords').length > 0")
    titles = "[...document.querySelectorAll('.js-plotly-plot svg text')].map(e => e.textContent)"
    shown.tab.until(f"{titles}.includes('log10_lr')")


def test_the_note_of_the_sweep_names_the_winner(shown: Shown):
    shown.visit("the sweep's run", "document.body.innerText.includes('Winner')")
    text = shown.text()
    assert "Ranked by acc_all on val, last epoch, mean of 3 seeds" in text
    assert "load_model" in text
    assert "digits_lt" in text
    cells = shown.tab.ask("[...document.querySelectorAll('table th')].map(e => e.innerText)")
    assert "best of 3" in cells, "the Markdown table is rendered"
    shown.keep("note")


def test_the_note_of_a_trial_explains_its_metrics(shown: Shown):
    shown.visit("runs, best first", TABLE)
    href = next(href for name, href in shown.tab.ask(LINKS) if name.startswith("los"))
    shown.visit(href, "document.body.innerText.includes('Ranked by acc_all on val')")
    assert re.search(r"los, a (trial of the search|finalist)", shown.text())


@pytest.mark.parametrize(
    ("file", "there"),
    [
        ("loma.png", "[...document.images].some(e => e.naturalWidth > 500)"),
        ("per_class.csv", "document.body.innerText.includes('training_images')"),
        ("table.md", "document.body.innerText.includes('gain over vanilla')"),
        ("spec.yaml", "document.body.innerText.includes('small_cnn')"),
    ],
)
def test_artifacts_open(file: str, there: str, shown: Shown):
    page, _, query = shown.pages["the sweep's run"].partition("?")
    shown.visit(f"{page}/artifacts/{file}?{query}", there)
    shown.keep(f"artifact-{file.partition('.')[0]}")


def test_the_registry_describes_the_champions_input(shown: Shown):
    server = shown.pages["the sweep's run"].partition("#")[0]
    shown.visit(f"{server}#/models/digits", "document.body.innerText.includes('champion-head')")
    assert "Selected by acc_all on val" in shown.text()
    shown.visit(f"{server}#/models/digits/versions/2", "document.body.innerText.includes('uint8')")


def test_the_code_of_the_documentation_loads_the_champion(shown: Shown):
    (code,) = re.findall(r"^```python\n(.*?)^```", DOCS.read_text(), flags=re.MULTILINE | re.DOTALL)
    done = subprocess.run([sys.executable, "-c", code], cwd=shown.place, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Tensor('uint8', (-1, 8, 8, 1))" in done.stdout
    assert done.stdout.splitlines()[-1] == "(2, 10)"
