"""`tau_norm` trains nothing; what is searched is the tau of its adjustment."""

import pytest

from lt_train.core.errors import SpecError
from lt_train.methods.base import METHODS
from lt_train.methods.tau_norm import TauNormalization


def test_tau_is_all_there_is_to_search() -> None:
    method = TauNormalization()
    assert not method.trains
    assert method.lane_values() == {"post_hoc.tau": 1.0}
    assert method.static_fields() == {
        "kind": "tau_norm", "head": {"kind": "linear"}, "post_hoc": {"kind": "tau_norm", "bias": "drop"}
    }  # fmt: skip


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"post_hoc": None}, r"tau_norm\.post_hoc: must be a mapping"),
        ({"post_hoc": {"kind": "tau_norm", "tau": -0.5}}, r"tau_norm\.post_hoc\.tau: must be at least 0, got -0\.5"),
        ({"post_hoc": {"kind": "logit_adjust"}}, "known: tau_norm"),
        ({"head": {"kind": "cosine"}}, "known: linear"),
        ({"lr": 0.1}, r"tau_norm\.lr: unknown key"),
    ],
)
def test_what_is_refused(document: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        METHODS.parse({"kind": "tau_norm", **document})
