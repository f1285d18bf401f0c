"""Row operations for training in half precision on a CPU.

They are the fast ones (`numerics.py`), except for attention: the backward pass of the fused kernel
takes 5 times as long in bfloat16 as in float32 there, and two plain products take less than either.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from minigpt.numerics.base import FastOps, records_gradients

LONGEST = 512  # tokens; beyond, the T x T weights take more memory than they save time


class TrainingOps(FastOps):
    """Fast operations whose backward pass is fast as well."""

    def attention(
        self, q: Tensor, k: Tensor, v: Tensor, starts: Sequence[int], scale: float, dropout: float
    ) -> Tensor:
        B, H, T, _ = q.shape
        half_on_cpu = q.device.type == "cpu" and q.dtype != torch.float32
        if not half_on_cpu or any(starts) or T > LONGEST or not records_gradients(q, k, v):
            return super().attention(q, k, v, starts, scale, dropout)
        if k.shape[1] < H:
            k, v = (part.repeat_interleave(H // part.shape[1], 1) for part in (k, v))
        q, k, v = (part.flatten(0, 1) for part in (q, k, v))  # (B·H, T, D)
        ahead = torch.full((T, T), -torch.inf, dtype=q.dtype).triu_(1)  # what a query may not see
        scores = torch.baddbmm(ahead, q, k.transpose(1, 2), alpha=scale)  # (B·H, T, T)
        attended = F.dropout(scores.softmax(-1), dropout) @ v  # (B·H, T, D)
        return attended.unflatten(0, (B, H))
