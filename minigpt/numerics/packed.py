"""A weight in oneDNN's own layout, whose product is the quicker one on x86 CPUs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from minigpt.numerics.changes import versions

PACK_FROM = 2**18  # numbers in a weight; below, a packed product is not quicker

LinearKernel = Callable[[Tensor, Tensor | None], Tensor]  # (rows, in), bias (out,) -> (rows, out)


class Packed:
    """One weight in oneDNN's own layout, made when inference first needs it.

    On x86 CPUs the packed product is the quicker one from two rows on, and its bits hardly ever
    depend on the number of rows (`exact.py` checks). It is a second copy of the weight: for a model
    that was loaded from a file the first copy is a memory map, which the system may drop at will.

    The packed copy follows its weight: moved, converted, replaced, changed in place (an ablation
    under `torch.no_grad()`) or trained, it is made anew. Writing through `weight.data` is invisible
    to torch's own bookkeeping and so to this: write to the weight itself.

    The operators are not a public interface of torch, so they are used only where they work.
    """

    def __init__(self) -> None:
        self._source: tuple[Any, ...] = ()
        self._kernel: LinearKernel | None = None

    def kernel(self, weight: Tensor) -> LinearKernel | None:
        """The packed product for a weight (in, out), or None where there is none."""
        if weight.device.type != "cpu" or torch.compiler.is_compiling():
            return None
        # The storage is kept alive, so that its address cannot come to mean another weight.
        source = (weight.untyped_storage(), weight.data_ptr(), versions([weight]), weight.dtype)
        if source[1:] != self._source[1:]:
            self._kernel, self._source = _pack(weight), source
        return self._kernel

    def __deepcopy__(self, memo: object) -> Packed:
        return Packed()

    def __reduce__(self) -> tuple[type[Packed], tuple[()]]:
        return Packed, ()


def _pack(weight: Tensor) -> LinearKernel | None:
    if not torch.backends.mkldnn.is_available():
        return None
    try:
        product = torch.ops.mkldnn._linear_pointwise
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().T.contiguous(), 128)
        product(weight.new_zeros(1, weight.shape[0]), packed, None, "none", [], "")
    except (RuntimeError, AttributeError, TypeError):
        return None
    return lambda x, bias: product(x, packed, bias, "none", [], "")
