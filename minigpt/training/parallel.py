"""Several processes that train one model together, under `torchrun`; or one, with the same code.

Each process takes its share of a step's windows, and gradients are averaged: by DDP, where every
process has the whole model, or by FSDP2, where each keeps a part of every weight. Only the first
process (`rank` 0) writes. The steps are those of one process but for the order of additions; and
for dropout, which each process draws for itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from minigpt.model import GPT
from minigpt.support.errors import MinigptError
from minigpt.support.wording import counted


@dataclass(frozen=True)
class Processes:
    """Who we are among how many, and the device that is ours."""

    device: torch.device
    rank: int = 0
    count: int = 1

    def share(self, rows: int, pieces: int) -> list[range]:
        """Which of a step's rows are ours, in the pieces that are computed one after another.

        Raises:
            MinigptError: when the rows cannot be divided evenly.
        """
        if rows % (self.count * pieces):
            raise MinigptError(
                f"batch_size is {rows}, which cannot be divided evenly among "
                f"{counted(self.count, 'process', 'processes')} with "
                f"{counted(pieces, 'piece')} each: make it a multiple of {self.count * pieces}"
            )
        size = rows // (self.count * pieces)
        first = self.rank * pieces
        return [
            range(size * (first + piece), size * (first + piece + 1)) for piece in range(pieces)
        ]

    def wrap(self, model: GPT, shard: bool) -> nn.Module:
        """The network to call in training: it exchanges gradients with the other processes.

        Sharded weights become DTensors in the model itself.
        """
        if not shard:
            model.to(self.device)
            return model if self.count == 1 else DistributedDataParallel(model)
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        if self.count == 1 and not dist.is_initialized():
            raise MinigptError("shard is for several processes: start minigpt with torchrun")
        mesh = init_device_mesh(self.device.type, (self.count,))
        for block in model.h:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        return model

    def sums(self, *values: float) -> list[float]:
        """Each value, added up over all processes."""
        if self.count == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.tolist()

    def wait(self) -> None:
        """Until every process is here."""
        if self.count > 1:
            self.sums(0.0)


def gather(tensor: Tensor) -> Tensor:
    """A weight or moment as one plain tensor. All processes must ask, for all give their part."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def scatter_like(tensor: Tensor, target: Tensor) -> Tensor:
    """A whole tensor, on the device and in the parts of `target`."""
    tensor = tensor.to(target.device)
    if isinstance(target, DTensor):
        return distribute_tensor(tensor, target.device_mesh, target.placements)
    return tensor


def without_exchange(network: nn.Module, last: bool) -> AbstractContextManager[None]:
    """Around a piece of a step: only the last piece exchanges gradients, for all of them."""
    if isinstance(network, DistributedDataParallel) and not last:
        return network.no_sync()
    return nullcontext()


@contextmanager
def processes(device: torch.device) -> Iterator[Processes]:
    """Those that torchrun started, or this one alone.

    Raises:
        MinigptError: when the others cannot be reached.
    """
    count, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    if "RANK" not in os.environ or dist.is_initialized():
        yield Processes(device)
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    try:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    except (RuntimeError, ValueError) as error:
        raise MinigptError(
            f"the other processes cannot be reached ({str(error).splitlines()[0]}): start minigpt "
            f"with torchrun"
        ) from error
    try:
        yield Processes(device, rank, count)
    finally:
        dist.destroy_process_group()
