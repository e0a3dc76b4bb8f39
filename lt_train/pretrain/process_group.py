"""The processes that train one network together: which this is, what part of a batch is its, what they agree on.

Knows `torch.distributed` and nothing that launches processes: where a process group is initialised its processes are
the ranks, else this one is alone and nothing is sent. What is sent goes over the device that the group serves.
Shapes: R ranks, B images of a batch of all ranks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

__all__ = ["ProcessGroup"]

_STEPS_BETWEEN_WORDS = 20
"""How many steps ranks make before they ask one another again: on a GPU an answer is waited for."""


class ProcessGroup:
    """This process among `count`; the first writes files and reports."""

    def __init__(self, device: str) -> None:
        self.device = device
        together = distributed.is_available() and distributed.is_initialized()
        self.count = distributed.get_world_size() if together else 1
        self.rank = distributed.get_rank() if together else 0

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes and reports."""
        return self.rank == 0

    @property
    def own(self) -> tuple[int, ...]:
        """What tells this rank's random streams from those of the first, which are those of one process."""
        return (self.rank,) if self.rank else ()

    def share(self, size: int) -> slice:
        """This rank's part of a batch of B images; all of it where some rank would get fewer than two.

        For batch norm has no variance to speak of in one image. Every rank then computes the same.
        """
        if self.splits(size):
            part, larger = divmod(size, self.count)
            start = self.rank * part + min(self.rank, larger)
            return slice(start, start + part + (self.rank < larger))
        return slice(0, size)

    def splits(self, size: int) -> bool:
        """Whether a batch of B images is shared out, and not computed whole by every rank."""
        return self.count > 1 and size >= 2 * self.count

    def wrap(self, network: nn.Module, *, sync_batch_norm: bool) -> nn.Module:
        """The network as it is trained: gradients are means over ranks, buffers and first weights the first rank's."""
        if self.count == 1:
            return network
        if sync_batch_norm:
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        devices = [torch.cuda.current_device()] if torch.device(self.device).type == "cuda" else None
        # A model of others may have layers that the loss does not reach.
        return DistributedDataParallel(network, device_ids=devices, find_unused_parameters=True)

    def agree(self, step: int, *flags: bool) -> tuple[bool, ...]:
        """For each flag whether any rank raised it; ranks tell one another at every twentieth step alone."""
        if self.count == 1:
            return flags
        if step % _STEPS_BETWEEN_WORDS:
            return (False,) * len(flags)
        said = torch.tensor(flags, dtype=torch.int32, device=self.device)
        distributed.all_reduce(said, op=distributed.ReduceOp.MAX)
        return tuple(map(bool, said.tolist()))

    def gathered(self, values: Tensor) -> Tensor:
        """`[R, ...]`: the values of every rank, in order."""
        if self.count == 1:
            return values[None]
        parts = [torch.empty_like(values) for _ in range(self.count)]
        distributed.all_gather(parts, values)
        return torch.stack(parts)

    def from_first(self, document: Any) -> Any:
        """What the first rank has."""
        if self.count == 1:
            return document
        shared = [document]
        distributed.broadcast_object_list(shared, device=torch.device(self.device))
        return shared[0]

    def tensors_from_first(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors that the first rank has, by name, on the device; those of the others are not looked at."""
        if self.count == 1:
            return tensors
        shapes = self.from_first({name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()})
        received = {}
        for name, (shape, dtype) in shapes.items():
            if self.first:
                received[name] = tensors[name].to(self.device).contiguous()
            else:
                received[name] = torch.empty(shape, dtype=dtype, device=self.device)
            distributed.broadcast(received[name], 0)
        return received

    def wait(self) -> None:
        """Until every rank is here."""
        if self.count > 1:
            distributed.barrier()
