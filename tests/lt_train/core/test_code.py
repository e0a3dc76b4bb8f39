"""The identity of code from outside: what changes it, and what does not."""

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

from lt_train.core.code import code_of
from lt_train.methods import LOS

CODE = '''
from typing import ClassVar, Literal
from lt_train.losses import CrossEntropy
from lt_train.methods.base import METHODS, CrossEntropyMethod
import {module}_helper as helper

SCALE = 2.0

def smooth(x):
    """Says what it does."""
    return x * SCALE

class Base(CrossEntropyMethod):
    def loss(self, lanes, class_counts):
        return CrossEntropy(smooth_factor=smooth(helper.factor()))

class Mine(Base):
    kind: Literal["mine"] = "mine"
    note: ClassVar[str] = "one"

    @property
    def power(self):
        return 1

    def unused(self):  # a comment
        return [smooth(y) for y in (1, 2)]

def not_used_by_the_class():
    return 1
'''
HELPER = "def factor():\n    return 0.5\n"


def fingerprint(folder: Path, old: str = "", new: str = "", helper: str = HELPER) -> dict[str, str]:
    """Of the code with `old` replaced by `new`."""
    assert not old or old in CODE
    (folder / "mine.py").write_text(CODE.format(module="mine").replace(old, new) if old else CODE.format(module="mine"))
    (folder / "mine_helper.py").write_text(helper)
    for name in ("mine", "mine_helper"):
        sys.modules.pop(name, None)
    importlib.invalidate_caches()
    sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
    try:
        module = importlib.import_module("mine")
    finally:
        sys.dont_write_bytecode = before
        import linecache

        linecache.checkcache()
    return code_of({"methods": [LOS(), module.Mine()]})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """On the Python path."""
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_built_in_kinds_have_no_code() -> None:
    assert code_of(LOS(head="cosine")) == {}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("smooth_factor=smooth", "smooth_factor=0.5 * smooth"),
        ("return x * SCALE", "return x + SCALE"),
        ("SCALE = 2.0", "SCALE = 2.5"),
        ("return 1\n\n    def unused", "return 2\n\n    def unused"),
        ("in (1, 2)", "in (1, 3)"),
        ('"one"', '"two"'),
        ("Mine(Base)", "Mine(CrossEntropyMethod)"),
    ],
)
def test_changed_code_has_another_fingerprint(old: str, new: str, folder: Path) -> None:
    assert fingerprint(folder, old, new)["mine.Mine"] != fingerprint(folder)["mine.Mine"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("# a comment", "# another comment"),
        ('"""Says what it does."""', '"""Says it in other words."""'),
        ("x * SCALE", "x   *  SCALE"),
        ("def not_used_by_the_class():\n    return 1", "def not_used_by_the_class():\n    return 2"),
    ],
)
def test_other_changes_have_the_same_fingerprint(old: str, new: str, folder: Path) -> None:
    assert fingerprint(folder, old, new) == fingerprint(folder)


def test_a_changed_helper_of_another_module_has_another_fingerprint(folder: Path) -> None:
    assert fingerprint(folder, helper=HELPER.replace("0.5", "0.6")) != fingerprint(folder)


def test_code_without_source_is_identified_by_its_byte_code() -> None:
    def kind(factor: str) -> dict[str, str]:
        names: dict[str, Any] = {"__name__": "notebook"}
        exec(CODE.format(module="math").replace("import math_helper as helper", "").replace("x * SCALE", factor), names)
        return code_of(names["Mine"]())

    assert kind("x * SCALE") == kind("x * SCALE")
    assert kind("x * SCALE") != kind("x + SCALE")


def test_recursion_ends(folder: Path) -> None:
    assert fingerprint(folder, "return x * SCALE", "return x if x else smooth(x - 1)").keys() == {"mine.Mine"}
