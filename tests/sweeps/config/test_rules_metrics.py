"""Metrics in a sweep file: which may be listed, and which may be selected on."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.sweep_files import GOOD, load, problems

from lt_train.core.errors import SpecError
from lt_train.metrics import MacroF1
from sweeps.config.spec import SweepSpec

REFUSALS = {
    "unknown kind": (
        "metrics: [macro_f2]\n",
        "s.yaml:12: metrics[0].kind: unknown kind 'macro_f2'; did you mean 'macro_f1'? known: ",
    ),
    "twice": (
        "metrics: [macro_f1, nll, {kind: macro_f1}]\n",
        "s.yaml:12: metrics[2]: macro_f1 is already metrics[0]; list each kind of metric once",
    ),
    "not a list": ("metrics: macro_f1\n", "s.yaml:12: metrics: must be a list, got 'macro_f1'"),
    "misspelt": (
        "metrics: [macro_f1]\nselection: {metric: makro_f1}\n",
        "s.yaml:13: selection.metric: unknown metric 'makro_f1'; did you mean 'macro_f1'? known: acc_all, ",
    ),
    "not listed": (
        "selection: {metric: macro_f1}\n",
        "s.yaml:12: selection.metric: macro_f1 is not computed in this sweep; list it in metrics",
    ),
    "lower is better": (
        "metrics: [nll]\nselection: {metric: nll}\n",
        "s.yaml:13: selection.metric: must be a metric of which higher values are better, got nll, which can only be",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_wrong_metric_is_reported_with_its_line(tmp_path: Path, case: str) -> None:
    text, message = REFUSALS[case]
    (found,) = problems(tmp_path, GOOD + text)
    assert found.startswith(message), found


def test_words_and_instances_stand_for_metrics(tmp_path: Path) -> None:
    plain = load(tmp_path, GOOD)
    assert plain.metrics == []
    spec = load(tmp_path, GOOD + "metrics: [macro_f1, {kind: nll}]\nselection: {metric: macro_f1}\n")
    assert [score.name for score in spec.scores[4:]] == ["macro_f1", "nll"]
    document = {name: part for name, part in spec.resolved().items() if name != "metrics"}
    built = SweepSpec(**document, metrics=[MacroF1(), "nll"])
    assert built == spec
    assert built.fingerprint() == spec.fingerprint() != plain.fingerprint()
    with pytest.raises(SpecError, match=r"selection\.metric: macro_f1 is not computed in this sweep"):
        SweepSpec(**document)
