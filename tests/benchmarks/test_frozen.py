"""The measurement of what frozen means, on a tiny size: every figure is there, and the live loop is the bank's."""

import json
from pathlib import Path

import pytest

HERE = Path(__file__).parents[2] / "benchmarks"


def test_a_tiny_measurement_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(HERE))
    import frozen

    size = frozen.Size(stage1_epochs=1, epochs=2, test_per_class=10, seeds=2)
    found = json.loads(json.dumps(frozen.measure("small_cnn", {"kind": "digits_lt"}, size)))
    for what in ("bank, 1 views", "bank, 2 views", "live, batch norm in train mode"):
        assert len(found[what]) == 2
        assert found[what][0].keys() == frozen.SETTINGS.keys()
    for parity in found["parity"].values():
        assert parity["largest_difference_of_weights"] < 1e-5 < parity["largest_change_of_weights"]
        assert (parity["difference_in_test_images"], parity["test_images"]) == (0, 100)
    assert all(drift["running_mean"] > 0.01 and drift["running_var"] > 0.01 for drift in found["drift"])
    assert len(frozen.table(found)) == 9


def test_the_figures_in_the_docs_are_the_measured_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(HERE))
    import frozen

    document = json.loads((HERE / "latest_frozen.json").read_text())
    page = (HERE.parent / "docs" / "frozen.md").read_text()
    assert {*frozen.SIZES} < {*document}
    for kind in frozen.SIZES:
        for line in frozen.table(document[kind]):
            assert line in page, kind
