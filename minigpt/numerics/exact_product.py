"""x W + b, exactly: in calls whose rows have the reference's bits (see `exact.py`)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from minigpt.numerics.base import plain_linear
from minigpt.numerics.calls import in_calls
from minigpt.numerics.certificates import LinearShape, certified_calls, paired_linear
from minigpt.numerics.copies import Copies, LinearKernel
from minigpt.numerics.place import Place


class ExactProduct:
    """x W + b for weights of one shape, in one place: certificates looked up, kernels chosen."""

    def __init__(self, place: Place, weight: Tensor, bias: Tensor | None) -> None:
        self.place, self.lies = place, (weight.shape, weight.stride(), bias is None)
        (n_in, n_out), by_column = weight.shape, weight.stride(0) == 1
        calls = certified_calls(LinearShape(n_in, n_out, by_column, bias is not None, place))
        self.reference, self.kernel = calls.reference, calls.kernel
        self.sizes, self.chains, self.in_pairs = calls.sizes, calls.chains, calls.in_pairs

    def fits(self, place: Place, weight: Tensor, bias: Tensor | None) -> bool:
        return self.place is place and self.lies == (weight.shape, weight.stride(), bias is None)

    def at_once(self, count: int, weight: Tensor, copies: Copies) -> LinearKernel | None:
        """What computes so many rows in one call, whatever their dimensions; None: no one call."""
        if count == 1 and self.in_pairs:
            stack = copies.stacked(weight)
            return lambda x, bias: paired_linear(x, stack, bias)
        if count == 1 and self.chains is not None:
            return copies.bags(weight, self.chains)
        return copies.packed(weight) if self.kernel.get(count) == "packed" else None

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None, copies: Copies) -> Tensor:
        """(..., in) -> (..., out)."""
        width = x.shape[-1]
        count = x.numel() // width
        x = x if x.is_contiguous() else x.contiguous()  # kernels may choose by strides as well
        if (at_once := self.at_once(count, weight, copies)) is not None:
            return at_once(x, bias)

        def call(rows: Tensor) -> Tensor:
            if self.kernel.get(rows.numel() // width, self.reference) == "packed":
                kernel = copies.packed(weight)
                assert kernel is not None  # there was one for a weight of this shape and place
                return kernel(rows, bias)
            return plain_linear(rows, weight, bias)

        rows = x if x.ndim == 2 else x.view(count, width)
        return in_calls(rows, call, self.sizes).view(*x.shape[:-1], -1)


class WithLinearGradient(torch.autograd.Function):
    """The exact product going forward, the usual gradients going back."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        product: ExactProduct,
        copies: Copies,
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return product(x, weight, bias, copies)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        by_x, by_weight, by_bias, *_ = ctx.needs_input_grad
        return (
            grad @ weight.T if by_x else None,
            x.T @ grad if by_weight else None,
            grad.sum(0) if by_bias and ctx.has_bias else None,
            None,
            None,
        )
