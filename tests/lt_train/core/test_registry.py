"""Registries: kinds of modules, of notebooks, of allowed modules and of installed packages, and what is refused."""

import inspect
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import cloudpickle
import pytest
from pydantic import Field, ValidationError

from lt_train.core import plugins
from lt_train.core.errors import SpecError, UserError
from lt_train.core.fields import BATCHED
from lt_train.core.registry import KindSpec, Registry, Spec, as_document
from lt_train.core.validation import explain

ANIMAL = """
from typing import Literal
from {test} import ANIMALS, Animal

@ANIMALS.register
class {name}(Animal):
    kind: Literal["{kind}"] = "{kind}"
    size: int = 1
    rate: float = 0.5
"""


class Animal(KindSpec):
    """The base class of the group of these tests."""


ANIMALS = Registry("animals", Animal, "zoo")
"""A group whose built-in kinds are in the package `zoo` of each test."""


@pytest.fixture(autouse=True)
def _zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The package `zoo` with the kind `ant`; nothing is registered yet."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(plugins, "_imported", set())
    monkeypatch.setattr(plugins, "_with_kinds", set())
    monkeypatch.setattr(plugins, "failures", {})
    plugins.offered.cache_clear()
    ANIMALS.__init__(ANIMALS.name, ANIMALS.base, ANIMALS.package)  # type: ignore[misc]
    (tmp_path / "zoo").mkdir()
    (tmp_path / "zoo" / "__init__.py").touch()
    add_module(tmp_path / "zoo" / "ant.py", "ant")
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]
    plugins.offered.cache_clear()


def add_module(path: Path, kind: str, name: str = "Kind", also: str = "") -> None:
    """A module with one kind, or one more kind in it."""
    path.parent.mkdir(exist_ok=True)
    text = path.read_text() if path.exists() else ""
    path.write_text(text + also + ANIMAL.format(kind=kind, name=name, test=__name__))


def install(folder: Path, package: str, kind: str, value: str) -> None:
    """An installed distribution that offers a kind."""
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[longtail_sweeps.animals]\n{kind} = {value}\n")


def test_a_module_of_the_package_is_enough(tmp_path: Path) -> None:
    add_module(tmp_path / "zoo" / "zebra.py", "zebra")
    (tmp_path / "zoo" / "other.py").write_text("from zoo.ant import Kind\nclass Base(Kind):\n    pass\n")
    assert list(ANIMALS.kinds()) == ["ant", "zebra"]
    assert ANIMALS.kinds()["ant"].__module__ == "zoo.ant"


def test_one_file_may_hold_several_kinds(tmp_path: Path) -> None:
    add_module(tmp_path / "zoo" / "ant.py", "large_ant", "Large")
    assert list(ANIMALS.kinds()) == ["ant", "large_ant"]


def test_a_duplicate_names_both_classes(tmp_path: Path) -> None:
    add_module(tmp_path / "zoo" / "other.py", "ant", "Other")
    with pytest.raises(UserError, match=r"kind 'ant' is defined twice, in zoo\.ant\.Kind and in zoo\.other\.Other"):
        ANIMALS.kinds()


class Bee(Animal):
    """A class that is not registered."""

    kind: Literal["bee"] = "bee"
    stripes: tuple[int, ...] = (1, 2)


class Garden(Spec):
    """Fields that take animals."""

    first: Annotated[Animal, ANIMALS]
    second: Annotated[Animal, ANIMALS] | None = None
    others: tuple[Annotated[Animal, ANIMALS], ...] = ()
    named: dict[str, Annotated[Animal, ANIMALS]] = Field(default_factory=dict)


def test_a_kind_that_is_registered_later_is_accepted() -> None:
    with pytest.raises(ValidationError, match="Input should be 'ant'"):
        Garden.model_validate_json('{"first": {"kind": "bee"}}')
    assert ANIMALS.register(Bee) is Bee
    found = Garden.model_validate_json('{"first": {"kind": "bee", "stripes": [3]}, "others": [{"kind": "ant"}]}')
    assert found.first == Bee(stripes=(3,))
    assert [other.kind for other in found.others] == ["ant"]
    assert Garden(first="bee", others=["ant", Bee()]).others[1] == Bee()  # type: ignore[arg-type]
    assert Garden(first="bee", named={"a": "bee"}).named == {"a": Bee()}  # type: ignore[arg-type, dict-item]
    assert found.model_dump(mode="json")["first"] == {"kind": "bee", "stripes": [3]}
    assert {"type": "string", "enum": ["ant", "bee"]} in Garden.model_json_schema()["properties"]["first"]["anyOf"]


def test_a_kind_may_contain_kinds_of_its_group() -> None:
    @ANIMALS.register
    class Herd(Animal):
        """Several animals, which may be herds."""

        kind: Literal["herd"] = "herd"
        members: tuple[Annotated[Animal, ANIMALS], ...] = ()

    document = {"kind": "herd", "members": ["ant", {"kind": "herd", "members": ["ant"]}]}
    assert [one.kind for one in ANIMALS.parse(document).members] == ["ant", "herd"]  # type: ignore[attr-defined]
    schema = Garden.model_json_schema()
    assert {"ant", "herd"} == set(schema["properties"]["first"]["anyOf"][1]["enum"])
    assert "members" in schema["$defs"]["Herd"]["properties"]


def test_a_class_in_the_place_of_an_instance_is_named() -> None:
    for arguments, path in [({"first": Bee}, "first"), ({"first": "ant", "others": ["ant", Bee]}, r"others\[1\]")]:
        with pytest.raises(
            SpecError, match=rf"^{path}: must be an instance, got the class Bee; pass .*: Bee\(\.\.\.\)"
        ):
            Garden(**arguments)


def test_an_instance_registers_its_class() -> None:
    assert as_document({"first": Bee()}) == {"first": {"kind": "bee"}}
    assert ANIMALS.kinds()["bee"] is Bee
    assert ANIMALS.parse({"kind": "bee", "stripes": [4]}) == Bee(stripes=(4,))


def test_a_part_that_is_only_a_default_is_registered() -> None:
    @ANIMALS.register
    class Hive(Animal):
        """Has a part of the user."""

        kind: Literal["hive"] = "hive"
        queen: Annotated[Animal, ANIMALS] = Bee()

    assert ANIMALS.parse({"kind": "hive", "queen": {"kind": "bee", "stripes": [7]}}).queen == Bee(stripes=(7,))  # type: ignore[attr-defined]


def test_a_subclass_needs_a_kind_of_its_own() -> None:
    class Ant(ANIMALS.kinds()["ant"]):  # type: ignore[misc]
        """Inherits the kind of its base."""

    with pytest.raises(UserError, match="kind 'ant' is defined twice"):
        as_document(Ant())


def test_a_cell_of_a_notebook_may_be_run_again() -> None:
    def cell(size: int) -> type[Animal]:
        @ANIMALS.register
        class Wasp(Animal):
            """Defined by every run of the cell."""

            kind: Literal["wasp"] = "wasp"
            size_now: ClassVar[int] = size

        return Wasp

    old, new = cell(1), cell(2)
    assert ANIMALS.kinds()["wasp"] is new
    as_document(old())
    assert ANIMALS.kinds()["wasp"] is old, "an instance stands for its own class"


def test_classes_that_cannot_be_kinds_are_refused() -> None:
    class Nameless(Animal):
        """Has no kind."""

    class Spaces(Animal):
        """Has a kind with a space."""

        kind: Literal["two words"] = "two words"

    class Two(Animal):
        """Has two kinds."""

        kind: Literal["one", "two"] = "one"

    class Whole(Animal):
        """Declares an integer as batched."""

        kind: Literal["whole"] = "whole"
        legs: Annotated[int, BATCHED] = 4

    class Other(KindSpec):
        """Belongs to another group."""

        kind: Literal["other"] = "other"

    for refused, message in [
        (
            Nameless,
            'letters, digits and underscores, for example kind: Literal["nameless"] = "nameless"',
        ),
        (Spaces, "Spaces must name its kind"),
        (Two, "Two must name its kind"),
        (Whole, "Whole.legs is BATCHED, so it must be a float"),
        (Other, "must be a subclass of Animal"),
        ("ant", "must be a subclass of Animal"),
    ]:
        with pytest.raises(TypeError) as caught:
            ANIMALS.register(refused)  # type: ignore[type-var]
        assert message in str(caught.value)


def test_an_unknown_kind_suggests_the_nearest(tmp_path: Path) -> None:
    add_module(tmp_path / "zoo" / "bee.py", "balanced_softmax")
    with pytest.raises(SpecError, match=r"did you mean 'balanced_softmax'\? known: ant, balanced_softmax"):
        ANIMALS.parse({"kind": "balanced_sofmax"})
    for document, shown in [({"kind": "xyz"}, "'xyz'"), ({}, "None"), ({"kind": []}, r"\[\]")]:
        with pytest.raises(SpecError, match=f"{shown} is unknown; known: ant, balanced_softmax"):
            ANIMALS.parse(document)
    with pytest.raises(SpecError, match="for a kind of your own, import its module, or name it with --allow-import"):
        ANIMALS.parse({"kind": "xyz"})


def test_all_problems_are_reported_at_once_also_inside_a_field() -> None:
    ANIMALS.register(Bee)
    wrong = {"kind": "ant", "size": "3", "rate": True, "sise": 3}
    with pytest.raises(SpecError, match="ant") as caught:
        ANIMALS.parse(wrong)
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["ant.size", "ant.rate", "ant.sise"]
    assert "did you mean 'size'?" in caught.value.problems[2]
    assert caught.value.exit_code == 2
    document = '{"first": {"kind": "ant", "size": 2.5}, "second": {"kind": "aunt"}, "others": [{}, 3]}'
    with pytest.raises(ValidationError) as nested:
        Garden.model_validate_json(document)
    problems = explain(nested.value, Garden)
    assert [problem.loc for problem in problems] == [
        ("first", "size"),
        ("second", "kind"),
        ("others", 0),
        ("others", 1),
    ]
    assert "unknown kind 'aunt'; did you mean 'ant'?" in problems[1].message


def test_an_integer_is_accepted_for_a_float_but_not_the_reverse() -> None:
    assert ANIMALS.parse({"kind": "ant", "rate": 1, "size": 2}).model_dump() == {"kind": "ant", "size": 2, "rate": 1.0}
    with pytest.raises(SpecError, match=r"ant\.size: must be a whole number, got 2\.5"):
        ANIMALS.parse({"kind": "ant", "size": 2.5})


def test_a_registry_is_the_same_object_after_pickling() -> None:
    assert pickle.loads(pickle.dumps(ANIMALS)) is ANIMALS
    assert cloudpickle.loads(cloudpickle.dumps(ANIMALS)) is ANIMALS


@pytest.fixture
def allow(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Sets the allowed modules, as `--allow-import` does."""
    return lambda names: monkeypatch.setenv(plugins.ALLOWED_VARIABLE, names)


def test_a_module_or_package_that_is_allowed_is_imported(tmp_path: Path, allow: Callable[[str], None]) -> None:
    add_module(tmp_path / "one_file.py", "bee")
    add_module(tmp_path / "a_package" / "__init__.py", "wasp")
    assert list(ANIMALS.kinds()) == ["ant"]
    allow("one_file, a_package")
    assert list(ANIMALS.kinds()) == ["ant", "bee", "wasp"]


@pytest.mark.parametrize(
    ("also", "reason"),
    [
        ("import no_such_library", "ModuleNotFoundError: No module named 'no_such_library'"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("def (", "SyntaxError: invalid syntax (broken.py, line 1)"),
    ],
)
def test_a_module_that_fails_is_named_and_stops_nothing_else(
    also: str, reason: str, tmp_path: Path, allow: Callable[[str], None], caplog: pytest.LogCaptureFixture
) -> None:
    add_module(tmp_path / "broken.py", "bee", also=also)
    add_module(tmp_path / "sound.py", "wasp")
    allow("broken,sound")
    assert list(ANIMALS.kinds()) == list(ANIMALS.kinds()) == ["ant", "wasp"]
    assert [record.message for record in caplog.records] == [
        f"broken could not be imported, and not all of its kinds are available: {reason}"
    ]
    with pytest.raises(SpecError) as caught:
        ANIMALS.parse({"kind": "bee"})
    assert f"; broken could not be imported: {reason}" in str(caught.value)


def test_a_module_that_fails_half_way_leaves_nothing_and_what_it_imported_stays(
    tmp_path: Path, allow: Callable[[str], None]
) -> None:
    add_module(tmp_path / "whole.py", "wasp")
    add_module(tmp_path / "half.py", "bee", also="import whole")
    add_module(tmp_path / "half_package" / "part.py", "moth")
    (tmp_path / "half_package" / "__init__.py").write_text("import half_package.part\n1 / 0")
    with (tmp_path / "half.py").open("a") as file:
        file.write("1 / 0")
    allow("half,half_package")
    assert list(ANIMALS.kinds()) == ["ant", "wasp"]
    with pytest.raises(SpecError, match="half could not be imported: ZeroDivisionError"):
        ANIMALS.parse({"kind": "bee"})


def test_a_module_that_registers_nothing_is_named(
    tmp_path: Path, allow: Callable[[str], None], caplog: pytest.LogCaptureFixture
) -> None:
    """Only if a kind is unknown: such a module may be a factory of models."""
    (tmp_path / "datasets.py").write_text("PATH = 'a file that has nothing to do with kinds'")
    add_module(tmp_path / "exports" / "animals.py", "bee")
    (tmp_path / "exports" / "__init__.py").write_text("from exports.animals import Kind")
    install(tmp_path, "hive", "wasp", "hive.animals:Kind")
    add_module(tmp_path / "hive" / "animals.py", "wasp")
    (tmp_path / "hive" / "__init__.py").touch()
    allow("datasets,exports,exports.animals,hive")
    assert list(ANIMALS.kinds()) == ["ant", "bee", "wasp"]
    assert not caplog.messages
    with pytest.raises(
        SpecError, match=r"; datasets, given with --allow-import, registers no kind: .*ANIMALS\.register"
    ):
        ANIMALS.parse({"kind": "fly"})


def test_a_package_that_fails_stops_nothing_if_a_part_of_it_is_allowed(
    tmp_path: Path, allow: Callable[[str], None], caplog: pytest.LogCaptureFixture
) -> None:
    add_module(tmp_path / "bad_package" / "part.py", "bee")
    (tmp_path / "bad_package" / "__init__.py").write_text("raise SystemExit(0)")
    allow("bad_package.part")
    assert list(ANIMALS.kinds()) == ["ant"]
    assert "bad_package.part could not be imported" in caplog.text


def test_a_module_that_prints_does_not_disturb_results(
    tmp_path: Path, allow: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    add_module(tmp_path / "talking.py", "bee", also="print('hello')")
    allow("talking")
    assert list(ANIMALS.kinds()) == ["ant", "bee"]
    assert capsys.readouterr() == ("", "hello\n")


def test_two_packages_may_offer_one_kind(tmp_path: Path, allow: Callable[[str], None]) -> None:
    for package in ("hive", "meadow"):
        install(tmp_path, package, "bee", f"{package}.animals:Kind")
        add_module(tmp_path / package / "animals.py", "bee")
        (tmp_path / package / "__init__.py").touch()
    allow("hive")
    assert ANIMALS.kinds()["bee"].__module__ == "hive.animals"


def test_a_module_with_a_kind_that_exists_is_named(
    tmp_path: Path, allow: Callable[[str], None], caplog: pytest.LogCaptureFixture
) -> None:
    add_module(tmp_path / "second_ant.py", "ant")
    allow("second_ant")
    assert ANIMALS.kinds()["ant"].__module__ == "zoo.ant"
    assert "second_ant could not be imported" in caplog.text
    assert (
        "kind 'ant' is defined twice, in zoo.ant.Kind and in second_ant.Kind; give one of them another kind"
        in caplog.text
    )


@pytest.mark.parametrize("name", ["no_such_module", "no_such.module", "zoo.py", "a-b", "../zoo", "sys"])
def test_a_name_that_is_no_module_is_an_error(name: str, allow: Callable[[str], None]) -> None:
    allow(name)
    with pytest.raises(UserError, match="--allow-import"):
        ANIMALS.kinds()


def test_an_installed_package_is_listed_and_not_imported(tmp_path: Path, allow: Callable[[str], None]) -> None:
    install(tmp_path, "hive", "bee", "hive.animals:Kind")
    add_module(tmp_path / "hive" / "animals.py", "bee")
    (tmp_path / "hive" / "__init__.py").touch()
    assert [(point.name, point.value) for point in plugins.offered("animals")] == [("bee", "hive.animals:Kind")]
    with pytest.raises(SpecError, match="the installed package hive offers it: allow it with --allow-import hive"):
        ANIMALS.parse({"kind": "bee"})
    assert "hive" not in sys.modules
    allow("hive")
    assert ANIMALS.parse({"kind": "bee"}).kind == "bee"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("hive.animals:NoSuchClass", "AttributeError"),
        ("hive.no_such_module:Kind", "ModuleNotFoundError"),
        ("hive.animals:Kind", "is of kind 'wasp'"),
    ],
)
def test_a_package_with_a_wrong_entry_point_is_named(
    value: str, reason: str, tmp_path: Path, allow: Callable[[str], None], caplog: pytest.LogCaptureFixture
) -> None:
    install(tmp_path, "hive", "bee", value)
    add_module(tmp_path / "hive" / "animals.py", "wasp")
    (tmp_path / "hive" / "__init__.py").touch()
    allow("hive")
    assert "ant" in ANIMALS.kinds()
    assert f"{value} (animals: bee) could not be imported" in caplog.text
    assert reason in caplog.text


def test_a_kind_of_a_notebook_can_be_sent_to_another_process(tmp_path: Path) -> None:
    """Kinds defined in `__main__` travel by value, as `cloudpickle` sends them to the workers of Ray."""
    script = tmp_path / "notebook.py"
    script.write_text(
        inspect.cleandoc("""
        import sys
        from typing import Annotated, Literal
        import cloudpickle
        from lt_train.core.fields import BATCHED
        from lt_train.methods.base import METHODS, CrossEntropyMethod

        @METHODS.register
        class Mine(CrossEntropyMethod):
            kind: Literal["mine"] = "mine"
            strength: Annotated[float, BATCHED] = 1.0

        open(sys.argv[1], "wb").write(cloudpickle.dumps(Mine(strength=0.25, head="cosine")))
        """)
    )
    subprocess.run([sys.executable, script, tmp_path / "sent"], check=True)
    received = cloudpickle.loads((tmp_path / "sent").read_bytes())
    assert received.lane_values()["strength"] == 0.25
    assert received.head.kind == "cosine"
