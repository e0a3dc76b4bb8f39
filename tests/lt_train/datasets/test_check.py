"""The output of `lt-train data check`: JSON, bars by rank, and findings."""

import torch

from lt_train.datasets.base import Finding, Inspection
from lt_train.datasets.check import bars, document, lines

TAIL = [int(1280 * (5 / 1280) ** (k / 999)) for k in range(1000)]


def test_the_document_has_the_splits_and_the_imbalance_ratio() -> None:
    found = document(Inspection(torch.tensor([200, 100, 20, 19, 2]), {"train": 341, "test": 50}))
    assert found["imbalance_ratio"] == 100
    assert found["splits"] == {
        "all": {"classes": 5, "images": 341},
        "many": {"classes": 1, "images": 200},
        "medium": {"classes": 2, "images": 120},
        "few": {"classes": 2, "images": 21},
    }
    assert document(Inspection(torch.tensor([3, 0]), {}))["imbalance_ratio"] is None
    unknown = document(Inspection(None, {"train": 2}))
    assert unknown["classes"] is unknown["splits"] is unknown["class_counts"] is None


def test_a_few_classes_have_a_bar_each_the_largest_on_top() -> None:
    shown = bars([10, 40, 0, 20], ["auk", "crow", "dodo", "emu"], 40, plain=True)
    assert shown == [
        "crow  40 ###############################",
        "emu   20 ################",
        "auk   10 ########",
        "dodo   0",
    ]
    assert bars([2, 1], [], 20, plain=True)[1] == "class 1  1 #####"


def test_many_classes_share_twenty_bars_and_no_class_is_left_out() -> None:
    shown = bars(TAIL, [], 60, plain=True)
    assert len(shown) == 20
    assert shown[0].startswith("rank 1-50 ")
    assert shown[-1].startswith("rank 951-1000 ")
    lengths = [row.count("#") for row in shown]
    assert lengths == sorted(lengths, reverse=True)
    assert shown[-1].endswith(".")  # too short for a mark, but not empty
    assert [row.split()[1] for row in bars(TAIL[:21], [], 60, plain=True)][-1] == "20-21"
    assert max(map(len, shown)) <= 60


def test_a_terminal_has_finer_bars() -> None:
    shown = bars([64, 33, 1], ["a", "b", "c"], 17, plain=False)
    assert shown == ["a  64 ███████████", "b  33 █████▋", "c   1 ▏"]
    assert max(map(len, bars(TAIL, [], 60, plain=False))) <= 60


def test_a_finding_gives_the_number_of_further_items() -> None:
    findings = (Finding("images are missing", 22, ("a.jpg", "b.jpg")), Finding("the list is empty"))
    shown = lines(document(Inspection(None, {}, findings=findings)), 80, plain=True)
    assert shown[-5:] == [
        "- images are missing: 22",
        "    a.jpg",
        "    b.jpg",
        "    and 20 more",
        "- the list is empty",
    ]
    assert str(findings[0]) == "images are missing: 22 (a.jpg, b.jpg and 20 more)"
    assert lines(document(Inspection(torch.tensor([2, 1]), {"train": 3})), 80, plain=True)[-1] == "no problems found"
