"""Optional dependencies: name the command that installs a missing one."""

from __future__ import annotations

import importlib.util

from lt_train.core.errors import UserError

__all__ = ["is_installed", "require"]

EXTRAS = {"ray": "ray", "mlflow": "mlflow", "matplotlib": "report", "jinja2": "report"}
"""The extra of the package that installs each optional library."""


def is_installed(library: str) -> bool:
    """Whether a library can be imported, without importing it. A plain folder of that name is not a library."""
    found = importlib.util.find_spec(library)
    return found is not None and found.origin is not None


def require(*libraries: str) -> None:
    """Check that optional libraries are installed, without importing them.

    Raises:
        UserError: one is not; the message has the command that installs it.
    """
    for library in libraries:
        if not is_installed(library):
            raise UserError(f"{library} is not installed; run: pip install 'longtail-sweeps[{EXTRAS[library]}]'")
