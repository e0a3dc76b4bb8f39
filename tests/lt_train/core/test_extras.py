"""Without an extra, its kinds can still be named, and their use is an error that names the command to install it."""

from __future__ import annotations

import subprocess
import sys

import pytest

SPECS = """
from lt_train.core.errors import UserError
from lt_train.core.imports import require
from sweeps.config.interfaces import BACKENDS, TRACKERS
assert {"inline", "ray"} <= set(BACKENDS.kinds())
assert {"none", "mlflow", "wandb"} <= set(TRACKERS.kinds())
assert "torch" not in sys.modules, "reading a sweep file does not need torch"
"""

USES = {
    "ray": [
        "require(*BACKENDS.kinds()['ray'].libraries)",
        "BACKENDS.parse({'kind': 'ray'}).train(None, None, cpus=1, gpus=0)",
        "from sweeps.cluster.jobs import Cluster; Cluster('http://127.0.0.1:1')",
    ],
    "mlflow": [
        "require(*TRACKERS.kinds()['mlflow'].libraries)",
        "TRACKERS.parse({'kind': 'mlflow'}).open(None, None)",
        "from pathlib import Path; TRACKERS.parse({'kind': 'mlflow'}).serve('x', Path(), 1)",
    ],
    "wandb": [
        "require(*TRACKERS.kinds()['wandb'].libraries)",
        "TRACKERS.parse({'kind': 'wandb'}).open(None, None)",
    ],
}


@pytest.mark.parametrize("library", USES)
def test_a_missing_extra_is_named_with_its_command(library: str) -> None:
    code = f"import sys\nsys.modules[{library!r}] = None\n{SPECS}"
    for use in USES[library]:
        code += f"try:\n    {use}\nexcept UserError as error:\n    print(error)\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    messages = done.stdout.splitlines()
    assert len(messages) == len(USES[library])
    for message in messages:
        assert message.endswith(f"pip install 'longtail-sweeps[{library}]'")
