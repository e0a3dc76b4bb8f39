"""Installs the built wheel into empty environments, outside the checkout, and uses it as a newcomer would.

Usage: python tools/check_install.py [CASE ...]

Cases: `core` (without extras) and `all` (with `[all]`) on the locked versions; `oldest-core` and `oldest-all` on the
oldest versions that pyproject.toml allows (requirements-oldest.lock). Each environment is removed afterwards. Needs uv
(`UV`, or on PATH) and the package registry or uv's cache.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
UV = os.environ.get("UV") or shutil.which("uv") or str(ROOT / ".tools" / "bin" / "uv")

CASES = {
    "core": ("", "requirements.lock"),
    "all": ("[all]", "requirements.lock"),
    "oldest-core": ("", "requirements-oldest.lock"),
    "oldest-all": ("[all]", "requirements-oldest.lock"),
}
"""Extras and the file of version constraints, by case."""

TYPED_SCRIPT = ROOT / "tools" / "typed_script.py"

EXPECTED = {"vanilla": 0.828, "ce": 0.828, "los": 0.902}
"""Test accuracy over all classes that the demo ends with, by method."""

COMMANDS = """
import typer, {package}.cli.app as cli
for name in sorted(typer.main.get_command(cli.app).commands):
    print(name)
"""


def run(command: list[str | Path], folder: Path, environment: dict[str, str]) -> str:
    """Run a command in `folder`; its standard output. Ends the program with all that it printed when it fails."""
    done = subprocess.run(
        [str(word) for word in command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} ended with {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def build(place: Path) -> Path:
    """The wheel, built from the source distribution, so that both are complete."""
    run([UV, "build", "--quiet", "--out-dir", place, ROOT], ROOT, dict(os.environ))
    (wheel,) = place.glob("*.whl")
    return wheel


def accuracies(result: Path) -> dict[str, float]:
    """Mean accuracy over all classes by method, from a `result.json`."""
    document = json.loads(result.read_text())
    rows = document["baselines"] | {document["winner"]["method"]: document["winner"]}
    return {name: round(row["mean"]["acc_all"]["value"], 4) for name, row in rows.items()}


def check(case: str, wheel: Path, place: Path) -> None:
    """One environment: install, import, every `--help`, the demo and a bundled sweep file."""
    extras, constraints = CASES[case]
    start = time.monotonic()
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment |= {"HOME": str(place), "OMP_NUM_THREADS": "2"}  # stage 1 depends on the number of threads
    venv = place / "venv"
    run([UV, "venv", "--quiet", "--python", sys.executable, venv], place, environment)
    install = [UV, "pip", "install", "--quiet", "--python", venv / "bin" / "python", "--constraint", ROOT / constraints]
    run([*install, f"longtail-sweeps{extras} @ {wheel.as_uri()}"], place, dict(os.environ))
    python, sweep, train = (venv / "bin" / name for name in ("python", "lt-sweep", "lt-train"))
    names = run([python, "-c", "import sweeps, lt_train; print(*dir(sweeps), sweeps.__version__)"], place, environment)
    for word in ("run", "open_sweep", "SweepSpec"):
        if word not in names.split():
            sys.exit(f"{case}: dir(sweeps) lacks {word}")
    for program, package in ((sweep, "sweeps"), (train, "lt_train")):
        run([program, "--version"], place, environment)
        for command in run([python, "-c", COMMANDS.format(package=package)], place, environment).split():
            run([program, command, "--help"], place, environment)
    run([train, "data", "check", "--help"], place, environment)
    run([sweep, "validate", "table1"], place, environment)
    printed = run([sweep, "demo"], place, environment)
    run([sweep, "run", "demo"], place, environment)  # by name; it is finished, so nothing is trained
    found = accuracies(place / "runs" / "demo" / "result.json")
    if found != EXPECTED:
        sys.exit(f"{case}: the demo ends with {found}, expected {EXPECTED}\n{printed}")
    check_types(case, python, place)
    print(f"{case}: installed and used in {time.monotonic() - start:.0f} s", flush=True)


def check_types(case: str, python: Path, place: Path) -> None:
    """`mypy --strict` accepts a script that uses the installed package, and finds what is wrong with another one."""
    script, wrong = place / "script.py", "\nresult.winnr\n"
    command = [sys.executable, "-m", "mypy", "--strict", "--python-executable", python, "--config-file=", script]
    for text, expected in (("", "Success"), (wrong, 'maybe "winner"')):
        script.write_text(TYPED_SCRIPT.read_text() + text)
        checked = subprocess.run(
            [str(word) for word in command], cwd=place, capture_output=True, text=True, check=False
        )
        if expected not in checked.stdout:
            sys.exit(f"{case}: mypy of a script{text and ' with a mistake'} prints\n{checked.stdout}{checked.stderr}")


def main(names: list[str]) -> int:
    """Check the named cases, or all."""
    with tempfile.TemporaryDirectory(prefix="lt-install-") as folder:
        wheel = build(Path(folder) / "dist")
        for case in names or CASES:
            place = Path(folder) / case
            place.mkdir()
            check(case, wheel, place)
            shutil.rmtree(place)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
