"""Optional dependencies: name the command that installs a missing one."""

from __future__ import annotations

import importlib.util

from lt_train.core.errors import UserError

__all__ = ["require"]


def require(library: str | None) -> None:
    """Check that a library is installed, without importing it; its extra has the same name, for example `ray`.

    Raises:
        UserError: it is not installed.
    """
    if library is not None and importlib.util.find_spec(library) is None:
        raise UserError(f"{library} is not installed; run: pip install 'longtail-sweeps[{library}]'")
