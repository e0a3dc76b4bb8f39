"""In what the files of several sweeps differ, leaf by leaf. Pure.

Left out is what decides no result: names, where results are kept and shown, where packs run, and while the features are
the same, where the files lie that they came from. Knows specs; runs and reads nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from sweeps.config.methods import Candidate
from sweeps.config.spec import SHARED, SweepSpec
from sweeps.config.trials import baseline_trials

__all__ = ["leaves_that_differ", "rows_that_differ"]


def leaves_that_differ(specs: Sequence[SweepSpec], banks: Sequence[str]) -> dict[str, list[Any]]:
    """By dotted path, what each of the sweeps has there, None where it has nothing; the bank's fingerprint first.

    Args:
        specs: of the sweeps.
        banks: fingerprints of their features.
    """
    several = any(spec.methods is not None for spec in specs)
    files = len(set(banks)) > 1
    documents = [_document(spec, several=several, files=files) for spec in specs]
    for part in ("methods", "baselines"):
        shared = set.intersection(*(set(one.get(part, {})) for one in documents))
        for document in documents:  # of what not all have, there is no more to tell apart
            for name in document.get(part, {}).keys() - shared:
                document[part][name] = "given"
    return rows_that_differ([{"bank": bank} | own for bank, own in zip(banks, documents, strict=True)])


def rows_that_differ(documents: Sequence[Mapping[str, Any]], always: Collection[str] = ()) -> dict[str, list[Any]]:
    """By dotted path of a leaf, the values of all documents, where they are not all the same, or `always`."""
    found = [dict(_flat(document)) for document in documents]
    rows = {path: [one.get(path) for one in found] for path in dict.fromkeys(path for one in found for path in one)}
    return {path: row for path, row in rows.items() if path in always or any(value != row[0] for value in row)}


def _document(spec: SweepSpec, *, several: bool, files: bool) -> dict[str, Any]:
    document = spec.resolved()
    for part in SHARED:
        del document[part]
    if not files:
        for field in spec.files():
            section, _, name = field.partition(".")
            del document[section][name]
    document["baselines"] = {
        one.name.removeprefix("baseline-"): one.method.model_dump(mode="json") for one in baseline_trials(spec)
    }
    if several:  # one method is a list of one: what is searched for it is what stands for all
        document.pop("method", None)
        del document["search"]["space"]
        document["methods"] = {one.name: _entry(one, spec) for one in spec.candidates()}
    return document


def _entry(one: Candidate, spec: SweepSpec) -> dict[str, Any]:
    own = one.training.model_dump(mode="json") if one.method.trains and one.training != spec.training else {}
    space = {path: dimension.model_dump(mode="json") for path, dimension in one.space.items()}
    return {"method": one.method.model_dump(mode="json"), "training": own, "space": space}


def _flat(document: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves by dotted path; a list is a leaf, and what is null is not there."""
    for name, value in document.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif value is not None:
            yield f"{prefix}{name}", value
