"""Any method with any head, sampler, constraint and adjustment can be trained or is rejected with a reason."""

import itertools
import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from lt_train.core.errors import SpecError
from lt_train.methods.base import METHODS, MethodSpec, TrainedMethod
from lt_train.methods.constraints import CONSTRAINTS
from lt_train.methods.heads.base import HEADS
from lt_train.methods.post_hoc import POST_HOC
from lt_train.methods.samplers import SAMPLERS

PARTS: dict[str, list[str | None]] = {
    "head": list(HEADS.kinds()),
    "sampler": list(SAMPLERS.kinds()),
    "constraint": [None, *CONSTRAINTS.kinds()],
    "post_hoc": [None, *POST_HOC.kinds()],
}
COUNTS = torch.tensor([90, 30, 10, 2])
every_method = pytest.mark.parametrize("kind", METHODS.kinds())


def documents(kind: str) -> Iterator[dict[str, Any]]:
    """Every combination of the parts that a method of this kind has."""
    names = [name for name in PARTS if name in METHODS.kinds()[kind].model_fields]
    for parts in itertools.product(*(PARTS[name] for name in names)):
        chosen = zip(names, parts, strict=True)
        yield {"kind": kind, **{name: None if part is None else {"kind": part} for name, part in chosen}}


def outcome(document: dict[str, Any]) -> MethodSpec | str:
    try:
        return METHODS.parse(document)
    except SpecError as error:
        return str(error)


@every_method
def test_it_can_be_trained_or_is_rejected_with_a_reason(kind: str) -> None:
    found = [(document, outcome(document)) for document in documents(kind)]
    allowed = [(document, method) for document, method in found if isinstance(method, MethodSpec)]
    assert allowed, f"{kind} has no valid combination"
    for document, reason in found:
        if isinstance(reason, str):
            named = [part["kind"] for part in document.values() if isinstance(part, dict)]
            assert any(word in reason for word in (*named, "must be a mapping")), reason
            assert any(word in reason for word in ("has none", "must be", "known:", "each correct")), reason
    for document, method in allowed:
        for name, part in document.items():
            own = getattr(method, name)
            assert (own if own is None or isinstance(own, str) else own.kind) == (
                part and part["kind"] if name != "kind" else kind
            )
        assert METHODS.parse(json.loads(method.model_dump_json())) == method
        assert method.incompatibility(COUNTS) == ""
        if isinstance(method, TrainedMethod):
            lanes = {name: torch.tensor(value) for name, value in method.lane_values().items()}
            loss = method.loss(lanes, COUNTS)(torch.zeros(4, 4), torch.arange(4))
            assert bool(loss.isfinite().all())


@every_method
def test_exactly_the_invalid_combinations_are_rejected(kind: str) -> None:
    spec = METHODS.kinds()[kind]
    for document in documents(kind):
        head, constraint, adjustment = (
            HEADS.kinds()[document["head"]["kind"]],
            document.get("constraint"),
            document.get("post_hoc"),
        )
        post_hoc = POST_HOC.kinds()[adjustment["kind"]] if adjustment else None
        random = spec.model_fields["init"].default == "random" if "init" in spec.model_fields else False
        sampler = SAMPLERS.kinds().get((document.get("sampler") or {}).get("kind", ""))
        correcting = [getattr(one, "corrects_prior", False) for one in (spec, sampler, post_hoc)]
        invalid = (
            not all(fixed(spec, name, document[name]) for name in document if name != "kind")
            or (random and head.needs_classifier)
            or (constraint is not None and not head.has_rows)
            or (post_hoc is not None and post_hoc.needs_rows and not head.has_rows)
            or sum(correcting) > 1
        )
        assert isinstance(outcome(document), str) == invalid, document


def fixed(spec: type[MethodSpec], name: str, part: dict[str, str] | None) -> bool:
    """Whether the method accepts this part: it is free, or it is the part that defines the method."""
    default, annotation = spec.model_fields[name].default, spec.model_fields[name].annotation
    if annotation is type(None) or annotation is type(default):
        return (part or {}).get("kind") == (default.kind if default is not None else None)
    return True


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (
            {"kind": "ce", "head": "cosine", "constraint": "maxnorm"},
            "maxnorm bounds the length .* cosine has none; use",
        ),
        ({"kind": "ce", "head": "lws", "post_hoc": "tau_norm"}, "tau_norm divides by the length .* lws has none; use"),
        (
            {"kind": "ce", "head": "disalign", "init": "random"},
            "disalign re-scales .* init must be checkpoint, got random",
        ),
        ({"kind": "crt", "head": "lws"}, "lws re-scales .* init must be checkpoint, got random"),
        (
            {"kind": "class_balanced", "sampler": "class_balanced"},
            "the loss of class_balanced and sampler class_balanced each correct for class frequencies",
        ),
        ({"kind": "ltwb", "post_hoc": "logit_adjust"}, "the loss of ltwb and post_hoc logit_adjust each correct"),
        ({"kind": "disalign", "sampler": "class_balanced"}, "the loss of disalign and sampler class_balanced each"),
        (
            {"kind": "balanced_softmax", "post_hoc": "logit_adjust"},
            "each correct for class frequencies; keep only one",
        ),
        (
            {"kind": "logit_adjust_loss", "post_hoc": "logit_adjust"},
            "each correct for class frequencies; keep only one",
        ),
        (
            {"kind": "cosine", "head": {"kind": "linear"}},
            r"cosine\.head\.kind: unknown kind .linear.; .* known: cosine",
        ),
        ({"kind": "resample", "sampler": {"kind": "instance"}}, "unknown kind .instance.; known: class_balanced"),
        ({"kind": "crt", "init": "checkpoint"}, r"crt\.init: must be .random., got .checkpoint"),
        ({"kind": "vanilla", "sampler": {"kind": "instance"}}, "sampler: unknown key"),
        ({"kind": "ce", "head": "sphere"}, "unknown kind .sphere.; .*known: cosine, disalign, linear, lws"),
    ],
)
def test_reasons(document: dict[str, Any], reason: str) -> None:
    with pytest.raises(SpecError, match=reason):
        METHODS.parse(document)


@every_method
def test_every_part_has_a_default(kind: str) -> None:
    assert METHODS.parse({"kind": kind}) == METHODS.kinds()[kind]()


@every_method
def test_lane_values_are_the_numbers_and_the_rest_is_static(kind: str) -> None:
    method = METHODS.kinds()[kind]()
    lanes, static = method.lane_values(), json.dumps(method.static_fields())
    assert all(type(value) is float for value in lanes.values())
    for path, value in lanes.items():
        assert getattr_path(method, path) == value
        assert f'"{path.rpartition(".")[2]}"' not in static, path
    if method.trains:
        assert {"lr", "weight_decay", "momentum"} <= set(lanes)


def getattr_path(spec: Any, path: str) -> Any:
    for name in path.split("."):
        spec = getattr(spec, name)
    return spec


@every_method
def test_a_class_without_images_is_rejected_where_the_method_divides_by_its_size(kind: str) -> None:
    """Either the method names the empty class, or it can be trained without it."""
    empty = torch.tensor([90, 0, 10, 2])
    method = METHODS.kinds()[kind]()
    reason = method.incompatibility(empty)
    if reason:
        assert reason == "every class must have training images, but 1 of 4 have none: 1"
    elif isinstance(method, TrainedMethod):
        lanes = {name: torch.tensor(value) for name, value in method.lane_values().items()}
        losses, gradients = method.loss(lanes, empty).with_gradient(torch.eye(3, 4), torch.tensor([0, 2, 3]))
        assert bool(losses.isfinite().all())
        assert bool(gradients.isfinite().all())
