"""Every command prints one JSON document where it is asked to, and nothing else on standard output.

The commands are found in the parsers, so that a new one is asked for a case here.
"""

from __future__ import annotations

import argparse
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.features import write_features

import lt_train.cli.main
import sweeps.cli.main
from lt_train.datasets.base import DATASETS
from lt_train.features.extract import FeaturesSpec, build_bank

PROGRAMS = {"lt-sweep": sweeps.cli.main, "lt-train": lt_train.cli.main}

SERVES = {"lt-sweep ui"}
"""Serves until it is stopped, and has nothing to say to a program."""

ON_A_CLUSTER = {"lt-sweep submit", "lt-sweep logs"}
"""Ask a cluster alone: tests/sweeps/cluster/test_jobs.py has their documents."""

ALONE = {"version": 1, "dataset": {"kind": "arrays", "path": "features.npz"}, "backend": "inline", "tracking": "none"}

CASES: dict[str, str] = {
    "lt-sweep validate": "small.yaml",
    "lt-sweep plan": "small.yaml",
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
    "lt-train data check": "--dataset digits_lt",
    "lt-train backbone": "--dataset digits_lt --backbone small_cnn width=4 --recipe ce epochs=1 --out made.safetensors",
    "lt-train features": "--dataset arrays path=features.npz",
    "lt-train retrain": "--bank banks/BANK --method ce --epochs 1 --seeds 2",
    "lt-train evaluate": "--bank banks/BANK",
}


def leaves(parser: argparse.ArgumentParser, name: str) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Every command below a parser that has no commands of its own."""
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not below:
        yield name, parser
    for action in below:
        for word, inner in action.choices.items():
            yield from leaves(inner, f"{name} {word}")


COMMANDS = {
    name: parser for program, module in PROGRAMS.items() for name, parser in leaves(module.build_parser(), program)
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features, a bank of them, and finished sweeps in `runs`."""
    found = tmp_path_factory.mktemp("json")
    write_features(found / "features.npz")
    dataset = DATASETS.parse({"kind": "arrays", "path": str(found / "features.npz")})
    build_bank(dataset, None, FeaturesSpec(), found / "banks")
    for name in ("small", "other", "new"):
        document: dict[str, Any] = ALONE | {
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
            sweeps.run(sweeps.load(found / f"{name}.yaml"))
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
def test_every_command_that_has_something_to_say_says_it_as_json(command: str) -> None:
    flags = [flag for action in COMMANDS[command]._actions for flag in action.option_strings]
    assert "--json" in flags
    assert command in CASES or command in ON_A_CLUSTER, "a new command has a case here"


@pytest.mark.parametrize("command", sorted(set(CASES) & set(COMMANDS)))
def test_it_is_one_document_and_alone_on_standard_output(
    command: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    (bank,) = (place / "banks").glob("[0-9a-f]*")
    program, *words = f"{command} {CASES[command]}".replace("BANK", bank.name).split()
    capsys.readouterr()
    assert PROGRAMS[program].main([*words, "--json"]) == 0
    shown = capsys.readouterr()
    document = json.loads(shown.out)
    assert isinstance(document, dict | list)
    assert document
