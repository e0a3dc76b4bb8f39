"""Assertions of the shared helpers say what differed, as those in the tests do."""

import pytest

pytest.register_assert_rewrite("support.engines")
