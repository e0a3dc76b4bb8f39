"""The processes that train one network together: rank, share of a batch, collective operations.

If a `torch.distributed` process group is initialised, its processes are the ranks. Otherwise there is one process, and
nothing is communicated. Who launches the processes is not decided here. Communication uses the group's device.

Shapes: R ranks, B images in the batch of all ranks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

__all__ = ["ProcessGroup"]

_STEPS_BETWEEN_SYNCS = 20
"""Steps between two exchanges of flags: on a GPU each exchange waits for the device."""


class ProcessGroup:
    """This process, `rank` among `count`; rank 0 is the main process, which writes files and reports progress."""

    def __init__(self, device: str) -> None:
        self.device = device
        distributed_run = distributed.is_available() and distributed.is_initialized()
        self.count = distributed.get_world_size() if distributed_run else 1
        self.rank = distributed.get_rank() if distributed_run else 0

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and reports progress."""
        return self.rank == 0

    @property
    def stream_suffix(self) -> tuple[int, ...]:
        """What to append to the name of a random stream; empty on rank 0, which draws what a single process draws."""
        return (self.rank,) if self.rank else ()

    def share(self, size: int) -> slice:
        """This rank's part of a batch of B images; the whole batch where a rank would get fewer than two images.

        Batch norm needs at least two images. Where the batch is not split, every rank computes the same.
        """
        if self.splits(size):
            part, larger = divmod(size, self.count)
            start = self.rank * part + min(self.rank, larger)
            return slice(start, start + part + (self.rank < larger))
        return slice(0, size)

    def splits(self, size: int) -> bool:
        """Whether a batch of B images is divided among the ranks instead of being computed by each of them."""
        return self.count > 1 and size >= 2 * self.count

    def wrap(self, network: nn.Module, *, sync_batch_norm: bool) -> nn.Module:
        """The network to train: gradients are averaged over ranks; initial weights and buffers are those of rank 0."""
        if self.count == 1:
            return network
        if sync_batch_norm:
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        devices = [torch.cuda.current_device()] if torch.device(self.device).type == "cuda" else None
        # An imported model may have layers that do not contribute to the loss.
        return DistributedDataParallel(network, device_ids=devices, find_unused_parameters=True)

    def any_rank(self, step: int, *flags: bool) -> tuple[bool, ...]:
        """For each flag whether any rank raised it; False without communication except at every 20th step."""
        if self.count == 1:
            return flags
        if step % _STEPS_BETWEEN_SYNCS:
            return (False,) * len(flags)
        raised = torch.tensor(flags, dtype=torch.int32, device=self.device)
        distributed.all_reduce(raised, op=distributed.ReduceOp.MAX)
        return tuple(map(bool, raised.tolist()))

    def all_gather(self, values: Tensor) -> Tensor:
        """`[R, ...]`: the values of every rank, in order."""
        if self.count == 1:
            return values[None]
        parts = [torch.empty_like(values) for _ in range(self.count)]
        distributed.all_gather(parts, values)
        return torch.stack(parts)

    def broadcast(self, document: Any) -> Any:
        """The document of rank 0."""
        if self.count == 1:
            return document
        shared = [document]
        distributed.broadcast_object_list(shared, device=torch.device(self.device))
        return shared[0]

    def broadcast_tensors(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of rank 0 by name, on the device; those of other ranks are ignored."""
        if self.count == 1:
            return tensors
        shapes = self.broadcast({name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()})
        received = {}
        for name, (shape, dtype) in shapes.items():
            if self.is_main:
                received[name] = tensors[name].to(self.device).contiguous()
            else:
                received[name] = torch.empty(shape, dtype=dtype, device=self.device)
            distributed.broadcast(received[name], 0)
        return received

    def barrier(self) -> None:
        """Wait until every rank has called this."""
        if self.count > 1:
            distributed.barrier()
