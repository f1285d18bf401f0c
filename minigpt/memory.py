"""How much memory a device has left, so that a request can be refused before it does harm."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch

MEMINFO = Path("/proc/meminfo")


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


@lru_cache
def _has_meminfo() -> bool:
    return MEMINFO.exists()
