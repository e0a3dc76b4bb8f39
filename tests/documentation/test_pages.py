"""Every page: its commands are run, or are known to be run elsewhere; its files are valid."""

from __future__ import annotations

import itertools
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from documentation.elsewhere import ELSEWHERE, typed_in
from documentation.fakes import write_fakes
from documentation.pages import PAGES, ROOT, blocks, commands, page_name, prose
from documentation.running import alike, run_here, walk, without_notes

import lt_train.cli.app
import sweeps
import sweeps.cli.app
from sweeps.config.matrix import load_file

pytestmark = pytest.mark.slow

MADE = ("infra/kuberay/secrets", "infra/mlflow/secrets")
"""Places that a command before makes."""

TYPED = [
    (page_name(page), command) for page in PAGES for block in blocks(page.read_text()) for command in commands(block)
]
RUN = sorted({page for page, command in TYPED if typed_in(page)(command)} - {"docs/tutorial.md"})
PARSERS = {"lt-sweep": sweeps.cli.app.parse, "lt-train": lt_train.cli.app.parse}

pages = pytest.mark.parametrize("page", PAGES, ids=page_name)


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reader's home and directory at once, in which everything lies that the pages speak of."""
    return write_fakes(tmp_path_factory.mktemp("reader").resolve())


@pytest.mark.parametrize("page", RUN)
def test_its_commands_run_from_the_first_to_the_last(
    page: str, place: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    monkeypatch.setenv("HOME", str(place))
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.chdir(place)
    found = blocks((ROOT / page).read_text())
    said = {block.start: after.text for block, after in itertools.pairwise(found) if after.language == "text"}
    for block, printed in walk(found, place, how=run_here, typed=typed_in(page)):
        if text := said.get(block.start):
            shown = printed if "note: " in text else without_notes(printed)
            assert shown == text if "--tflops" in block.text else alike(shown, text), printed  # that measures nothing


def test_every_command_that_is_run_elsewhere_stands_in_a_page() -> None:
    assert {(page, command) for page, some in ELSEWHERE.items() for command in some} <= {*TYPED}


def test_tests_that_run_commands_elsewhere_are_there_and_speak_of_them() -> None:
    """Of our own commands also: the file of the tests has the word and every option, as a shell would have them."""
    for some in ELSEWHERE.values():
        for command, tests in some.items():
            if isinstance(tests, str):
                continue
            sources = [(ROOT / test.partition("::")[0]).read_text() for test in tests]
            for test, source in zip(tests, sources, strict=True):
                assert f"def {test.partition('::')[2]}(" in source, test
            if command.startswith("lt-sweep ") and "test_the_page" not in tests[0]:
                words = [word for word in shlex.split(command)[1:] if word.startswith("--")]
                for word in [shlex.split(command)[1], *words]:
                    assert any(f'"{word}"' in source for source in sources), (word, tests)


@pytest.mark.parametrize(("page", "command"), [one for one in TYPED if one[1].split()[0] in PARSERS])
def test_our_commands_parse(page: str, command: str) -> None:
    program, *arguments = shlex.split(command)
    PARSERS[program](arguments)  # raises if it does not parse


@pytest.mark.parametrize(("page", "command"), [one for one in TYPED if one[1].startswith("make ")])
def test_make_targets_exist(page: str, command: str) -> None:
    shown = subprocess.run([*command.split(), "--dry-run"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr


@pages
def test_commands_named_in_sentences_exist(page: Path) -> None:
    for program, rest in re.findall(r"`(lt-sweep|lt-train|make) ([^`]+)`", prose(page.read_text())):
        words = rest.split()
        if program == "make":
            assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE), rest
            continue
        words = [*itertools.takewhile(str.isalpha, words[: 1 + (words[0] == "data")])]
        PARSERS[program]([*words, "--help"])  # raises if there is no such command


@pytest.mark.parametrize(("page", "command"), TYPED)
def test_files_that_a_command_names_are_there(page: str, command: str) -> None:
    for word in re.findall(r"(?<![\w/.-])(?:infra|docs|tests|sweeps|lt_train)/[\w./-]+", command):
        assert word.startswith(MADE) or (ROOT / word).exists(), word


@pages
def test_names_in_the_text_are_there(page: Path) -> None:
    """Paths and tests of the repository. `test_site.py` checks links and anchors."""
    for name in re.findall(r"`((?:infra|docs|tests|sweeps|lt_train)/[^` ]+)`", prose(page.read_text())):
        path, _, test = name.partition("::")
        assert path.startswith(MADE) or (ROOT / path).exists(), name
        assert not test or f"def {test}(" in (ROOT / path).read_text(), name


def sweep_files(page: Path) -> list[str]:
    """Those of a page, except for files that a command of the page runs with a module of the page."""
    found = blocks(page.read_text())
    with_code = [command for block in found for command in commands(block) if "--allow-import" in command]
    files = [block for block in found if block.language == "yaml"]
    return [block.text for block in files if not any(f" {block.file} " in command for command in with_code)]


@pytest.mark.parametrize(("page", "text"), [(page_name(page), text) for page in PAGES for text in sweep_files(page)])
def test_every_sweep_file_is_valid(page: str, text: str, tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    text = text.replace("mymodel.nets:SmallNet", "torchvision:resnet18")  # a package of the reader's own
    file.write_text(text)
    assert f"name: {load_file(file).name}\n" in text


def test_every_page_is_in_the_index_and_every_block_has_a_language() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    for page in (ROOT / "docs").rglob("*.md"):
        assert page.name == "README.md" or f"({page.relative_to(ROOT / 'docs').as_posix()})" in index, page
    for page in PAGES:
        assert all(block.language for block in blocks(page.read_text())), page


def test_packs_of_the_sweep_file_fit_the_cluster_on_one_machine() -> None:
    page = (ROOT / "docs" / "cluster.md").read_text()
    (offered,) = re.findall(r"^python infra/local/cluster\.py up .*--cpus (\d+)$", page, flags=re.MULTILINE)
    (wanted,) = re.findall(r"^resources: \{cpus_per_pack: (\d+)\}$", page, flags=re.MULTILINE)
    assert int(wanted) <= int(offered)


def test_every_folder_of_infra_is_in_its_table() -> None:
    text = (ROOT / "infra" / "README.md").read_text()
    folders = {path.name for path in (ROOT / "infra").iterdir() if path.is_dir() and not path.name.startswith("_")}
    assert {*re.findall(r"^\| `(\w+)`", text, flags=re.MULTILINE)} == folders


def test_every_command_of_infras_table_is_typed_in_a_page() -> None:
    text = (ROOT / "infra" / "README.md").read_text()
    listed = re.findall(r"^\| .* \| `([^`]+)` \|$", text, flags=re.MULTILINE)
    assert len(listed) >= 7
    assert [one for one in listed if not any(command.startswith(one) for _, command in TYPED)] == []


def test_every_ready_sweep_of_the_paper_has_its_plan() -> None:
    planned = {word for _, command in TYPED if command.startswith("lt-sweep plan sweeps/") for word in command.split()}
    for name in ("cifar100_lt_ir10", "cifar100_lt_ir50", "cifar100_lt_ir100", "imagenet_lt", "inaturalist18", "table4"):
        assert f"sweeps/specs/{name}.yaml" in planned


@pytest.mark.parametrize(
    ("page", "printed"),
    [("README.md", "'method.smooth_factor': "), ("docs/python.md", "wins with ")],
)
@pytest.mark.filterwarnings("ignore")  # Optuna marks some plots as experimental
def test_python_lines_run(
    page: str,
    printed: str,
    monkeypatch: pytest.MonkeyPatch,
    small_sweep,
    features_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """All of a page from the first to the last, as they are, on a sweep of seconds."""
    code = [block.text for block in blocks((ROOT / page).read_text()) if block.language == "python"]
    spec = small_sweep(name="mine", storage="runs").resolved()
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
    shutil.copy(features_file, tmp_path / "features.npz")
    monkeypatch.chdir(tmp_path)
    exec(compile("\n".join(code), page, "exec"), {})
    assert printed in capsys.readouterr().out
