"""The fast set: for the rows at hand, whatever kernel is the quickest."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minigpt.numerics.base import (
    ACTIVATION,
    RowOps,
    cuts_before_infinite,
    finite,
    plain_linear,
    records_gradients,
    visible,
)
from minigpt.numerics.certificates import PackedShape, packed_works
from minigpt.numerics.changes import may_interfere
from minigpt.numerics.copies import COPY_FROM, Copies, LinearKernel, Packed
from minigpt.numerics.device_attention import DeviceStarts, quickly
from minigpt.numerics.place import Place

PIECEWISE = range(192, 768)  # queries; torch's kernel lets so many meet all keys up to number 512
PIECE = 64  # queries that it takes at once of so many


class FastOps(RowOps):
    """The quickest kernel for the rows at hand."""

    name = "fast"
    keys_by_position = False

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None, copies: Copies) -> Tensor:
        if torch.compiler.is_compiling():
            return plain_linear(x, weight, bias)
        product = copies.ready(self, x, weight)
        if product is None and not records_gradients(x, weight, bias):
            product = self._product(x, weight, bias, copies)
            if product is not None:
                copies.make_ready(self, x, weight, product)
        return plain_linear(x, weight, bias) if product is None else product(x, bias)

    @staticmethod
    def _product(
        x: Tensor, weight: Tensor, bias: Tensor | None, copies: Copies
    ) -> LinearKernel | None:
        """The quickest for so many rows; None: the plain one."""
        kernel = FastOps._kernel(x, weight, copies)
        if kernel is not None:
            return kernel
        if x.is_cpu and x.ndim == 3 and len(x) == 1 and bias is not None:
            # A flat product would need views of rows, before and after.
            stack = copies.stacked(weight)
            return lambda x, bias: torch.baddbmm(bias, x, stack)  # type: ignore[arg-type]
        return None

    @staticmethod
    def _kernel(x: Tensor, weight: Tensor, copies: Copies) -> Packed | None:
        """The packed product, where it is the quickest."""
        # One row of float32 only reads the weight, which the plain product does quicker.
        many = x.numel() > x.shape[-1] or x.dtype != torch.float32
        # Autocast, which does not know this kernel, has mixed dtypes to convert.
        if not many or weight.numel() < COPY_FROM or x.dtype != weight.dtype:
            return None
        kernel, (n_in, n_out) = copies.packed(weight), weight.shape
        works = kernel is not None and packed_works(PackedShape(n_in, n_out, Place.of(x)))
        return kernel if works else None

    def attention(
        self, q: Tensor, k: Tensor, v: Tensor, starts: Sequence[int], scale: float, dropout: float
    ) -> Tensor:
        if isinstance(starts, DeviceStarts):
            return quickly(q, k, v, starts, scale)
        T, start, even = q.shape[2], max(starts), min(starts) == max(starts)
        if T > 1 and self._may_look(q, k, v):
            new = [x[:, :, min(starts) : start + T] for x in (k, v)]
            if not finite(*new):
                if len(q) > 1:
                    return self._row_by_row(q, k, v, starts, scale, dropout)
                # Masked weights are 0, but 0 x NaN is NaN: earlier queries must not meet it.
                if cuts := cuts_before_infinite(*new):
                    return self._in_runs(cuts, q, k, v, starts, scale, dropout)
        if k.shape[2] > start + T:
            k, v = k.narrow(2, 0, start + T), v.narrow(2, 0, start + T)
        mask = None
        if not even or (start > 0 and T > 1):  # one mask for all rows, or one for each
            mask = visible(starts[:1] if even else starts, T, start + T, q.device)
        causal, grouped = mask is None and T > 1, q.shape[1] != k.shape[1]
        if causal and T in PIECEWISE and dropout == 0 and self._may_look(q, k, v):
            return _in_pieces(q, k, v, scale, grouped)
        return F.scaled_dot_product_attention(
            q, k, v, mask, dropout, causal, scale=scale, enable_gqa=grouped
        )

    @staticmethod
    def _may_look(q: Tensor, k: Tensor, v: Tensor) -> bool:
        """Can numbers be looked at, at next to no cost? On a GPU that would wait for it."""
        return q.is_cpu and not torch.compiler.is_compiling() and not records_gradients(q, k, v)

    def together(self, linear: nn.Module, x: Tensor, name: str) -> Tensor | None:
        # The numbers between the two need not go through memory, if nobody wants to see them. (A
        # compiler sees to that itself.)
        if torch.compiler.is_compiling():
            return None
        if x.dtype == torch.float32 and name in Packed.THEN and self._only_multiplies(linear, x):
            kernel = self._kernel(x, linear.weight, linear.copies)  # type: ignore[arg-type]
            if kernel is not None:
                return kernel.activated(x, linear.bias, name)  # type: ignore[arg-type]
        return None

    def _only_multiplies(self, linear: nn.Module, x: Tensor) -> bool:
        """Is it x W + b and nothing else: our layer with these operations, as we wrote it?"""
        if may_interfere(linear) or getattr(linear, "ops", None) is not self:
            return False
        written = type(linear).forward.__module__ == "minigpt.model"
        return written and not records_gradients(x, linear.weight, linear.bias)  # type: ignore[arg-type]

    def activation(self, x: Tensor, name: str) -> Tensor:
        return ACTIVATION[name](x)

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        return F.layer_norm(x, weight.shape, weight, bias, eps)


def _in_pieces(q: Tensor, k: Tensor, v: Tensor, scale: float, grouped: bool) -> Tensor:
    """Attention of a text's first queries, (B, H, T, D), each piece with the keys up to its end."""
    T = q.shape[2]
    mask = _future(-(-T // PIECE) * PIECE, q.dtype, q.device)
    done = []
    for low in range(0, T, PIECE):
        end = min(low + PIECE, T)
        part, keys, values = q[:, :, low:end], k[:, :, :end], v[:, :, :end]
        future = mask[low:end, :end]
        done.append(
            F.scaled_dot_product_attention(
                part, keys, values, future, scale=scale, enable_gqa=grouped
            )
        )
    return torch.cat(done, 2)


@lru_cache(maxsize=4)
def _future(count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """What hides it, (count, count): 0 where query t sees key s, else -inf."""
    with torch.inference_mode(False):
        return torch.full((count, count), -torch.inf, dtype=dtype, device=device).triu(1)
