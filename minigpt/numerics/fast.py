"""The fast set: for the rows at hand, whatever kernel is the quickest."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from minigpt.numerics.base import ACTIVATION, RowOps, plain_linear, records_gradients, visible
from minigpt.numerics.packed import PACK_FROM, Packed


class FastOps(RowOps):
    """The quickest kernel for the rows at hand."""

    name = "fast"

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None, packed: Packed) -> Tensor:
        rows = x.numel() // x.shape[-1]
        # One row of float32 only reads the weight, which the plain product does quicker.
        plain = weight.numel() < PACK_FROM or (rows == 1 and x.dtype == torch.float32)
        if not plain and not records_gradients(x, weight):
            kernel = packed.kernel(weight)
            if kernel is not None:
                return kernel(x.reshape(rows, -1), bias).view(*x.shape[:-1], -1)
        return plain_linear(x, weight, bias)

    def attention(
        self, q: Tensor, k: Tensor, v: Tensor, starts: Sequence[int], scale: float, dropout: float
    ) -> Tensor:
        T, start, even = q.shape[2], max(starts), min(starts) == max(starts)
        k, v = k[:, :, : start + T], v[:, :, : start + T]
        mask = None
        if not even or (start > 0 and T > 1):  # one mask for all rows, or one for each
            mask = visible(starts[:1] if even else starts, T, start + T, q.device)
        causal, grouped = mask is None and T > 1, q.shape[1] != k.shape[1]
        return F.scaled_dot_product_attention(
            q, k, v, mask, dropout, causal, scale=scale, enable_gqa=grouped
        )

    def activation(self, x: Tensor, name: str) -> Tensor:
        return ACTIVATION[name](x)

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        return F.layer_norm(x, weight.shape, weight, bias, eps)
