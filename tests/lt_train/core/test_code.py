"""The identity of code from outside: what changes it, and what does not."""

import importlib
import linecache
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lt_train.backbones.base import BACKBONES
from lt_train.core.code import _of_module, code_of
from lt_train.methods import LOS

CODE = '''
"""A module of a user."""
from typing import Annotated, ClassVar, Literal
from pydantic import Field
from lt_train.core.registry import Spec
from lt_train.losses import CrossEntropy
from lt_train.methods.base import METHODS, CrossEntropyMethod
import helpers.numbers

SCALE = 2.0
TABLE = {"a": [1.5]}
NAMES = frozenset({"weight", "bias", "scale"})

def smooth(x):
    """Says what it does."""
    return x * SCALE

class Schedule(Spec):
    """A part."""
    def at(self):
        from helpers.lazy import step
        return step()

class Base(CrossEntropyMethod):
    def loss(self, lanes, class_counts):
        return CrossEntropy(smooth_factor=smooth(helpers.numbers.factor()))

class Mine(Base):
    kind: Literal["mine"] = "mine"
    schedule: Schedule = Schedule()

    @property
    def power(self):
        return 1  # a comment
'''
HELPERS = {"__init__": "", "numbers": "def factor():\n    return 0.5\n", "lazy": "def step():\n    return 0.25\n"}


def fingerprint(folder: Path, old: str = "", new: str = "", helper: str = "numbers") -> dict[str, str]:
    """Of the code with `old` replaced by `new`, in the module itself or in a helper."""
    assert old in CODE or old in HELPERS[helper]
    (folder / "mine.py").write_text(CODE.replace(old, new) if old else CODE)
    (folder / "helpers").mkdir(exist_ok=True)
    for name, text in HELPERS.items():
        changed = text.replace(old, new) if old and name == helper else text
        (folder / "helpers" / f"{name}.py").write_text(changed)
    for name in [name for name in sys.modules if name.partition(".")[0] in ("mine", "helpers")]:
        del sys.modules[name]
    importlib.invalidate_caches()
    module: Any = importlib.import_module("mine")
    return code_of({"methods": [LOS(), module.Mine()]})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_kinds: None) -> Path:
    """On the Python path. No byte code is written, as files change within a second; what is registered is undone."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return tmp_path


def test_built_in_kinds_have_no_code() -> None:
    assert code_of(LOS(head="cosine")) == {}  # type: ignore[arg-type]


def test_parts_of_the_user_count(folder: Path) -> None:
    assert fingerprint(folder).keys() == {"mine:Mine", "mine:Schedule"}


@pytest.mark.parametrize(
    ("old", "new", "helper"),
    [
        ("smooth_factor=smooth", "smooth_factor=0.5 * smooth", "numbers"),
        ("return x * SCALE", "return x + SCALE", "numbers"),
        ("SCALE = 2.0", "SCALE = 2.5", "numbers"),
        ('"a": [1.5]', '"a": [1.6]', "numbers"),
        ("return 1  #", "return 2  #", "numbers"),
        ("Mine(Base)", "Mine(CrossEntropyMethod)", "numbers"),
        ("return 0.5", "return 0.6", "numbers"),
        ("return 0.25", "return 0.26", "lazy"),
    ],
)
def test_changed_code_has_another_fingerprint(old: str, new: str, helper: str, folder: Path) -> None:
    assert fingerprint(folder, old, new, helper)["mine:Mine"] != fingerprint(folder)["mine:Mine"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("# a comment", "# another comment"),
        ('"""Says what it does."""', '"""Says it in other words."""'),
        ('"""A module of a user."""', '"""The same module."""'),
        ("x * SCALE", "x   *  SCALE"),
    ],
)
def test_comments_docstrings_and_formatting_do_not_count(old: str, new: str, folder: Path) -> None:
    assert fingerprint(folder, old, new) == fingerprint(folder)


def test_a_file_that_is_edited_later_does_not_stand_for_the_code_that_runs(folder: Path) -> None:
    code = CODE.replace("import helpers.numbers", "").replace("class Mine", "@METHODS.register\nclass Mine")
    (folder / "edited.py").write_text(code)
    module: Any = importlib.import_module("edited")
    before = code_of(module.Mine())["edited:Mine"]
    (folder / "edited.py").write_text(CODE.replace("SCALE = 2.0", "SCALE = 3.0"))
    assert code_of(module.Mine())["edited:Mine"] == before


def test_processes_agree(folder: Path) -> None:
    """Whatever the order of sets is, and wherever the files are."""
    fingerprint(folder)
    program = "import mine; from lt_train.core.code import code_of; print(code_of(mine.Mine()))"
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    for name in ("mine.py", "helpers"):
        (folder / name).rename(elsewhere / name)
    printed = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": f"{elsewhere}:{os.environ.get('PYTHONPATH', '')}"},
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parents[3],
        ).stdout
        for seed in ("1", "2")
    }
    assert printed == {f"{fingerprint(folder)}\n"}


def cells(*sources: str) -> Any:
    """Run the cells of a notebook; returns the class `Mine`."""
    namespace: dict[str, Any] = {"__name__": "__notebook__"}
    for number, source in enumerate(sources):
        name = f"<cell {len(linecache.cache)}-{number}>"
        linecache.cache[name] = len(source), None, source.splitlines(keepends=True), name
        exec(compile(source, name, "exec"), namespace)
    return namespace["Mine"]


CELLS = [
    "def smooth(x):\n    return x * SCALE\n",
    "SCALE = 2.0\n",
    "from typing import Literal\nfrom lt_train.methods.base import CrossEntropyMethod\n"
    "class Mine(CrossEntropyMethod):\n    kind: Literal['mine'] = 'mine'\n"
    "    def loss(self, lanes, class_counts):\n        return smooth(1)\n",
    "unused = 1\n",
]


def test_cells_that_a_class_uses_count() -> None:
    (before,) = code_of(cells(*CELLS)()).values()
    assert [*code_of(cells(*CELLS)()).values()] == [before]
    assert [*code_of(cells(*CELLS[:3], "unused = 2\n")()).values()] == [before]
    for number, old, new in [(0, "*", "+"), (1, "2.0", "2.5"), (2, "smooth(1)", "smooth(2)")]:
        changed = [cell.replace(old, new) if index == number else cell for index, cell in enumerate(CELLS)]
        assert [*code_of(cells(*changed)()).values()] != [before], old


def test_code_without_source_is_identified_by_its_byte_code() -> None:
    def kind(factor: str) -> dict[str, str]:
        names: dict[str, Any] = {"__name__": "no_source"}
        exec("\n".join(CELLS[:2]) + CELLS[2].replace("smooth(1)", factor), names)
        return code_of(names["Mine"]())

    assert kind("smooth(1)") == kind("smooth(1)")
    assert len({str(kind(factor)) for factor in ("smooth(1)", "smooth(2)", "SCALE.real", "SCALE.imag")}) == 4


def test_every_class_without_source_counts() -> None:
    def kind(helper: str, power: int = 1) -> dict[str, str]:
        names: dict[str, Any] = {"__name__": "no_source"}
        exec(f"def smooth(x):\n    return x * {helper}\nclass Base:\n    POWER = {power}\n", names)
        exec(CELLS[2].replace("Mine(Cross", "Mine(Base, Cross"), names)
        return code_of(names["Mine"]())

    assert kind("2.0") == kind("2.0")
    assert kind("2.0") != kind("2.5"), "a function that the class uses"
    assert kind("2.0") != kind("2.0", power=2), "a value of another class"


def test_helpers_that_are_not_imported_yet_count_and_stay_so(folder: Path) -> None:
    """Also those without an `__init__.py`; reading the code of a class runs no code."""

    def found(value: str) -> str:
        for package, names in {"late": ("__init__", "steps"), "late/inner": ("plain",)}.items():
            (folder / package).mkdir(exist_ok=True)
            for name in names:
                (folder / package / f"{name}.py").write_text("1 / 0\n" if name == "__init__" else f"STEP = {value}\n")
        body = "from late.inner import plain\n        from late.steps import STEP"
        code = CODE.replace("from helpers.lazy import step", body)
        (folder / "lazy_one.py").write_text(code.replace("import helpers.numbers", ""))
        sys.modules.pop("lazy_one", None)
        importlib.invalidate_caches()
        module: Any = importlib.import_module("lazy_one")
        return code_of(module.Mine())["lazy_one:Mine"]

    before = found("1")
    assert found("1") == before
    assert found("2") != before
    assert "late" not in sys.modules


def test_the_code_of_a_factory_is_part_of_the_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    file = tmp_path / "crownet.py"
    file.write_text("from torch import nn\n\ndef crow():\n    return nn.Flatten(1)\n")
    backbone = BACKBONES.parse({"kind": "imported", "factory": "crownet:crow", "checkpoint": "c.pt"})
    (name, before), *_ = code_of(backbone).items()
    assert name == "crownet:crow"
    file.write_text("from torch import nn\n\ndef crow():\n    return nn.Flatten(2)\n")
    _of_module.cache_clear()
    assert code_of(backbone) != {name: before}
    assert code_of(BACKBONES.parse({"kind": "imported", "factory": "torchvision:resnet18", "checkpoint": "c.pt"})) == {}
