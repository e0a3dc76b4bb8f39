"""The trained head of a trial, read from its sweep, and the weights of the whole model with that head.

Shapes: N images, D features, K classes.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from torch import Tensor, nn

from lt_train.backbones.base import WholeModel
from lt_train.backbones.checkpoint import load_whole
from lt_train.core.errors import CheckpointError, LongtailError, UserError
from lt_train.core.validation import named, nearest
from lt_train.methods.heads.fold import as_linear
from sweeps.analysis.image_classifier import backbone_of
from sweeps.analysis.labels import trial_label
from sweeps.analysis.load import Sweep
from sweeps.analysis.selection import TrialRuns
from sweeps.store.records import Record

__all__ = ["ANY_HEAD", "TrainedHead", "trained_head", "trial_named", "whole_model", "winner_state_dict"]

ANY_HEAD = "the formats pt2 and onnx hold any head"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainedHead:
    """The head of a trial's best seed.

    Attributes:
        sweep: its sweep.
        trial: its trial.
        record: its run: the best of the trial's seeds by the selection metric.
        classifier: features `[N, D]` to logits `[N, K]`.
        dims: `(K, D)`.
    """

    sweep: Sweep
    trial: TrialRuns
    record: Record
    classifier: nn.Module
    dims: tuple[int, int]

    @property
    def name(self) -> str:
        """The label of its trial: method and number, such as `los, trial 3`, or the name of a baseline."""
        return trial_label(self.trial)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes when the features were extracted, by number; empty if they are unknown."""
        manifest = self.sweep.manifest
        names = () if manifest is None else tuple(manifest.class_names)
        if names and len(names) != self.dims[0]:
            _log.warning("classes are numbered, because the dataset named %d of %d classes", len(names), self.dims[0])
            return ()
        return names


def trained_head(sweep: Sweep, trial: TrialRuns | None = None) -> TrainedHead:
    """The head of a trial; by default of the winner, or of the leader of an unfinished sweep.

    Raises:
        UserError: there is no such trial yet, it failed or was stopped, or its head was removed because it cannot win.
        LongtailError: the file of its head is missing or altered; the message names it.
    """
    chosen = sweep.winner if trial is None else trial
    if chosen is None:
        raise UserError(f"no trial of sweep {sweep.spec.name} has finished, so there is no head to export")
    name = chosen.trial.name
    if chosen.failed or chosen.stopped is not None:
        what = "failed" if chosen.failed else f"was stopped early, after epoch {chosen.stopped}"
        raise UserError(f"trial {name} {what}, so its head is not stored; choose another trial")
    record = sweep.best_seed(chosen)
    needed = [sweep.winner, *sweep.baselines]
    if chosen not in needed and sweep.ledger.is_head_lost(record.key):
        kept = [one.trial.name for one in sweep.every if _is_stored(sweep, one)]
        raise UserError(
            f"trial {name} could not win any more, so its head was removed; heads are stored of {named(kept, 10)}"
        )
    state = sweep.ledger.head(record.key)
    method = chosen.trial.method
    try:
        return TrainedHead(sweep, chosen, record, method.classifier(state).eval(), method.state_shape(state))
    except (KeyError, RuntimeError) as error:
        raise LongtailError(f"the head of {name} does not fit its method {method.kind}: {error}") from None


def _is_stored(sweep: Sweep, one: TrialRuns) -> bool:
    return not one.failed and one.stopped is None and not sweep.ledger.is_head_lost(sweep.best_seed(one).key)


def trial_named(sweep: Sweep, name: str) -> TrialRuns:
    """The finished trial of this name, such as `search-0003` or `baseline-ce`.

    Raises:
        UserError: there is none.
    """
    known = {one.trial.name: one for one in sweep.every}
    if name not in known:
        meant = nearest(name, known) or ";"
        raise UserError(
            f"trial must be a finished trial of {sweep.spec.name}, got {name!r}{meant} trials: "
            f"{named(list(known), 10) or 'none'}"
        )
    return known[name]


def whole_model(head: TrainedHead) -> WholeModel:
    """The weights of the whole model with the head; of a sweep on given features, of the head alone.

    Raises:
        UserError: the head is not linear, or the model's classifier cannot hold it; the message has the formats that
            can. Or see `sweeps.analysis.image_classifier.backbone_of`.
    """
    method = head.trial.trial.method
    linear = as_linear(head.classifier)
    if linear is None:
        raise UserError(
            f"a state dict must have a linear head, but that of {head.name} is not linear (method {method.kind}, head "
            f"{method.head.kind}); {ANY_HEAD}"
        )
    if head.sweep.spec.backbone is None:
        classes, dim = linear[0].shape
        tensors = dict(zip(("weight", "bias"), linear, strict=True))
        return WholeModel(tensors, f"model = torch.nn.Linear({dim}, {classes})", channels=0)
    _, source = backbone_of(head.sweep)
    try:
        return load_whole(source.backbone, source.shape, linear)
    except CheckpointError:
        raise
    except UserError as error:
        raise UserError(f"{error}; {ANY_HEAD}") from None


def winner_state_dict(sweep: Sweep, trial: TrialRuns | None = None) -> dict[str, Tensor]:
    """The weights of the whole model with a trial's head, by default the winner's, for `load_state_dict`.

    Of a backbone `imported`, the names are those of the model that its factory creates, and its classifier holds the
    head. Other backbones are a `lt_train.backbones.layers.Classifier`. A sweep on given features has no model: `weight
    [K, D]` and `bias [K]` of a `torch.nn.Linear`. Tensors are on the CPU and do not share memory.

    Raises:
        UserError: see `trained_head` and `whole_model`.
        LongtailError: see `trained_head`.
    """
    tensors = whole_model(trained_head(sweep, trial)).tensors
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
