"""The fast set: for the rows at hand, whatever kernel is the quickest."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from minigpt.numerics.base import ACTIVATION, RowOps, plain_linear, records_gradients, visible
from minigpt.numerics.certificates import packed_works
from minigpt.numerics.copies import COPY_FROM, Copies
from minigpt.numerics.place import Place


class FastOps(RowOps):
    """The quickest kernel for the rows at hand."""

    name = "fast"

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None, copies: Copies) -> Tensor:
        rows = x.numel() // x.shape[-1]
        if not records_gradients(x, weight):
            # One row of float32 only reads the weight, which the plain product does quicker.
            many = rows > 1 or x.dtype != torch.float32
            if many and weight.numel() >= COPY_FROM:
                kernel = copies.packed(weight)
                if kernel is not None and packed_works(*weight.shape, Place.of(x)):
                    return kernel(x, bias)
            elif x.ndim == 3 and len(x) == 1 and bias is not None and weight.stride(1) == 1:
                return torch.baddbmm(
                    bias, x, copies.stacked(weight)
                )  # without the views of a flat product
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
