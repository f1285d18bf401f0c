"""How much memory there is, so that a request can be refused before it does harm, and is taken."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from minigpt.support.errors import MinigptError

LARGE = 2**20  # bytes
MODEL_ADVICE = "take a smaller model or dtype (--dtype bfloat16), or another device"
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
    return _proc("meminfo", "MemAvailable") if device.type == "cpu" else None


def require_memory(need: int, device: torch.device, what: str, advice: str) -> None:
    """Refuse what needs more bytes than are free on a device, if it tells.

    Raises:
        MinigptError: then, with both numbers.
    """
    free = available_memory(device)
    if free is not None and need > free:
        raise MinigptError(f"{what} needs {need:,} bytes, and {device} has {free:,} free: {advice}")


def process_memory(peak: bool = False) -> int | None:
    """Bytes of RAM that this process takes now, or took at its peak; None where nobody says."""
    found = _proc("self/status", "VmHWM" if peak else "VmRSS")
    if found is None and peak and sys.platform == "darwin":
        import resource  # Windows has none

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found


def peak_memory(device: torch.device) -> int | None:
    """The most bytes that were in use at one time: on a GPU, or else by this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return process_memory(peak=True)


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


def _proc(file: str, key: str) -> int | None:
    """A line of what Linux tells about memory, in bytes; None elsewhere."""
    try:
        lines = Path("/proc", file).read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(key)), None)
