"""Packs on their way to a worker: what cannot be pickled or imported is named."""

from __future__ import annotations

import importlib
import sys
import threading
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import PrivateAttr

from lt_train.core.errors import UserError
from lt_train.methods import LOS
from lt_train.methods.base import CrossEntropyMethod, MethodSpec, TrainingSpec
from lt_train.retrain.base import EpochSelection, Pack, Run
from sweeps.backends.packed import CannotImport, pack_bytes, unpack

MODULE = """
from typing import Literal
from lt_train.methods.base import CrossEntropyMethod

class Mine(CrossEntropyMethod):
    kind: Literal["mine"] = "mine"
"""


def pack_of(*methods: MethodSpec) -> Pack:
    return Pack("one", tuple(Run(method, TrainingSpec(), 0) for method in methods), EpochSelection())


class Locked(CrossEntropyMethod):
    """Holds a lock."""

    kind: Literal["locked"] = "locked"
    _state: dict[str, Any] = PrivateAttr(default_factory=lambda: {"lock": threading.Lock()})


LOCK = threading.Lock()


class InNotebook(CrossEntropyMethod):
    """Its code travels by value, like that of all classes in `__main__`."""

    kind: Literal["in_notebook"] = "in_notebook"

    def loss(self, lanes: Any, class_counts: Any) -> Any:
        with LOCK:
            return super().loss(lanes, class_counts)


InNotebook.__module__ = InNotebook.loss.__module__ = "__main__"


@pytest.mark.parametrize(
    ("method", "path"),
    [(Locked(), r"Locked\._state\['lock'\]"), (InNotebook(), r"InNotebook\.loss: LOCK")],
)
def test_the_attribute_that_cannot_be_pickled_is_named(method: MethodSpec, path: str) -> None:
    with pytest.raises(UserError, match=rf"^{path} \(of type _thread\.lock\) cannot be sent to a worker: .*inline"):
        pack_bytes(pack_of(LOS(), method))


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_kinds: None) -> Path:
    """The file of a module with a method, which can be imported as `only_mine`."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "only_mine.py"
    file.write_text(MODULE)
    return file


@pytest.mark.parametrize(
    ("in_worker", "reason"),
    [
        (None, r"ModuleNotFoundError: No module named 'only_mine'"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("raise SystemExit('no license')", "SystemExit: no license"),
        ("Mine = 3", "UnpicklingError: NEWOBJ"),
    ],
)
def test_a_module_that_a_worker_cannot_import_is_named(in_worker: str | None, reason: str, mine: Path) -> None:
    module: Any = importlib.import_module("only_mine")
    pack = pack_of(LOS(), module.Mine(lr=0.125))
    data = pack_bytes(pack)
    assert unpack(data) == pack
    del sys.modules["only_mine"]
    if in_worker is None:
        mine.unlink()
    else:
        mine.write_text(in_worker)
    importlib.invalidate_caches()
    found = unpack(data)
    assert isinstance(found, CannotImport)
    assert found.module == ("only_mine" if in_worker in ("1 / 0", "raise SystemExit('no license')") else "")
    with pytest.raises(UserError, match=rf"^a worker cannot import only_mine: ({reason}).* \(on .*\).*--ship-code"):
        raise found.error(pack)
