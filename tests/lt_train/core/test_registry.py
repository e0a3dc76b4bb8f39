"""A kind is a file: adding one is enough, a duplicate names both files, an unknown one offers the nearest."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from lt_train.core.errors import SpecError
from lt_train.core.registry import KindSpec, Registry

KIND = """
from typing import Literal
from lt_train.core.registry import KindSpec

class {name}(KindSpec):
    kind: Literal["{kind}"] = "{kind}"
    size: int = 1
    rate: float = 0.5
"""


class Room:
    """A package of kinds in a temporary folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.package = folder, folder.name
        folder.mkdir()
        (folder / "__init__.py").touch()

    def add(self, file: str, kind: str, name: str = "Kind") -> Path:
        path = self.folder / file
        path.write_text(KIND.format(kind=kind, name=name))
        return path


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Room]:
    """A room of its own name, as modules and rooms are remembered by name."""
    monkeypatch.syspath_prepend(tmp_path)
    made = Room(tmp_path / f"room_of_{request.node.name}")
    yield made
    for module in [name for name in sys.modules if name.split(".")[0] == made.package]:
        del sys.modules[module]


def test_adding_a_file_is_enough(room: Room) -> None:
    room.add("zebra.py", "zebra")
    room.add("ant.py", "ant")
    found = Registry(room.package, KindSpec).kinds()
    assert list(found) == ["ant", "zebra"]
    assert found["ant"].__module__ == f"{room.package}.ant"


def test_bases_and_imported_kinds_are_not_kinds_of_the_file(room: Room) -> None:
    room.add("ant.py", "ant")
    (room.folder / "other.py").write_text(
        "from lt_train.core.registry import KindSpec\n"
        f"from {room.package}.ant import Kind\n"
        "class Base(KindSpec):\n    pass\n"
    )
    assert list(Registry(room.package, KindSpec).kinds()) == ["ant"]


def test_one_file_may_hold_several_kinds(room: Room) -> None:
    path = room.add("family.py", "small", "Small")
    path.write_text(path.read_text() + KIND.format(kind="large", name="Large"))
    assert list(Registry(room.package, KindSpec).kinds()) == ["large", "small"]


def test_a_duplicate_names_both_files(room: Room) -> None:
    first, second = room.add("first.py", "same"), room.add("second.py", "same")
    with pytest.raises(TypeError, match="kind 'same' is defined twice") as caught:
        Registry(room.package, KindSpec).kinds()
    assert str(first) in str(caught.value)
    assert str(second) in str(caught.value)


def test_a_duplicate_within_one_file_is_noticed(room: Room) -> None:
    path = room.add("only.py", "same", "One")
    path.write_text(path.read_text() + KIND.format(kind="same", name="Other"))
    with pytest.raises(TypeError, match="kind 'same' is defined twice"):
        Registry(room.package, KindSpec).kinds()


def test_the_union_is_discriminated_by_kind(room: Room) -> None:
    room.add("ant.py", "ant")
    room.add("bee.py", "bee")
    adapter: TypeAdapter[KindSpec] = TypeAdapter(Registry(room.package, KindSpec).union())
    assert type(adapter.validate_json('{"kind": "bee"}')) is Registry(room.package, KindSpec).kinds()["bee"]
    with pytest.raises(ValidationError, match="does not match any of the expected tags: 'ant', 'bee'"):
        adapter.validate_json('{"kind": "wasp"}')


def test_a_room_of_one_kind_has_a_union_too(room: Room) -> None:
    room.add("ant.py", "ant")
    adapter: TypeAdapter[KindSpec] = TypeAdapter(Registry(room.package, KindSpec).union())
    assert adapter.validate_json('{"kind": "ant"}').kind == "ant"
    with pytest.raises(ValidationError, match="Input should be 'ant'"):
        adapter.validate_json('{"kind": "bee"}')


def test_an_unknown_kind_offers_the_nearest(room: Room) -> None:
    room.add("ant.py", "balanced_softmax")
    room.add("bee.py", "focal")
    with pytest.raises(SpecError, match=r"did you mean 'balanced_softmax'\? known: balanced_softmax, focal"):
        Registry(room.package, KindSpec).parse({"kind": "balanced_sofmax"})
    with pytest.raises(SpecError, match="'xyz' is unknown; known: balanced_softmax, focal"):
        Registry(room.package, KindSpec).parse({"kind": "xyz"})
    with pytest.raises(SpecError, match="None is unknown; known: balanced_softmax, focal"):
        Registry(room.package, KindSpec).parse({})


def test_every_problem_is_named_at_once(room: Room) -> None:
    room.add("ant.py", "ant")
    with pytest.raises(SpecError, match="ant") as caught:
        Registry(room.package, KindSpec).parse({"kind": "ant", "size": "3", "rate": True, "sise": 3})
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["ant.size", "ant.rate", "ant.sise"]
    assert "did you mean 'size'?" in caught.value.problems[2]
    assert caught.value.exit_code == 2


def test_a_whole_number_may_stand_for_a_float_and_not_the_other_way(room: Room) -> None:
    room.add("ant.py", "ant")
    assert Registry(room.package, KindSpec).parse({"kind": "ant", "rate": 1, "size": 2}).model_dump() == {
        "kind": "ant",
        "size": 2,
        "rate": 1.0,
    }
    with pytest.raises(SpecError, match=r"ant\.size: must be a whole number, got 2\.5"):
        Registry(room.package, KindSpec).parse({"kind": "ant", "size": 2.5})
