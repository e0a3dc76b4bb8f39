"""The Dockerfile, checked without building the image."""

from __future__ import annotations

import fnmatch
import re
import shlex
import tomllib

import pytest
from infra.manifests import INFRA, ROOT

DOCKERFILE = INFRA / "docker" / "Dockerfile"
INSTRUCTIONS = [
    tuple(line.split(maxsplit=1))
    for line in re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE)).splitlines()
    if line
]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def of(instruction: str) -> list[str]:
    return [rest for name, rest in INSTRUCTIONS if name == instruction]


def uv_options(text: str, command: str) -> set[str]:
    """The options of a uv command, except those for the Python and the verbosity."""
    (line,) = [
        line for line in text.splitlines() if re.search(rf"\buv\b.* pip {command}\b|\$\(UV\) pip {command}\b", line)
    ]
    words = shlex.split(line.partition(f"pip {command}")[2])
    return {word for word in words if word.startswith("--")} - {"--python", "--quiet", "--no-cache"}


def test_only_known_instructions_are_used() -> None:
    assert {name for name, _ in INSTRUCTIONS} == {"FROM", "RUN", "WORKDIR", "COPY", "USER", "CMD"}


def test_the_base_image_is_the_python_of_the_lock_file() -> None:
    (locked,) = set(re.findall(r"--python-version (\S+)", (ROOT / "Makefile").read_text()))
    for base in of("FROM"):
        assert base.split()[0] == f"python:{locked}-slim"
    assert PROJECT["project"]["requires-python"] == f">={locked}"


@pytest.mark.parametrize("command", ["sync", "install"])
def test_uv_has_the_options_of_the_makefile(command: str) -> None:
    wanted = uv_options((ROOT / "Makefile").read_text(), command)
    assert uv_options("\n".join(of("RUN")), command) == wanted
    assert "--require-hashes" in wanted or command == "install"


def test_copied_files_exist_and_are_sent_to_the_builder() -> None:
    ignore = (INFRA / "docker" / "Dockerfile.dockerignore").read_text().splitlines()
    patterns = [line for line in ignore if line and not line.startswith("#")]
    assert patterns[0] == "*"
    copied = {source for line in of("COPY") for source in line.split()[:-1]}
    for source in copied:
        assert (ROOT / source).exists()
        last = [pattern for pattern in patterns if fnmatch.fnmatch(source, pattern.removeprefix("!"))][-1]
        assert last == f"!{source}"
    assert {line.removeprefix("!") for line in patterns if line.startswith("!")} == copied
    assert {*PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]} <= copied
    assert PROJECT["project"]["readme"] in copied


def test_it_does_not_run_as_root() -> None:
    (user,) = of("USER")
    assert int(user) > 0
    assert any(f"useradd --uid {user} " in line for line in of("RUN"))
    last_run = max(index for index, (name, _) in enumerate(INSTRUCTIONS) if name == "RUN")
    assert [name for name, _ in INSTRUCTIONS].index("USER") > last_run
