"""Classifier re-training of one run with torch.nn and torch.optim, without code of this project.

The fused engine and the sweep are compared with this loop. Keep it plain and fair: it must be as fast as what a good
tutorial shows for features in memory. Methods without a head or loss in torch pass their own. Batches, optimiser,
learning rate schedule and evaluation are the same for all methods.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

__all__ = ["linear", "train"]

Criterion = Callable[[Tensor, Tensor], Tensor]
"""Mean loss of logits `[B, K]` and labels `[B]`."""


def linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A linear layer that starts from the stage-1 head, `weight [K, D]` and `bias [K]`."""
    head = nn.Linear(weight.shape[1], weight.shape[0]).to(weight.device)
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(bias)
    return head


def train(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    head: nn.Module,
    criterion: Criterion,
    epochs: int,
    batch_size: int,
    lr: float,
    weight_decay: float = 0.0,
    seed: int = 0,
    draw: Callable[[int], Tensor] | None = None,
    after_epoch: Callable[[nn.Module], None] | None = None,
    data_loader: bool = False,
) -> Iterator[float]:
    """Train `head`; yields the test accuracy after every epoch.

    Features are `[N, D]`. All tensors must be on the device of `head`. Batches are selected by index, which is fast, or
    with `data_loader` by a torch DataLoader, as in most tutorials. `draw(epoch)` returns the image indices of an epoch
    for methods that do not simply shuffle. `after_epoch` can project the weights.
    """
    device = train_features.device
    order = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(head.parameters(), lr=lr, momentum=0.9, weight_decay=weight_decay)
    lr_schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs)
    loader = DataLoader(TensorDataset(train_features, train_labels), batch_size, shuffle=True, generator=order)
    for epoch in range(epochs):
        batches: Iterable[list[Tensor]] = loader
        if not data_loader:
            indices = torch.randperm(len(train_labels), generator=order) if draw is None else draw(epoch)
            batches = ([train_features[batch], train_labels[batch]] for batch in indices.to(device).split(batch_size))
        for features, labels in batches:
            loss = criterion(head(features), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if after_epoch is not None:
            after_epoch(head)
        lr_schedule.step()
        with torch.no_grad():
            predictions = head(test_features).argmax(dim=1)
            accuracy = (predictions == test_labels).float().mean().item()
        yield accuracy
