"""The device that `gpu_check.py` measures, shapes that suit it, and how to time there."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from minigpt.config import GPTConfig
from minigpt.model import GPT

STEPS = 64  # tokens timed at once


class Place:
    """The device, and shapes that suit it."""

    def __init__(self, device: str, small: bool) -> None:
        self.device, self.small = torch.device(device), small
        self.cuda = self.device.type == "cuda"
        self.rounds = 1 if small else 3
        self.steps = 8 if small else STEPS

    def model(self, preset: str, dtype: torch.dtype, numerics: str = "fast", **changes: Any) -> GPT:
        """With random weights, large enough for attention to prefer some keys to others."""
        config = GPTConfig.preset("nano" if self.small else preset)
        shape = {**config.__dict__, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}
        if self.small:
            shape |= {"n_positions": 160}
        shape |= {"initializer_range": 1.0 / config.n_embd**0.5, "eos_token_id": None, **changes}
        torch.manual_seed(0)
        with self.device:
            return GPT(GPTConfig(**shape), numerics).eval().to(self.device, dtype)

    def wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def seconds(self, run: Callable[[], object]) -> float:
        self.wait()
        began = time.perf_counter()
        run()
        self.wait()
        return time.perf_counter() - began

    def interleaved(self, contenders: dict[str, Callable[[], Callable[[], object]]]
                    ) -> dict[str, list[float]]:  # fmt: skip
        """Seconds in turns, after one round of warm-up; each prepares untimed."""
        samples: dict[str, list[float]] = {name: [] for name in contenders}
        for turn in range(self.rounds + 1):
            for name, prepare in contenders.items():
                took = self.seconds(prepare())
                if turn:
                    samples[name].append(took)
        return samples
