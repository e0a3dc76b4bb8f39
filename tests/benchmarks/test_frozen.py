"""benchmarks/frozen.py at a tiny size: every figure exists, and live loop and bank give the same heads."""

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

HERE = Path(__file__).parents[2] / "benchmarks"


def test_a_tiny_measurement_is_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(HERE))
    import frozen

    size = frozen.Size(stage1_epochs=1, epochs=2, test_per_class=10, seeds=2)
    found = json.loads(json.dumps(frozen.measure("small_cnn", {"kind": "digits_lt"}, size)))
    for name in ("bank, 1 views", "bank, 2 views", "live, batch norm in train mode"):
        assert len(found[name]) == 2
        assert found[name][0].keys() == frozen.SETTINGS.keys()
    for parity in found["parity"].values():
        assert parity["largest_difference_of_weights"] < 1e-5 < parity["largest_change_of_weights"]
        assert (parity["difference_in_test_images"], parity["test_images"]) == (0, 100)
    assert all(drift["running_mean"] > 0.01 and drift["running_var"] > 0.01 for drift in found["drift"])
    assert len(frozen.table(found)) == 9


def test_the_figures_in_the_docs_equal_the_measured_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(HERE))
    import frozen

    document = json.loads((HERE / "latest_frozen.json").read_text())
    page = (HERE.parent / "docs" / "frozen.md").read_text()
    assert {*frozen.SIZES} < {*document}
    for kind in frozen.SIZES:
        for line in frozen.table(document[kind]):
            assert line in page, kind
