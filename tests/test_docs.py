"""What the pages in docs/ and infra/README.md tell people to type is understood, and what they point at is there."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

import lt_train.cli
import sweeps
import sweeps.cli

ROOT = Path(__file__).parents[1]
PAGES = sorted([*(ROOT / "docs").glob("*.md"), ROOT / "infra" / "README.md"])
MADE = ("infra/kuberay/secrets", "infra/mlflow/secrets")
"""Places that a command before makes."""


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and text of every fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def lines() -> list[tuple[str, str]]:
    """Page and command of every line that is to be typed; a line that ends in a backslash goes on."""
    found = []
    for page in PAGES:
        for language, text in blocks(page):
            if language in ("", "sh", "bash"):
                joined = text.replace("\\\n", " ")
                found += [(page.name, line.split(" #")[0].strip()) for line in joined.splitlines() if line.strip()]
    return found


LINES = lines()


def test_there_is_something_to_check() -> None:
    assert {"cluster.md", "security.md", "README.md"} <= {page.name for page in PAGES}
    assert len([line for _, line in LINES if line.startswith("lt-sweep ")]) >= 8


@pytest.mark.parametrize(("page", "line"), [one for one in LINES if one[1].startswith(("lt-sweep ", "lt-train "))])
def test_our_commands_parse(page: str, line: str) -> None:
    program, *arguments = shlex.split(line)
    (sweeps.cli if program == "lt-sweep" else lt_train.cli).build_parser().parse_args(arguments)


@pytest.mark.parametrize(("page", "line"), [one for one in LINES if one[1].startswith("make ")])
def test_make_targets_exist(page: str, line: str) -> None:
    shown = subprocess.run([*line.split(), "--dry-run"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr


@pytest.mark.parametrize(("page", "line"), LINES)
def test_files_that_a_command_names_are_there(page: str, line: str) -> None:
    for word in re.findall(r"(?<![\w/.-])(?:infra|docs|tests|sweeps|lt_train)/[\w./-]+", line):
        assert word.startswith(MADE) or (ROOT / word).exists(), word


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_names_in_the_text_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = {re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-") for line in re.findall(r"^#+ (.+)$", text, re.M)}
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("#"):
            assert target[1:] in headings, target
        elif "://" not in target:
            assert (page.parent / target.partition("#")[0]).exists(), target
    for name in re.findall(r"`((?:infra|docs|tests|sweeps|lt_train)/[^` ]+)`", text):
        path, _, test = name.partition("::")
        assert path.startswith(MADE) or (ROOT / path).exists(), name
        assert not test or f"def {test}(" in (ROOT / path).read_text(), name


@pytest.mark.parametrize(
    ("page", "text"), [(page.name, text) for page in PAGES for language, text in blocks(page) if language == "yaml"]
)
def test_every_sweep_file_is_valid(page: str, text: str, tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(text)
    assert f"name: {sweeps.load(file).name}\n" in text


def test_packs_of_the_sweep_file_fit_the_cluster_on_one_machine() -> None:
    page = (ROOT / "docs" / "cluster.md").read_text()
    (offered,) = re.findall(r"^python infra/local/cluster\.py up .*--cpus (\d+)$", page, flags=re.MULTILINE)
    (wanted,) = re.findall(r"^resources: \{cpus_per_pack: (\d+)\}$", page, flags=re.MULTILINE)
    assert int(wanted) <= int(offered)


def test_every_folder_of_infra_is_in_its_table() -> None:
    text = (ROOT / "infra" / "README.md").read_text()
    folders = {path.name for path in (ROOT / "infra").iterdir() if path.is_dir() and not path.name.startswith("_")}
    assert {*re.findall(r"^\| `(\w+)`", text, flags=re.MULTILINE)} == folders
