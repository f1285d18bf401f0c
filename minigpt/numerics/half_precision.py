"""Row operations for training in half precision on a CPU.

They are the fast ones (`fast.py`), except for attention: the backward pass of the fused kernel
takes 5 times as long in bfloat16 as in float32 there, and two plain products take less than either.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from minigpt.numerics.base import attend, records_gradients
from minigpt.numerics.fast import FastOps

LONGEST = 512  # tokens; beyond, the T x T weights take more memory than they save time


class TrainingOps(FastOps):
    """Fast operations whose backward pass is fast as well."""

    def attention(
        self, q: Tensor, k: Tensor, v: Tensor, starts: Sequence[int], scale: float, dropout: float
    ) -> Tensor:
        half_on_cpu = q.device.type == "cpu" and q.dtype != torch.float32
        short = q.shape[2] <= LONGEST
        if half_on_cpu and short and not any(starts) and records_gradients(q, k, v):
            return attend(q, k, v, starts, scale, dropout)
        return super().attention(q, k, v, starts, scale, dropout)
