"""This machine: what it is, and how fast it reads and multiplies at best."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from pathlib import Path

import torch

from minigpt.bench.entrants import installed
from minigpt.model import GPT


def describe_machine(model: GPT) -> dict[str, str]:
    """What figures depend on: processor, threads, versions, size of the model."""
    cpu, info = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if info.exists():
        lines = (line.partition(":") for line in info.read_text().splitlines())
        cpu = next((value.strip() for key, _, value in lines if "model name" in key), cpu)
    found: dict[str, object] = {
        "CPU": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    if model.device.type == "cuda":
        found["GPU"] = torch.cuda.get_device_name(model.device)
    for name in ("torch", "transformers", "ctranslate2", "minigpt"):
        found[name] = installed(name) or "missing"
    found["parameters"] = f"{sum(weight.numel() for weight in model.parameters()):,}"
    found["dtype"], found["device"] = str(model.dtype).removeprefix("torch."), model.device
    return {name: str(value) for name, value in found.items()}


def prepare_read(device: torch.device, nbytes: int, times: int = 1) -> Callable[[], object]:
    """What comes back reads so much memory, so many times: a matrix of long rows times a vector.

    That is torch's quickest way, and as quick as a loop in C (`README.md` has the figures).
    """
    rows = max(2, nbytes // 2**16)
    matrix = torch.ones(rows, nbytes // (4 * rows), device=device)

    def read() -> float:
        for _ in range(times):
            product = torch.mv(matrix, matrix[0])
        return product[0].item()

    return read


def prepare_product(device: torch.device, dtype: torch.dtype, side: int) -> Callable[[], object]:
    """What comes back multiplies two square matrices."""
    matrix = torch.ones(side, side, dtype=dtype, device=device)
    return lambda: (matrix @ matrix)[0, 0].item()
