"""How much memory a device has left, so that a request can be refused before it does harm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

MEMINFO = Path("/proc/meminfo")
LARGE = 2**20  # bytes
ALIGNED = 64  # bytes: a cache line, as torch aligns its own


def available_memory(device: torch.device) -> int | None:
    """Bytes that could still be allocated there; None where nobody says.

    Linux hands out memory that it does not have and kills the program that uses it, so an
    allocation that succeeds proves nothing.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + kept
    if device.type != "cpu" or not _has_meminfo():
        return None
    for line in MEMINFO.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return 1024 * int(line.split()[1])  # it is given in kB
    return None


def zeros(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros, which on a CPU take no memory and no time before they are first written.

    torch.zeros writes them all at once: 35 ms for a cache of GPT-2 124M's context.
    """
    count = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or count < LARGE:
        return torch.zeros(*shape, dtype=dtype, device=device)
    room = torch.from_numpy(np.zeros(count + ALIGNED, np.uint8))  # pages that the system has ready
    start = -room.data_ptr() % ALIGNED
    return room[start : start + count].view(dtype).view(*shape)


@lru_cache
def _has_meminfo() -> bool:
    return MEMINFO.exists()
