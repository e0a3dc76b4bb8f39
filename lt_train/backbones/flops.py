"""The number of floating-point operations of a network, from which the time of stage 1 is estimated."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["forward_flops"]


def forward_flops(network: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """Floating-point operations of the forward pass of one image `(C, H, W)`, two per multiply-add.

    Only convolutions and matrix products are counted. The network is moved to the device `meta`, which discards its
    weights.
    """
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network.eval().to("meta")(torch.empty(1, *image_shape, device="meta"))
    return int(counter.get_total_flops())
