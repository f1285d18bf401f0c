"""Row operations: the arithmetic that layers do on rows, behind one small interface.

A *row* is one position of one sequence. `FastOps` takes whatever kernel is quickest for the rows
at hand, which is what every other program does; the bits of a row then depend on how many rows
came along. `ExactOps` (`exact.py`) gives a row the same bits in any company. Layers call these
methods and do not know which set they run.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from minigpt.support.errors import MinigptError

NUMERICS = ("fast", "exact")
PACK_FROM = 2**18  # numbers in a weight; below, a packed product is not quicker


class RowOps(ABC):
    """What a layer may ask for. Every method maps rows to rows and keeps their order."""

    name: str

    @abstractmethod
    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None, packed: Packed) -> Tensor:
        """x W + b: (..., in), (in, out), (out,) -> (..., out)."""

    @abstractmethod
    def attention(
        self, q: Tensor, k: Tensor, v: Tensor, starts: Sequence[int], scale: float, dropout: float
    ) -> Tensor:
        """Causal attention: query t of row b sees the keys up to number starts[b] + t.

        Args:
            q: (B, H, T, D).
            k, v: (B, G, S', D), each row's S' at least its start + T.
            starts: for each row, the keys that come before those of the T new positions.
            scale: multiplies the scores.
            dropout: probability of dropping an attention weight.

        Returns:
            (B, H, T, D).
        """

    @abstractmethod
    def activation(self, x: Tensor, name: str) -> Tensor:
        """One of `config.ACTIVATIONS`, element by element."""

    @abstractmethod
    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        """Normalise the last dimension, then scale and shift."""

    def check_context(self, device: torch.device) -> None:
        """Refuse surroundings in which this set cannot keep its word (none, for fast)."""
        return None


def row_ops(name: str) -> RowOps:
    """The set called "fast" or "exact".

    Raises:
        MinigptError: for any other name.
    """
    if name == "fast":
        return FastOps()
    if name == "exact":
        from minigpt.numerics.exact import ExactOps

        return ExactOps()
    raise MinigptError(f"numerics is {name!r}, needed 'fast' or 'exact'")


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
        T, start = q.shape[2], max(starts)
        S = start + T
        k, v = k[:, :, :S], v[:, :, :S]
        mask = None
        if min(starts) < start:  # a row each: (B, 1, T, S)
            last = torch.tensor(starts, device=q.device)[:, None] + torch.arange(T, device=q.device)
            mask = torch.arange(S, device=q.device) <= last[:, None, :, None]
        elif start > 0 and T > 1:
            mask = torch.ones(T, S, dtype=torch.bool, device=q.device).tril_(start)
        return F.scaled_dot_product_attention(
            q, k, v, mask, dropout, is_causal=mask is None and T > 1, scale=scale,
            enable_gqa=q.shape[1] != k.shape[1],
        )  # fmt: skip

    def activation(self, x: Tensor, name: str) -> Tensor:
        return ACTIVATION[name](x)

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        return F.layer_norm(x, weight.shape, weight, bias, eps)


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


ACTIVATION: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_new": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "gelu": F.gelu,
    "relu": F.relu,
}

LinearKernel = Callable[[Tensor, Tensor | None], Tensor]


def plain_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W + b by torch's own products, with gradients: (..., in) -> (..., out)."""
    if bias is None or x.ndim != 2:
        return F.linear(x, weight.T, bias)
    return torch.addmm(bias, x, weight)


def records_gradients(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


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
        version = 0 if weight.is_inference() else weight._version
        # The storage is kept alive, so that its address cannot come to mean another weight. Fused
        # optimizers change weights without counting a new version, so their steps count as well.
        steps = optimizer_steps()[0]
        source = (weight.untyped_storage(), weight.data_ptr(), version, steps, weight.dtype)
        if source[1:] != self._source[1:]:
            self._kernel, self._source = _pack(weight), source
        return self._kernel

    def __deepcopy__(self, memo: object) -> Packed:
        return Packed()

    def __reduce__(self) -> tuple[type[Packed], tuple[()]]:
        return Packed, ()


@lru_cache
def optimizer_steps() -> list[int]:
    """[number of optimizer steps taken in this process, since this was first called]."""
    steps = [0]

    def count(*_: object) -> None:
        steps[0] += 1

    register_optimizer_step_post_hook(count)
    return steps


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
