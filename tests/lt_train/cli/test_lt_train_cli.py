"""`lt-train` from images to a re-trained head, its exit codes, and its output for programs."""

import dataclasses
import importlib.metadata
import json
import logging
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file
from support.images import write_tree

from lt_train.cli.app import main, parse
from lt_train.retrain import fused
from lt_train.retrain.base import RunResult


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bank of features without a backbone: three separable classes of 120, 40 and 10 images, with a head."""
    folder = tmp_path_factory.mktemp("cli")
    rng = np.random.default_rng(0)
    centres = np.eye(3, 6) * 3

    def drawn(counts: list[int]) -> tuple[Any, Any]:
        labels = np.repeat(np.arange(3), counts)
        return (centres[labels] + rng.normal(size=(len(labels), 6))).astype(np.float32), labels

    (train, train_labels), (test, test_labels), (val, val_labels) = (
        drawn([120, 40, 10]),
        drawn([50] * 3),
        drawn([9] * 3),
    )
    arrays = {"train_features": train, "train_labels": train_labels, "val_features": val, "val_labels": val_labels}
    head = np.eye(3, 6, dtype=np.float32)
    np.savez(folder / "mine.npz", test_features=test, test_labels=test_labels, weight=head, **arrays)
    assert main(["features", "--dataset", "arrays", f"path={folder}/mine.npz", "--store", f"{folder}/banks"]) == 0
    (path,) = (folder / "banks").iterdir()
    return path


def output(capsys: pytest.CaptureFixture[str], line: str) -> Any:
    assert main([*shlex.split(line), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_from_images_to_a_head(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = "--dataset digits_lt imbalance_ratio=20"
    trained = output(
        capsys, f"backbone {dataset} --backbone small_cnn width=4 --recipe ce epochs=2 --out {tmp_path}/c.safetensors"
    )
    assert trained["checkpoint"] == f"{tmp_path}/c.safetensors"
    assert list(trained["accuracy"]) == ["all", "many", "medium", "few"]
    command = shlex.split(
        f"features {dataset} --checkpoint {tmp_path}/c.safetensors --store {tmp_path}/banks --views 2"
    )
    assert main(command) == 0
    path = capsys.readouterr().out.strip()
    assert (Path(path) / "manifest.json").is_file()
    found = output(capsys, shlex.join(command))
    assert (found["bank"], found["train"], found["test"]) == (path, [2, 369, 16], [1, 500, 16])
    assert (found["dtype"], found["pace"]) == ("float32", None)  # the bank exists
    half = output(capsys, shlex.join([*command, "--dtype", "float16", "--unreadable", "skip"]))
    assert (half["bank"] != path, half["dtype"], half["pace"]["images"]) == (True, "float16", 2 * 369 + 140 + 500)
    assert sum(half["pace"]["shares"].values()) == pytest.approx(1)
    assert half["pace"]["images_per_second"] == pytest.approx(half["pace"]["images"] / half["pace"]["seconds"])
    evaluated = output(capsys, f"evaluate --bank {path}")
    assert evaluated["accuracy"]["all"] == pytest.approx(trained["accuracy"]["all"], abs=0.011)


def test_features_of_an_imported_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file(torchvision.models.resnet18(num_classes=10).state_dict(), tmp_path / "theirs.safetensors")
    model = f"imported factory=torchvision:resnet18 checkpoint={tmp_path}/theirs.safetensors"
    command = f"features --dataset digits_lt --store {tmp_path}/banks --backbone {model}"
    found = output(capsys, shlex.join([*shlex.split(command), 'arguments={"num_classes": 10}']))
    assert found["train"] == [1, 369, 512]
    assert "122 of the model's 122 tensors match; the head starts from fc [10, 512]" in found["notes"][-1]
    assert main(shlex.split(command)) == 2
    assert "with another shape: fc.weight [10, 512] where the model has [1000, 512]" in capsys.readouterr().err


def test_models_of_a_package_need_allow_import(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").write_text(
        "from torch import nn\ndef net(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    save_file(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)).state_dict(), tmp_path / "net.st")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    environment.pop("LT_ALLOW_IMPORT", None)
    model = ["imported", "factory=mine:net", "checkpoint=net.st", "mean=[0.5]", "std=[0.5]"]
    program = [sys.executable, "-P", "-m", "lt_train"]
    command = [*program, "features", "--dataset", "digits_lt", "--backbone", *model]
    refused = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "a package that --allow-import names, got mine:net" in refused.stderr
    command += ["--allow-import", "mine"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "the head starts from 1 [10, 64]" in done.stderr


@pytest.mark.parametrize("engine", ["fused", "reference"])
def test_retrain_writes_the_head_that_evaluate_reads(
    bank: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], engine: str
) -> None:
    head = tmp_path / "head.safetensors"
    method = "--method los smooth_factor=0.9 lr=5e-2 --epochs 3 --seeds 2 --epoch best --select test"
    result = output(capsys, f"retrain --bank {bank} {method} --engine {engine} --out {head}")
    assert [run["seed"] for run in result["runs"]] == [0, 1]
    assert result["mean"]["all"] == pytest.approx(np.mean([run["test"]["all"] for run in result["runs"]]))
    best = max(result["runs"], key=lambda run: run["selected_on"])
    assert result["best_seed"] == best["seed"]
    evaluated = output(capsys, f"evaluate --bank {bank} --head {head}")
    assert evaluated["accuracy"] == pytest.approx(best["test"])
    before = output(capsys, f"evaluate --bank {bank}")
    assert before["accuracy"]["all"] != evaluated["accuracy"]["all"]
    assert all(value > 0 for value in evaluated["loma"].values())


def test_results_are_printed_as_tables(bank: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["retrain", "--bank", str(bank), "--method", "vanilla", "--seeds", "1"]) == 0
    assert "mean" in capsys.readouterr().out
    assert main(["evaluate", "--bank", str(bank)]) == 0
    assert "regularised_std" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "retrain --bank BANK --method los smooth_factr=0.9",
            "los.smooth_factr: unknown key; did you mean 'smooth_factor'",
        ),
        ("retrain --bank BANK --method los smooth_factor", "must be written as name=value, got 'smooth_factor'"),
        ("retrain --bank BANK --method lost", "'lost' is unknown; did you mean 'los'?"),
        ("retrain --bank /nowhere --method los", "/nowhere is not a feature bank"),
        ("retrain --bank BANK --method los --device warp", "device must be cpu, cuda or cuda:N"),
        ("retrain --bank /nowhere --method lss --device cuda:99", "device cuda:99 is not available: this machine has"),
        ("retrain --bank BANK --method los kind=vanilla", "the kind is los, got also kind=vanilla"),
        ("retrain --bank BANK --method los --out .", ". is a directory, but the output must be a file"),
        (
            "features --dataset digits_lt --backbone imported classifier=[a,b]",
            """classifier: must be JSON, as in 'classifier=["a", "b"]', got [a,b]""",
        ),
        (
            "features --dataset digits_lt --backbone imported 'arguments={a: 1}'",
            """arguments: must be JSON, as in 'arguments={"a": true}', got {a: 1}""",
        ),
        ("evaluate --bank BANK --head /nowhere.safetensors", "head /nowhere.safetensors does not exist"),
        ("features --dataset digits_lt", "digits_lt contains images and needs a checkpoint"),
        ("features --dataset digits_lt --checkpoint /nowhere", "checkpoint /nowhere does not exist"),
        ("backbone --dataset arrays path=/nowhere.npz --out OUT", "path /nowhere.npz does not exist"),
        ("backbone --dataset digits_lt --recipe ce lr=-1 --out OUT", "ce.lr"),
        ("backbone --dataset digits_lt --out .", ". is a directory, but the output must be a file; add a file name"),
        ("backbone --dataset digits_lt --out ..", ".. is a directory"),
        ("backbone --dataset digits_lt --out /", "/ is a directory"),
        ("backbone --dataset digits_lt --out " + "x" * 250, "a file name must be at most 220 bytes long, got 250"),
    ],
)
def test_invalid_input_exits_with_2_and_names_the_rule(
    bank: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, message: str
) -> None:
    words = shlex.split(line.replace("BANK", str(bank)).replace("OUT", f"{tmp_path}/out"))
    assert main(words) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "Missing command"),
        ("retrain", "Missing option '--bank'"),
        ("retrain --bank x --method los --seeds 0", "--seeds"),
        ("retrain --bank x --method los --engine quick", "--engine"),
        ("retrain --bank x --method los --select", "--select"),
        ("evaluate --bnk x", "--bnk"),
        ("backbone --dataset digits_lt --out x --save-every inf", "must be at least 0, got inf"),
        ("features --dataset a --checkpoint c --backbone b", "--checkpoint and --backbone cannot be used together"),
    ],
)
def test_usage_errors_exit_with_2(line: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(shlex.split(line)) == 2
    printed = capsys.readouterr().err
    assert "Error: " in printed
    assert message in printed


def test_a_component_takes_all_words_up_to_the_next_option() -> None:
    given = parse(
        shlex.split("backbone --recipe=ce epochs=2 lr=-1 --out ~/x --dataset digits_lt imbalance_ratio=20 --json")
    )
    assert [*given["dataset"]] == ["digits_lt", "imbalance_ratio=20"]
    assert [*given["recipe"]] == ["ce", "epochs=2", "lr=-1"]
    assert [*given["backbone"]] == ["small_cnn"]
    assert (given["out"], given["as_json"]) == (Path("~/x").expanduser(), True)
    with pytest.raises(ValueError, match="No such option: --bnk"):
        parse(["evaluate", "--bnk", "x"])


@pytest.mark.parametrize("command", ["data check", "backbone", "features", "retrain", "evaluate"])
def test_help_shows_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command.split(), "-h"]) == 0
    assert f"Example:\n    lt-train {command} --" in capsys.readouterr().out


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == importlib.metadata.version("longtail-sweeps") + "\n"


def test_messages_are_printed_once_beside_a_handler_of_the_root_logger(capfd: pytest.CaptureFixture[str]) -> None:
    """Libraries call `logging.basicConfig`."""
    handler = logging.StreamHandler()
    logging.getLogger().addHandler(handler)
    try:
        assert main(shlex.split("evaluate --bank /nowhere")) == 2
    finally:
        logging.getLogger().removeHandler(handler)
    assert capfd.readouterr().err.count("/nowhere") == 1


def test_an_unwritable_place_exits_with_1(bank: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("in the way")
    line = f"retrain --bank {bank} --method vanilla --seeds 1 --out {tmp_path}/file/head.safetensors"
    assert main(shlex.split(line)) == 1
    assert f"cannot write {tmp_path}/file/head.safetensors" in capsys.readouterr().err


def test_an_interrupt_exits_with_130(bank: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lt_train.features.files.open_bank", interrupt)
    assert main(["evaluate", "--bank", str(bank)]) == 130


@pytest.fixture
def _handlers() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("_handlers")
def test_sigterm_exits_like_an_interrupt(bank: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def kill(*_: object, **__: object) -> None:
        assert signal.getsignal(signal.SIGTERM) not in (signal.SIG_DFL, None)  # otherwise it would end pytest
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    monkeypatch.setattr("lt_train.features.files.open_bank", kill)
    assert main(["evaluate", "--bank", str(bank)]) == 130


def test_a_closed_pipe_gives_no_traceback(bank: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "lt_train", "evaluate", "--bank", str(bank), "--json"],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


def test_help_does_not_import_torch() -> None:
    code = "import sys\nfrom lt_train.cli.app import main\nmain(['retrain', '--help'])\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def failing(monkeypatch: pytest.MonkeyPatch, seeds: set[int]) -> None:
    fit = fused.fit

    def fit_and_fail(bank: Any, runs: Any, *rest: Any) -> list[RunResult]:
        return [
            dataclasses.replace(result, kept=None, failure="loss is NaN") if run.seed in seeds else result
            for run, result in zip(runs, fit(bank, runs, *rest), strict=True)
        ]

    monkeypatch.setattr("lt_train.retrain.fused.fit", fit_and_fail)


def test_with_a_failed_seed_no_mean_is_shown(
    bank: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(monkeypatch, {1})
    line = f"retrain --bank {bank} --method los --epochs 1 --seeds 3"
    assert main([*shlex.split(line), "--json"]) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert "1 of 3 seeds failed (seed 1: loss is NaN); the mean over fewer seeds is not shown" in captured.err
    assert result["failed"] == 1
    assert set(result["mean"].values()) == {None}
    assert [run["failure"] for run in result["runs"]] == [None, "loss is NaN", None]
    assert result["best_seed"] != 1
    assert main(shlex.split(line)) == 0
    (mean,) = [row for row in capsys.readouterr().out.splitlines() if "mean" in row]
    assert "%" not in mean
    assert mean.count("-") == 4


def test_if_all_seeds_fail_it_exits_with_1(
    bank: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(monkeypatch, {0, 1})
    assert main(shlex.split(f"retrain --bank {bank} --method los --epochs 1 --seeds 2")) == 1
    captured = capsys.readouterr()
    assert "lt-train: 2 of 2 seeds failed (seed 0: loss is NaN; seed 1: loss is NaN)" in captured.err
    assert captured.out == ""


TREE = {"train": {"auk": 30, "crow": 12, "owl": 5}, "test": {"auk": 4, "crow": 4, "owl": 4}}


def test_data_check_prints_counts_and_splits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = f"data check --dataset image_folder root={write_tree(tmp_path, TREE)} size=8"
    found = output(capsys, f"{line} --plot {tmp_path}/sizes.png")
    assert found["parts"] == {"train": 38, "val": 9, "test": 12}
    assert (found["classes"], found["class_counts"], found["imbalance_ratio"]) == (3, [30, 12, 5], 6.0)
    assert found["class_names"] == ["auk", "crow", "owl"]
    assert found["splits"]["medium"] == {"classes": 1, "images": 30}
    assert found["splits"]["few"] == {"classes": 2, "images": 17}
    assert found["wrong"] == []
    assert (tmp_path / "sizes.png").read_bytes().startswith(b"\x89PNG")
    assert main(shlex.split(line)) == 0
    shown = capsys.readouterr()
    assert "3 classes, 47 training images before any hold-out, largest 30, smallest 5, imbalance ratio 6" in shown.out
    assert "many 0 (0), medium 1 (30), few 2 (17)" in shown.out
    bars = {row.split()[0]: row.count("#") for row in shown.out.splitlines() if "#" in row}
    assert list(bars) == ["auk", "crow", "owl"]
    assert bars["crow"] == pytest.approx(bars["auk"] * 12 / 30, abs=1)
    assert shown.out.isascii()
    assert "checking every image: 59/59 images" in shown.err


def test_data_check_decodes_every_image_and_exits_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = {"train/auk/01.jpg": "empty", "train/owl/02.jpg": "truncated", "test/auk/00.jpg": "page"}
    root = write_tree(tmp_path, TREE, broken)
    (root / "train/crow/03.jpg").write_bytes(b"\xff\xd8\xff" + b"\0" * 90 + b"\xff\xd9")
    (root / "train/dodo").mkdir()
    line = f"data check --dataset image_folder root={root} size=8 bad_images=skip"
    assert main([*shlex.split(line), "--json"]) == 2
    captured = capsys.readouterr()
    wrong = {finding["what"]: finding for finding in json.loads(captured.out)["wrong"]}
    assert wrong["train images are empty (0 bytes)"]["names"] == ["train/auk/01.jpg"]
    assert wrong["train images are unreadable"]["count"] == 2
    assert wrong["test images are unreadable"]["names"] == ["test/auk/00.jpg (not an image of a known format)"]
    (gap,) = [finding for what, finding in wrong.items() if "classes have no training images" in what]
    assert gap["names"] == ["2 (dodo)"]
    assert "lt-train: dataset image_folder is invalid: 4 findings" in captured.err
    assert main(shlex.split(line)) == 2
    shown = capsys.readouterr().out
    assert "- train images are unreadable: 2\n    train/crow/03.jpg (" in shown
    (root / "train/dodo").rmdir()
    assert main([*shlex.split(line), "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["class_counts"] == [29, 11, 4]


def test_data_check_names_missing_images_and_labels_out_of_range(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tree(tmp_path, TREE)
    (tmp_path / "train.txt").write_text("train/auk/00.jpg 0\ntrain/crow/00.jpg 1\ntrain/crow/99.jpg 1\n")
    (tmp_path / "test.txt").write_text("test/auk/00.jpg 0\ntest/owl/00.jpg 2\n")
    assert main(shlex.split(f"data check --dataset image_list root={tmp_path} size=8")) == 2
    shown = capsys.readouterr().out
    assert "- train images are missing: 1\n    train/crow/99.jpg\n" in shown
    assert "the classes of the training set: 1\n    test/owl/00.jpg has 2\n" in shown


def test_data_check_names_images_that_are_listed_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tree(tmp_path, TREE)
    lines = [f"train/{name}/0{k}.jpg {label}" for label, name in enumerate(TREE["train"]) for k in range(3)]
    (tmp_path / "train.txt").write_text("\n".join([*lines, "train/owl/01.jpg 0"]))
    (tmp_path / "test.txt").write_text("train/crow/02.jpg 1\ntest/owl/00.jpg 2\n")
    assert main(shlex.split(f"data check --dataset image_list root={tmp_path} size=8 --json")) == 2
    wrong = json.loads(capsys.readouterr().out)["wrong"]
    assert [(finding["what"], finding["names"]) for finding in wrong] == [
        ("train contains images more than once", ["train/owl/01.jpg"]),
        ("train and test share images", ["train/crow/02.jpg"]),
    ]


def test_data_check_names_classes_without_test_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree = {"train": TREE["train"], "val": TREE["test"], "test": {"crow": 4}}
    line = f"data check --dataset image_folder root={write_tree(tmp_path, tree)} size=8"
    for name in ("auk", "owl"):
        (tmp_path / "test" / name).mkdir()
    assert main(shlex.split(line)) == 0
    note = "2 classes have no test image and are not part of any test accuracy: 0 (auk), 2 (owl)"
    assert note in capsys.readouterr().err
    assert note in output(capsys, line)["notes"]


def test_data_check_reports_a_huge_label(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, labels = np.zeros((4, 6, 6), np.uint8), np.array([0, 0, 1, 2**40])
    np.savez(tmp_path / "a.npz", train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    assert main(shlex.split(f"data check --dataset arrays path={tmp_path}/a.npz")) == 2
    assert "and class 2 has none (1099511627774 of" in capsys.readouterr().out


def test_data_check_works_for_other_datasets(capsys: pytest.CaptureFixture[str]) -> None:
    assert output(capsys, "data check --dataset digits_lt")["class_counts"] == [110, 78, 56, 40, 29, 20, 14, 10, 7, 5]
    assert main(shlex.split("data check --dataset arrays path=/nowhere.npz --json")) == 2
    assert json.loads(capsys.readouterr().out)["wrong"][0]["what"].startswith("path /nowhere.npz does not exist")


@pytest.mark.parametrize("augmentation", ["", "augmentation=resized_crop"])
def test_images_in_files_and_in_memory_give_the_same_checkpoint_and_bank(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], augmentation: str
) -> None:
    root, made = write_tree(tmp_path / "birds", TREE), []
    for name, in_memory in (("files", 0), ("memory", 2**30)):
        dataset = f"--dataset image_folder root={root} size=8 in_memory={in_memory} {augmentation}"
        checkpoint = tmp_path / f"{name}.safetensors"
        output(capsys, f"backbone {dataset} --backbone small_cnn width=4 --recipe ce epochs=2 --out {checkpoint}")
        # The same checkpoint and separate stores, so that the bank is extracted twice.
        first = tmp_path / "files.safetensors"
        found = output(capsys, f"features {dataset} --checkpoint {first} --store {tmp_path}/{name} --views 2")
        assert (found["train"], found["val"], found["test"]) == ([2, 38, 16], [2, 9, 16], [2, 12, 16])
        bank = Path(found["bank"])
        tensors = load_file(checkpoint)
        made.append((bank.name, (bank / "train.safetensors").read_bytes(), (bank / "test.safetensors").read_bytes()))
        made[-1] += tuple(tensor.numpy().tobytes() for _, tensor in sorted(tensors.items()))
    assert made[0] == made[1]
