"""Weights as 8-bit integers, for inference: a quarter of the bytes to read for every token.

Each output column of a weight has a scale of its own, and so has each row that comes in: both
become whole numbers from -127 to 127, and a product of them is a sum of whole numbers. Integer
addition *is* associative, so its bits depend neither on the kernel nor on the rows beside it: what
`exact.py` has to certify holds here by itself. The rest, a division, a rounding, two
multiplications and an addition, goes element by element and is rounded correctly.

The model changes, by as much as rounding changes it; `minigpt score --weights int8` says how much.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor, nn

from minigpt.numerics.changes import checksum
from minigpt.support.errors import MinigptError

LEVELS = 127  # an 8-bit integer and its negative
CHUNK = 2**24 // LEVELS**2  # terms whose sum float32 holds exactly, in whatever order they come

IntegerProduct = Callable[[Tensor], Tensor]  # (..., in) whole numbers -> (..., out) sums x scale


class Int8Linear(nn.Module):
    """y = x W + b with W in 8 bits: of a weight (in, out) in floating point.

    Source of the scheme: per-column weights and per-row activations, symmetric, as in LLM.int8()
    without its outliers (Dettmers et al. 2022).
    """

    scale: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("scale", _unit(weight.detach().float(), 0, 1 / LEVELS)[0])  # (out,)
        self.register_buffer("bias", None if bias is None else bias.detach().float())
        rounded = (weight.detach() / self.scale).round().to(torch.int8)  # (in, out)
        levels, self.product = _product(rounded, self.scale)
        # A tensor, because a Python number would be converted anew at every call.
        self.share = torch.tensor(1 / levels, dtype=torch.float32, device=weight.device)
        # The integers lie inside the product; a fingerprint of the model reads their sum here.
        seal = torch.frombuffer(bytearray(checksum(rounded)), dtype=torch.uint8)
        self.register_buffer("seal", seal, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out), in the dtype of x."""
        if torch.is_grad_enabled() and x.requires_grad:
            raise MinigptError(
                "int8 weights have no gradients: train the model that they were made from, or wrap "
                "inference in torch.no_grad()"
            )
        rows = x if x.dtype == torch.float32 else x.float()
        unit = _unit(rows, -1, self.share)  # (..., 1)
        y = self.product((rows / unit).round_()).mul_(unit)
        if self.bias is not None:
            y.add_(self.bias)
        return y if x.dtype == torch.float32 else y.to(x.dtype)

    def __deepcopy__(self, memo: object) -> Int8Linear:
        return self  # it never changes


def _unit(x: Tensor, dim: int, share: Tensor | float) -> Tensor:
    """What 1 stands for: this share of the largest number along `dim`; never 0."""
    largest = x.abs().amax(dim, keepdim=True)  # `vector_norm` takes up to four times as long
    return largest.mul_(share).clamp_min_(torch.finfo(x.dtype).tiny)


def _product(weight: Tensor, scale: Tensor) -> tuple[int, IntegerProduct]:
    """The integers that rows may reach here, and the quickest exact product for them."""
    if weight.device.type == "cpu" and (levels := _fbgemm_levels()):
        return levels, _fbgemm(weight, scale)
    return LEVELS, _anywhere(weight, scale)


def _anywhere(weight: Tensor, scale: Tensor) -> IntegerProduct:
    """By float32 products of whole numbers, short enough that no sum is ever rounded."""

    def product(rows: Tensor) -> Tensor:
        shape = *rows.shape[:-1], weight.shape[1]
        sums = torch.zeros(shape, dtype=torch.int32, device=rows.device)
        for part, its in zip(rows.split(CHUNK, -1), weight.split(CHUNK), strict=True):
            sums += (part @ its.float()).int()
        return sums.float() * scale

    return product


def _fbgemm(weight: Tensor, scale: Tensor) -> IntegerProduct:
    """By the 8-bit kernels that torch has for x86 CPUs, over a packed copy of the weight.

    They keep rows as unsigned bytes, hence the zero point. They would round them as well, but only
    after adding it, which rounds twice: rows must come as whole numbers. Raises RuntimeError or
    AttributeError where torch lacks them: it means to retire them, and then `_anywhere` is left.
    """
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = "fbgemm"
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*quantize", category=UserWarning)
            zeros = torch.zeros(weight.shape[1], dtype=torch.int64)
            quantized = torch._make_per_channel_quantized_tensor(
                weight.T.contiguous(), scale.double(), zeros, 0
            )
            packed = torch.ops.quantized.linear_prepack(quantized, None)
    finally:
        torch.backends.quantized.engine = before
    kernel = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32
    return lambda rows: kernel(rows, 1.0, 128, packed)


@lru_cache
def _fbgemm_levels() -> int:
    """The largest integers whose sums its kernels get right on this CPU; 0 without such kernels.

    Older CPUs add pairs of products in 16 bits, where two products of 127 and 255 are too many.
    """
    for levels in (LEVELS, LEVELS // 2):
        try:
            weight = torch.full((64, 64), LEVELS, dtype=torch.int8)
            weight[:, 1::2] = -LEVELS
            product = _fbgemm(weight, torch.ones(64))
            rows = torch.full((2, 64), float(levels))
            rows[1] = -levels
            if torch.equal(product(rows), rows @ weight.float()):
                return levels
        except (RuntimeError, AttributeError, TypeError):
            break
    return 0
