"""Cross entropy with label smoothing, per sample: the loss of `ce` and of Label Over-Smooth. Knows torch only."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["cross_entropy"]


def cross_entropy(logits: Tensor, labels: Tensor, smooth_factor: Tensor | float = 0.0) -> Tensor:
    """Cross entropy against smoothed labels (paper, Eq. 12), per sample.

    `-sum_i y~_i log softmax(z)_i` with `y~_i = 1 - d + d/K` for the true class and `d/K` for the others; natural
    logarithm. d = 0 is plain cross entropy; d -> 1 approaches uniform targets. At its optimum the true logit stands
    `log(1 + K(1 - d)/d)` above the others.

    Args:
        logits: float `[..., K]`.
        labels: int64, broadcastable to `[...]`, in `[0, K)`.
        smooth_factor: d in `[0, 1)`, a number or a tensor broadcastable to `[...]`.

    Returns:
        float `[...]`, >= 0.
    """
    log_probabilities = torch.log_softmax(logits, dim=-1)
    index = labels.expand(logits.shape[:-1]).unsqueeze(-1)
    true = log_probabilities.gather(-1, index).squeeze(-1)
    return (smooth_factor - 1.0) * true - smooth_factor * log_probabilities.mean(dim=-1)
