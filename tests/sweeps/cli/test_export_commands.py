"""`lt-sweep export` and `lt-sweep predict`: files, output and exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import load_file
from support.images import write_tree

import sweeps
from sweeps.cli.app import main
from sweeps.config.spec import SweepSpec, load_resolved

pytestmark = pytest.mark.slow

MakeSweep = Callable[..., SweepSpec]


def test_export_writes_a_file_and_refuses_what_it_cannot_write(
    small_sweep: MakeSweep, features_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = small_sweep(search={"trials": 1})
    sweeps.run(spec)
    run = str(Path(spec.storage) / "small")
    assert main(["export", run, "--format", "safetensors", "--trial", "baseline-vanilla", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["trial"], printed["seed"]) == ("baseline-vanilla", 0)
    file = Path(printed["file"])
    assert file == Path(run).resolve() / "export" / "safetensors" / "model.safetensors"
    np.testing.assert_array_equal(load_file(file)["bias"].numpy(), np.load(features_file)["bias"])
    for arguments, problem in {
        ("--format", "safetensors"): "has an earlier export",
        ("--format", "h5"): "format must be one of state_dict, safetensors, pt2, onnx, got 'h5'",
        ("--trial", "search-9999"): "got 'search-9999'",
    }.items():
        assert main(["export", run, *arguments]) == 2
        assert problem in capsys.readouterr().err
    assert main(["export", run, "--format", "safetensors", "--force"]) == 0
    assert "model.safetensors: los, trial 0, seed " in capsys.readouterr().out


def test_predict_prints_or_writes_a_csv(
    small_sweep: MakeSweep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    classes = {"auk": 6, "owl": 3}
    birds = write_tree(tmp_path / "birds", dict.fromkeys(("train", "val", "test"), classes))
    changed = {
        "dataset": {"kind": "image_folder", "root": str(birds), "size": 8},
        "backbone": {"kind": "small_cnn", "width": 4},
        "stage1": {"kind": "ce", "epochs": 1},
        "search": {"trials": 1, "space": {"method.lr": {"loguniform": [1e-2, 1.0]}}},
    }
    spec = load_resolved(small_sweep().resolved() | changed)
    sweeps.run(spec)
    command = ["predict", str(Path(spec.storage) / "small"), str(birds / "test")]
    capsys.readouterr()
    assert main(command) == 0
    printed = capsys.readouterr().out
    out = tmp_path / "found" / "predictions.csv"
    assert main([*command, "--out", str(out)]) == 0
    assert out.read_text() == printed
    assert capsys.readouterr().out == f"{out}: 9 images\n"
    assert list(pd.read_csv(out).columns) == ["file", "class", "probability", "p_auk", "p_owl"]
    assert main([*command, "--out", str(out)]) == 2
    assert f"{out} exists; give another --out, or replace it with --force" in capsys.readouterr().err
    assert main([*command, "--out", str(out), "--force", "--top", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"file": str(out), "images": 9}
    assert list(pd.read_csv(out).columns) == ["file", "class", "probability"]
    assert main([*command, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert (len(rows), [*rows[0]]) == (9, ["file", "class", "probability", "p_auk", "p_owl"])
