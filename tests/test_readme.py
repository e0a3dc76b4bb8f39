"""What the README tells people to type is understood: commands, targets, the sweep file, the Python lines."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

import lt_train.cli
import sweeps
import sweeps.cli
from sweeps.family import load_file
from sweeps.spec import SweepSpec

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
COMMANDS = sorted(
    {
        line.split("#")[0].strip()
        for _, text in BLOCKS
        for line in text.splitlines()
        if re.match(r"\s*(lt-sweep|lt-train|make) ", line)
    }
)


def test_there_is_something_to_check():
    assert len(COMMANDS) >= 8
    assert {language for language, _ in BLOCKS} >= {"yaml", "python"}


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("make")])
def test_make_targets_exist(command: str):
    shown = subprocess.run([*command.split(), "--dry-run"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("lt-")])
def test_commands_parse(command: str):
    program, *arguments = command.split()
    parser = (sweeps.cli if program == "lt-sweep" else lt_train.cli).build_parser()
    parser.parse_args(arguments)


@pytest.mark.parametrize("text", [text for language, text in BLOCKS if language == "yaml"])
def test_every_sweep_file_is_valid(text: str, tmp_path: Path):
    file = tmp_path / "sweep.yaml"
    file.write_text(text)
    assert f"name: {load_file(file).name}\n" in text


def test_the_python_lines_run(monkeypatch: pytest.MonkeyPatch, small_sweep, capsys: pytest.CaptureFixture[str]):
    (text,) = [text for language, text in BLOCKS if language == "python"]
    spec: SweepSpec = small_sweep()
    monkeypatch.chdir(ROOT)
    # The lines as they are, on a sweep of seconds instead of the demo.
    monkeypatch.setattr("sweeps.spec.load_sweep", lambda file: spec)
    exec(compile(text, "README.md", "exec"), {})
    assert "smooth_factor" in capsys.readouterr().out


@pytest.mark.parametrize("text", [text for _, text in BLOCKS if text.startswith("lt-sweep plan sweeps/specs/")])
def test_the_plans_are_what_plan_prints(
    text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    command, _, table = text.partition("\n")
    monkeypatch.setenv("HOME", str(tmp_path))  # where no data lies
    monkeypatch.chdir(ROOT)
    assert sweeps.cli.main(command.split()[1:]) == 0
    assert "\n".join(line.rstrip() for line in capsys.readouterr().out.splitlines()) + "\n" == table


def test_every_ready_sweep_of_the_paper_has_its_plan():
    planned = {word for command in COMMANDS if command.startswith("lt-sweep plan sweeps/") for word in command.split()}
    for name in ("cifar100_lt_ir10", "cifar100_lt_ir50", "cifar100_lt_ir100", "imagenet_lt", "inaturalist18", "table4"):
        assert f"sweeps/specs/{name}.yaml" in planned
