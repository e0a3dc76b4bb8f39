"""One suite for all backends: they train the same packs and give bit-identical results."""

from __future__ import annotations

import pytest

from sweeps.config.interfaces import BACKENDS
from sweeps.testing import check_backend

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("kind", sorted(BACKENDS.kinds()))
def test_they_conform(kind: str, request: pytest.FixtureRequest):
    if kind == "ray":
        request.getfixturevalue("local_ray")
    check_backend(BACKENDS.kinds()[kind])
