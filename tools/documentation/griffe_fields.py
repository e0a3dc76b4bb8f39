"""Extension of griffe for the API pages: fields of specifications and results, and overrides without text of their own.

Fields are described by `Field(description=...)`, where the parser of docstrings does not find them.
"""

from __future__ import annotations

import importlib
import re
from typing import Any

import griffe
from pydantic import BaseModel
from pydantic.fields import FieldInfo

__all__ = ["Fields"]


class Fields(griffe.Extension):
    """Lists the described fields of pydantic models under `Attributes`; omits what only repeats its base class."""

    def on_class(self, *, cls: griffe.Class, loader: griffe.GriffeLoader, **kwargs: Any) -> None:
        """Complete the attributes of a class. A constructor that takes any `**values` is not shown."""
        if cls.docstring is None:
            return
        text = cls.docstring.value.replace("Class attributes:", "Attributes:")
        lines = "".join(
            f"    {name}: {field.description}.{_default(field)}\n"
            for name, field in _fields(cls).items()
            if field.description and not re.search(rf"^ +(\w+, )*{name}[,:]", text, flags=re.MULTILINE)
        )
        if lines and "Attributes:\n" not in text:
            text = f"{text.rstrip()}\n\nAttributes:\n"
        cls.docstring.value = text.replace("Attributes:\n", f"Attributes:\n{lines}", 1)
        if "__init__" in cls.members and "values" in cls["__init__"].parameters:
            del cls.members["__init__"]

    def on_function(self, *, func: griffe.Function, loader: griffe.GriffeLoader, **kwargs: Any) -> None:
        """Hide overrides that refer to the method of their base class."""
        if func.docstring is not None and func.docstring.value.startswith("See `"):
            func.docstring = None


def _fields(cls: griffe.Class) -> dict[str, FieldInfo]:
    """The fields that a model itself defines; none if the class is not a model."""
    own = [name for name, member in cls.members.items() if member.is_attribute]
    if not (cls.bases and own):
        return {}
    found: Any = importlib.import_module(cls.module.path)
    for name in cls.path.removeprefix(f"{cls.module.path}.").split("."):
        found = getattr(found, name, None)
    if not (isinstance(found, type) and issubclass(found, BaseModel)):
        return {}
    return {name: found.model_fields[name] for name in own if name in found.model_fields}


def _default(field: FieldInfo) -> str:
    return "" if field.is_required() or field.default_factory else f" Default: `{field.default!r}`."
