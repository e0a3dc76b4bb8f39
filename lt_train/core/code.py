"""Fingerprints of the code of kinds from outside, so that results of changed code are not taken for those of the old.

What a built-in kind computes is fixed by a version of this package. A class of a user may change between two runs of a
cell or a command, while its name and fields stay the same. So its code is part of the identity of its runs: the source
of the module that defines it, and of all modules of the user that this module imports, without comments, docstrings
and formatting. Installed libraries do not count, except for the package that the class belongs to.

Any change in these modules counts, also one that the class does not use: that costs another training, whereas a change
that is overlooked would cost a wrong number. In a notebook, the cell with the class counts, and the cells and plain
values that it uses by name.

The source is read when a class is registered, so that a file that is edited later does not stand for the code that
runs.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import inspect
import linecache
import sys
import sysconfig
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from pydantic import BaseModel

from lt_train.core.fields import NOT_IDENTITY, Marker, has_marker
from lt_train.core.io import fingerprint

__all__ = ["code_of", "is_outside", "modules_of", "remember"]

_OWN = ("lt_train", "sweeps")
_PLAIN = (bool, int, float, complex, str, bytes, type(None))

_fingerprints: WeakKeyDictionary[type, str] = WeakKeyDictionary()


def modules_of(value: Any) -> list[str]:
    """The modules outside this package that define a class of a specification or of any of its parts, sorted."""
    return sorted({type(spec).__module__ for spec in _specs(value) if is_outside(type(spec))})


def is_outside(cls: type) -> bool:
    """Whether a class is not part of this package."""
    return _top(cls.__module__) not in _OWN


def code_of(value: Any) -> dict[str, str]:
    """A fingerprint (sha256, hex) for every class in a specification that is not part of this package; often empty.

    So for every function that a specification names in `calls()`, such as the factory of a model.

    Args:
        value: a specification, or a list or mapping of them. Fields that are declared `NOT_IDENTITY` do not count.

    Returns:
        Fingerprints by `module:class`.
    """
    found = {}
    for spec in _specs(value, leave_out=NOT_IDENTITY):
        if is_outside(type(spec)):
            found[f"{type(spec).__module__}:{type(spec).__qualname__}"] = remember(type(spec))
        for function in getattr(spec, "calls", tuple)():
            found[function] = _of_module(function.partition(":")[0])
    return found


def _specs(value: Any, leave_out: Marker | None = None) -> Iterator[BaseModel]:
    """The specifications in a value, each before its parts, without those of fields with the mark `leave_out`."""
    if isinstance(value, BaseModel):
        yield value
        fields = type(value).model_fields.items()
        value = [getattr(value, name) for name, field in fields if not (leave_out and has_marker(field, leave_out))]
    for item in value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ():
        yield from _specs(item, leave_out)


@functools.cache
def _of_module(name: str) -> str:
    """The fingerprint of the source of a module that is not imported yet, computed at the first call."""
    code = _Code(_top(name))
    code.add_module(name)
    return fingerprint(code.modules)


def remember(cls: type) -> str:
    """The fingerprint of the code of a class, computed at the first call."""
    if cls not in _fingerprints:
        code = _Code(_top(cls.__module__))
        for base in cls.__mro__:
            if base is not object:
                code.add(base)
        _fingerprints[cls] = fingerprint([code.modules, sorted(code.cells.values()), code.values])
    return _fingerprints[cls]


class _Code:
    """The code that a class may use.

    Attributes:
        package: the top-level package or module of the class or function.
        modules: sources by name of the module.
        cells: sources of cells of a notebook by name; the names are counted up and do not count.
        values: numbers, strings, and lists and mappings of them, that cells use, by name.
    """

    def __init__(self, package: str) -> None:
        self.package = package
        self.modules: dict[str, str] = {}
        self.cells: dict[str, str] = {}
        self.values: dict[str, str] = {}

    def add(self, item: Any) -> None:
        """Add the module of a class or function, or its cell."""
        if self._counts(item.__module__) and _find(item.__module__).file is None:
            self._add_cells(item)
        else:
            self.add_module(item.__module__)

    def _counts(self, module: str) -> bool:
        top = _top(module)
        return top == self.package or not (top in _OWN or _is_installed(top))

    def add_module(self, module: str) -> None:
        """Add the source of a module, and of the modules that it imports."""
        if module in self.modules or not self._counts(module):
            return
        file = _find(module).file
        if file is None or file.suffix != ".py":
            return
        tree = _parsed(file.read_text())
        self.modules[module] = ast.unparse(tree)
        for imported in _imports(tree, module if file.name == "__init__.py" else module.rpartition(".")[0]):
            self.add_module(imported)

    def _add_cells(self, item: Any) -> None:
        """Add the cells that define a class or function, and what they use by name."""
        if isinstance(item, type):
            for name, value in vars(item).items():
                if not name.startswith("__") and (text := _plain(value)) is not None:
                    self.values[f"{item.__qualname__}.{name}"] = text
        for function in _functions(item):
            code = function.__code__
            source = "".join(linecache.getlines(code.co_filename))
            # Without source, as of code that `exec` runs, one name of a file may stand for any code.
            cell = code.co_filename if source else f"{code.co_filename}:{function.__qualname__}"
            if cell in self.cells:
                continue
            if source:
                tree = _parsed(source)
                self.cells[cell] = ast.unparse(tree)
                for imported in _imports(tree, ""):
                    self.add_module(imported)
                names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
            else:
                self.cells[cell] = repr([_byte_code(code), _plain(function.__defaults__)])
                names = _names(code)
            for name in sorted(names):
                self._add_value(name, function.__globals__.get(name))

    def _add_value(self, name: str, value: Any) -> None:
        """Add what a cell uses by name."""
        if isinstance(value, types.FunctionType | type):
            self.add(value)
        elif isinstance(value, types.ModuleType):
            self.add_module(value.__name__)
        elif (text := _plain(value)) is not None:
            self.values[name] = text


def _top(module: str) -> str:
    return module.partition(".")[0]


@functools.cache
def _is_installed(package: str) -> bool:
    if package == "__main__":
        return False
    if package in sys.stdlib_module_names:
        return True
    found = _find(package)
    places = [sysconfig.get_path(name) for name in ("purelib", "platlib")]
    own = [path for path in (found.file, *found.folders) if path is not None]
    return not own or any(path.is_relative_to(place) for path in own for place in places)


class _Found(NamedTuple):
    """The file of a module, None if it has none, and the folders with the modules of a package."""

    file: Path | None
    folders: tuple[Path, ...] = ()


def _find(module: str) -> _Found:
    """Where a module is. Nothing is imported, not even the package that it is in."""
    loaded = sys.modules.get(module)
    if loaded is not None:
        file = getattr(loaded, "__file__", None)
        return _Found(file and Path(file), tuple(map(Path, getattr(loaded, "__path__", ()))))
    parent, _, name = module.rpartition(".")
    if parent:
        for folder in _find(parent).folders:
            for file, folders in ((folder / name / "__init__.py", (folder / name,)), (folder / f"{name}.py", ())):
                if file.is_file():
                    return _Found(file, folders)
        return _Found(None, tuple(folder / name for folder in _find(parent).folders if (folder / name).is_dir()))
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        return _Found(None)
    return _Found(
        Path(spec.origin) if spec.has_location and spec.origin else None,
        tuple(map(Path, spec.submodule_search_locations or ())),
    )


def _parsed(source: str) -> ast.Module:
    """The syntax tree without docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            if ast.get_docstring(node) is not None:
                node.body = node.body[1:] or [ast.Pass()]
    return tree


def _imports(tree: ast.Module, package: str) -> Iterator[str]:
    """The names of all modules that a module may import, wherever the statement is."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        for name in names:
            parts = name.split(".")
            yield from (".".join(parts[: depth + 1]) for depth in range(len(parts)))


def _functions(item: Any) -> Iterator[types.FunctionType]:
    """The functions of a class, or the function itself."""
    for member in vars(item).values() if isinstance(item, type) else [item]:
        function = inspect.unwrap(getattr(member, "__func__", getattr(member, "fget", member)) or member)
        if isinstance(function, types.FunctionType):
            yield function


def _plain(value: Any) -> str | None:
    """A text for a number, a string, or a list or mapping of them; None for anything else."""
    if isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, Mapping):
        value = sorted(value.items(), key=repr)
    if isinstance(value, set | frozenset):
        value = sorted(value, key=repr)
    if isinstance(value, list | tuple):
        parts = [_plain(item) for item in value]
        return None if None in parts else f"[{', '.join(map(str, parts))}]"
    return None


def _byte_code(code: types.CodeType) -> list[Any]:
    """What stands for code without source."""
    constants = [one for one in code.co_consts if isinstance(one, _PLAIN)]
    return [code.co_code, code.co_names, constants, [_byte_code(one) for one in _inner(code)]]


def _names(code: types.CodeType) -> set[str]:
    return {*code.co_names}.union(*(_names(one) for one in _inner(code)))


def _inner(code: types.CodeType) -> list[types.CodeType]:
    return [one for one in code.co_consts if isinstance(one, types.CodeType)]
