"""Registries collect kinds from modules, report duplicates with both files, and suggest the nearest kind."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from lt_train.core.errors import SpecError
from lt_train.core.registry import ALLOWED_VARIABLE, KindSpec, Registry

KIND = """
from typing import Literal
from lt_train.core.registry import KindSpec

class {name}(KindSpec):
    kind: Literal["{kind}"] = "{kind}"
    size: int = 1
    rate: float = 0.5
"""


class Package:
    """A package of kinds in a temporary folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, folder.name
        folder.mkdir()
        (folder / "__init__.py").touch()

    def add(self, file: str, kind: str, name: str = "Kind") -> Path:
        path = self.folder / file
        path.write_text(KIND.format(kind=kind, name=name))
        return path


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Package]:
    """A package with a unique name, because Python caches modules by name."""
    monkeypatch.syspath_prepend(tmp_path)
    made = Package(tmp_path / f"package_of_{request.node.name}")
    yield made
    for module in [name for name in sys.modules if name.split(".")[0] == made.name]:
        del sys.modules[module]


def test_adding_a_module_is_enough(package: Package) -> None:
    package.add("zebra.py", "zebra")
    package.add("ant.py", "ant")
    found = Registry(package.name, KindSpec).kinds()
    assert list(found) == ["ant", "zebra"]
    assert found["ant"].__module__ == f"{package.name}.ant"


def test_bases_and_imported_kinds_are_not_kinds_of_the_file(package: Package) -> None:
    package.add("ant.py", "ant")
    (package.folder / "other.py").write_text(
        "from lt_train.core.registry import KindSpec\n"
        f"from {package.name}.ant import Kind\n"
        "class Base(KindSpec):\n    pass\n"
    )
    assert list(Registry(package.name, KindSpec).kinds()) == ["ant"]


def test_one_file_may_hold_several_kinds(package: Package) -> None:
    path = package.add("family.py", "small", "Small")
    path.write_text(path.read_text() + KIND.format(kind="large", name="Large"))
    assert list(Registry(package.name, KindSpec).kinds()) == ["large", "small"]


def test_a_plain_module_is_a_group_too(package: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packages given with `--allow-import` extend a group by a module or a package of its name."""
    package.add("heads.py", "ant")
    other = Package(package.folder.parent / f"other_{package.name}")
    other.add("heads.py", "bee")
    monkeypatch.setenv(ALLOWED_VARIABLE, other.name)
    assert list(Registry(f"{package.name}.heads", KindSpec).kinds()) == ["ant", "bee"]


def test_a_duplicate_names_both_files(package: Package) -> None:
    first, second = package.add("first.py", "same"), package.add("second.py", "same")
    with pytest.raises(TypeError, match="kind 'same' is defined twice") as caught:
        Registry(package.name, KindSpec).kinds()
    assert str(first) in str(caught.value)
    assert str(second) in str(caught.value)


def test_a_duplicate_within_one_file_is_reported(package: Package) -> None:
    path = package.add("only.py", "same", "One")
    path.write_text(path.read_text() + KIND.format(kind="same", name="Other"))
    with pytest.raises(TypeError, match="kind 'same' is defined twice"):
        Registry(package.name, KindSpec).kinds()


def test_the_union_is_discriminated_by_kind(package: Package) -> None:
    package.add("ant.py", "ant")
    package.add("bee.py", "bee")
    adapter: TypeAdapter[KindSpec] = TypeAdapter(Registry(package.name, KindSpec).union())
    assert type(adapter.validate_json('{"kind": "bee"}')) is Registry(package.name, KindSpec).kinds()["bee"]
    with pytest.raises(ValidationError, match="does not match any of the expected tags: 'ant', 'bee'"):
        adapter.validate_json('{"kind": "wasp"}')


def test_a_group_of_one_kind_has_a_union_too(package: Package) -> None:
    package.add("ant.py", "ant")
    adapter: TypeAdapter[KindSpec] = TypeAdapter(Registry(package.name, KindSpec).union())
    assert adapter.validate_json('{"kind": "ant"}').kind == "ant"
    with pytest.raises(ValidationError, match="Input should be 'ant'"):
        adapter.validate_json('{"kind": "bee"}')


def test_an_unknown_kind_suggests_the_nearest(package: Package) -> None:
    package.add("ant.py", "balanced_softmax")
    package.add("bee.py", "focal")
    with pytest.raises(SpecError, match=r"did you mean 'balanced_softmax'\? known: balanced_softmax, focal"):
        Registry(package.name, KindSpec).parse({"kind": "balanced_sofmax"})
    with pytest.raises(SpecError, match="'xyz' is unknown; known: balanced_softmax, focal"):
        Registry(package.name, KindSpec).parse({"kind": "xyz"})
    with pytest.raises(SpecError, match="None is unknown; known: balanced_softmax, focal"):
        Registry(package.name, KindSpec).parse({})


def test_all_problems_are_reported_at_once(package: Package) -> None:
    package.add("ant.py", "ant")
    with pytest.raises(SpecError, match="ant") as caught:
        Registry(package.name, KindSpec).parse({"kind": "ant", "size": "3", "rate": True, "sise": 3})
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["ant.size", "ant.rate", "ant.sise"]
    assert "did you mean 'size'?" in caught.value.problems[2]
    assert caught.value.exit_code == 2


def test_an_integer_is_accepted_for_a_float_but_not_the_reverse(package: Package) -> None:
    package.add("ant.py", "ant")
    assert Registry(package.name, KindSpec).parse({"kind": "ant", "rate": 1, "size": 2}).model_dump() == {
        "kind": "ant",
        "size": 2,
        "rate": 1.0,
    }
    with pytest.raises(SpecError, match=r"ant\.size: must be a whole number, got 2\.5"):
        Registry(package.name, KindSpec).parse({"kind": "ant", "size": 2.5})
