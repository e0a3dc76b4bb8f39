"""Rewrite the assertions of the shared helpers, so that a failure shows the values."""

import pytest

pytest.register_assert_rewrite("support.engines")
