"""With `--json`, every command prints one JSON document and nothing else to standard output.

The commands are listed by the command lines themselves, so that a new command without a case here fails.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from documentation.reference import leaves
from support.features import write_features

import lt_train.cli.app
import sweeps.cli.app
from lt_train.datasets.base import DATASETS
from lt_train.features.extract import build_bank
from lt_train.features.spec import FeaturesSpec

PROGRAMS: dict[str, Any] = {"lt-sweep": sweeps.cli.app, "lt-train": lt_train.cli.app}

SERVES = {"lt-sweep ui"}
"""Serves until it is stopped and prints no result."""

ON_A_CLUSTER = {"lt-sweep submit", "lt-sweep logs"}
"""Need a cluster: tests/sweeps/cluster/test_jobs.py checks their documents."""

ON_IMAGES = {"lt-sweep predict"}
"""Need a sweep on images: tests/sweeps/cli/test_export_commands.py checks their documents."""

SMALL = {"version": 1, "dataset": {"kind": "arrays", "path": "features.npz"}, "backend": "inline", "tracking": "none"}

CASES: dict[str, str] = {
    "lt-sweep validate": "small.yaml",
    "lt-sweep plan": "small.yaml",
    "lt-sweep demo": "",
    "lt-sweep kinds": "",
    "lt-sweep schema": "",
    "lt-sweep run": "new.yaml",
    "lt-sweep status": "runs/small",
    "lt-sweep list": "",
    "lt-sweep stop": "runs/small",
    "lt-sweep resume": "runs/small",
    "lt-sweep report": "runs/small",
    "lt-sweep compare": "runs/small runs/other",
    "lt-sweep table": "runs/small",
    "lt-sweep export": "runs/small --format safetensors",
    "lt-train data check": "--dataset digits_lt",
    "lt-train backbone": "--dataset digits_lt --backbone small_cnn width=4 --recipe ce epochs=1 --out made.safetensors",
    "lt-train features": "--dataset arrays path=features.npz",
    "lt-train retrain": "--bank banks/BANK --method ce --epochs 1 --seeds 2",
    "lt-train evaluate": "--bank banks/BANK",
}


COMMANDS = {
    name: command
    for program, module in PROGRAMS.items()
    for name, command in leaves(typer.main.get_command(module.app), program)
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features, a bank, and finished sweeps in `runs`."""
    found = tmp_path_factory.mktemp("json")
    write_features(found / "features.npz")
    dataset = DATASETS.parse({"kind": "arrays", "path": str(found / "features.npz")})
    build_bank(dataset, None, FeaturesSpec(), found / "banks")
    for name in ("small", "other", "new"):
        document: dict[str, Any] = SMALL | {
            "name": name,
            "dataset": {"kind": "arrays", "path": str(found / "features.npz")},
            "method": "los",
            "training": {"epochs": 1},
            "search": {"trials": 2, "space": {"method.lr": {"loguniform": [1e-3, 1e-1]}}},
            "selection": {"seeds": 2},
            "storage": str(found / "runs"),
        }
        (found / f"{name}.yaml").write_text(yaml.safe_dump(document))
        if name != "new":
            sweeps.run(sweeps.load_sweep(found / f"{name}.yaml"))
    return found


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def test_the_commands_are_found() -> None:
    assert len(COMMANDS) > 18
    assert {"lt-sweep run", "lt-train data check"} <= set(COMMANDS)


@pytest.mark.parametrize("command", sorted(set(COMMANDS) - SERVES))
def test_every_command_has_the_option_and_a_case_here(command: str) -> None:
    assert "--json" in [name for param in COMMANDS[command].params for name in param.opts]
    assert command in {*CASES, *ON_A_CLUSTER, *ON_IMAGES}


@pytest.mark.parametrize("command", sorted(set(CASES) & set(COMMANDS)))
def test_standard_output_is_one_document(
    command: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    if command == "lt-sweep demo":  # tests/documentation/test_demo.py runs the whole demo
        run, small = sweeps.run, sweeps.load_sweep("other.yaml")
        monkeypatch.setattr("sweeps.experiment.runner.run", lambda spec, fresh: run(small))
    (bank,) = (place / "banks").glob("[0-9a-f]*")
    program, *words = f"{command} {CASES[command]}".replace("BANK", bank.name).split()
    capsys.readouterr()
    assert PROGRAMS[program].main([*words, "--json"]) == 0
    shown = capsys.readouterr()
    document = json.loads(shown.out)
    assert isinstance(document, dict | list)
    assert document
