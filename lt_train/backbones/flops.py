"""How much arithmetic a network is, counted by running it on shapes alone: what the time of stage 1 is estimated by."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["forward_operations"]


def forward_operations(network: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """Operations of one image `(C, H, W)` through the network: two for each multiply-add of its products.

    Batch norm, activations and pooling are not counted. The network is moved to torch's device `meta` and is of no
    other use afterwards.
    """
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network.eval().to("meta")(torch.empty(1, *image_shape, device="meta"))
    return int(counter.get_total_flops())
