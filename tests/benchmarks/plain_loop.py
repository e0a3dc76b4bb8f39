"""Classifier re-training as anyone would write it with torch.nn and torch.optim: one run, nothing of this project.

This is what the fused engine and the sweep are measured against. Keep it plain, and keep it honest: nothing in it may
be slower than what a good tutorial shows for features that are in memory.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

__all__ = ["train"]


def train(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    *,
    weight: Tensor,
    bias: Tensor,
    epochs: int,
    batch_size: int,
    lr: float,
    weight_decay: float = 0.0,
    smooth_factor: float = 0.0,
    seed: int = 0,
    data_loader: bool = False,
) -> Iterator[float]:
    """Train a linear head from `weight [K, D]` and `bias [K]`; yields the test accuracy after every epoch.

    Features are `[N, D]` and lie, with everything else, on the device that is to train. Batches are cut out of them by
    index, which is fast, or with `data_loader` come from a torch DataLoader, as most tutorials have it.
    """
    device = train_features.device
    order = torch.Generator().manual_seed(seed)
    head = nn.Linear(weight.shape[1], weight.shape[0]).to(device)
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(bias)
    criterion = nn.CrossEntropyLoss(label_smoothing=smooth_factor)
    optimizer = torch.optim.SGD(head.parameters(), lr=lr, momentum=0.9, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs)
    loader = DataLoader(TensorDataset(train_features, train_labels), batch_size, shuffle=True, generator=order)
    for _ in range(epochs):
        if data_loader:
            batches = iter(loader)
        else:
            indices = torch.randperm(len(train_labels), generator=order).to(device)
            batches = ((train_features[batch], train_labels[batch]) for batch in indices.split(batch_size))
        for features, labels in batches:
            loss = criterion(head(features), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
        with torch.no_grad():
            predictions = head(test_features).argmax(dim=1)
            accuracy = (predictions == test_labels).float().mean().item()
        yield accuracy
