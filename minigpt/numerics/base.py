"""What layers do with rows: attention as a formula, and the operations behind one small interface.

A *row* is one position of one sequence. `attend` says plainly what attention computes; every
quicker way to compute it is tested against it. `RowOps` is what a layer may ask for. Two sets do
the work: `FastOps` (`fast.py`) takes the quickest kernel for the rows at hand, as every other
program does, and a row's bits then depend on how many rows came along; `ExactOps` (`exact.py`)
gives a row the same bits in any company.

Shapes use the legend of `model.py`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minigpt.numerics.copies import Copies


def attend(
    q: Tensor, k: Tensor, v: Tensor, starts: Sequence[int], scale: float, dropout: float = 0.0
) -> Tensor:
    """softmax(scale · Q Kᵀ) V: for each query a mean of the values, weighted by its keys' scores.

    Arguments and result as in `RowOps.attention`.
    """
    weights = F.dropout(attention_weights(q, k, starts, scale), dropout)  # (B, H, T, S)
    return weights @ v.repeat_interleave(q.shape[1] // v.shape[1], 1)  # (B, H, T, D)


def attention_weights(q: Tensor, k: Tensor, starts: Sequence[int], scale: float) -> Tensor:
    """softmax(scale · Q Kᵀ), the future hidden, (B, H, T, S): each query's weights sum to 1."""
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)  # (B, H, S, D): H / G heads share a key
    scores = scale * q @ k.transpose(-1, -2)  # (B, H, T, S)
    future = torch.where(visible(starts, q.shape[2], k.shape[2], q.device), 0.0, -torch.inf)
    return (scores + future.to(scores.dtype)).softmax(-1)


def visible(starts: Sequence[int], T: int, S: int, device: torch.device) -> Tensor:
    """May query t of row b see key s? Those up to its own position, (B, 1, T, S)."""
    new = torch.arange(T, device=device)
    positions = torch.tensor(starts, device=device)[:, None] + new  # (B, T)
    return torch.arange(S, device=device) <= positions[:, None, :, None]


KEY_BLOCK = 64  # exact attention meets keys in whole blocks of this many positions


def whole_blocks(positions: int) -> int:
    """So many positions, rounded up to whole blocks of keys: caches make room in these."""
    return -(-positions // KEY_BLOCK) * KEY_BLOCK


class RowOps(ABC):
    """What a layer may ask for. Every method maps rows to rows and keeps their order."""

    name: str
    keys_by_position = True  # must a query meet as many blocks of keys as its own position says?

    @abstractmethod
    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None, copies: Copies) -> Tensor:
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

    def _row_by_row(
        self, q: Tensor, k: Tensor, v: Tensor, starts: Sequence[int], scale: float, dropout: float
    ) -> Tensor:
        """Each text's attention for itself."""
        rows = zip(q.split(1), k.split(1), v.split(1), starts, strict=True)
        return torch.cat([self.attention(*qkv, [its], scale, dropout) for *qkv, its in rows])  # type: ignore[call-arg]

    def _in_runs(
        self,
        cuts: Sequence[int],
        q: Tensor,
        k: Tensor,
        v: Tensor,
        starts: Sequence[int],
        scale: float,
        dropout: float,
    ) -> Tensor:
        """The attention of one text's new positions in runs, of which all but the first begin at
        these: no query meets a key of a later run."""
        (start,), T, done = starts, q.shape[2], []
        for low, high in pairwise([0, *cuts, T]):
            seen = start + high
            part = q[:, :, low:high], k[:, :, :seen], v[:, :, :seen]
            done.append(self.attention(*part, [start + low], scale, dropout))
        return torch.cat(done, 2)

    @abstractmethod
    def activation(self, x: Tensor, name: str) -> Tensor:
        """One of `config.ACTIVATIONS`, element by element."""

    def activated(self, linear: nn.Module, x: Tensor, name: str) -> Tensor:
        """The activation of what a layer makes of x."""
        y = self.together(linear, x, name)
        return self.activation(linear(x), name) if y is None else y

    def together(self, linear: nn.Module, x: Tensor, name: str) -> Tensor | None:
        """Both in one call, whose bits may be its own; None: one after the other."""
        return None

    @abstractmethod
    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        """Normalise the last dimension, then scale and shift."""

    def log_softmax(self, x: Tensor) -> Tensor:
        """Log-probabilities from logits, over the last dimension."""
        return x.log_softmax(-1)

    def check_context(self, dtype: torch.dtype, device: torch.device) -> None:
        """Refuse surroundings in which this set cannot keep its word (none, for fast)."""
        return None


class RowModule(nn.Module):
    """A part of a model whose arithmetic on rows goes through a set of operations, `ops`."""

    ops: RowOps


def row_modules(model: nn.Module) -> Iterator[tuple[str, RowModule]]:
    """Every part of a model that has row operations, with its name."""
    for name, module in model.named_modules():
        if isinstance(module, RowModule):
            yield name, module


def set_ops(model: nn.Module, ops: RowOps) -> None:
    """Let every part of a model use these."""
    for _, module in row_modules(model):
        module.ops = ops


# --- pieces that both sets use --------------------------------------------------------------------


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


ACTIVATION: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_new": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "gelu": F.gelu,
    "relu": F.relu,
}


def plain_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W + b by torch's own products, with gradients: (..., in) -> (..., out)."""
    if bias is None or x.ndim != 2:
        return F.linear(x, weight.T, bias)
    return torch.addmm(bias, x, weight)


def records_gradients(*tensors: Tensor | None) -> bool:
    """Will anything computed from these want a backward pass?"""
    if not torch.is_grad_enabled():
        return False
    return any(tensor is not None and tensor.requires_grad for tensor in tensors)


def finite(*numbers: Tensor) -> bool:
    """Is every number one? (A sum that overflows is taken for none, which costs time only.)"""
    return all(math.isfinite(part.detach().sum(dtype=torch.float32)) for part in numbers)


def cuts_before_infinite(k: Tensor, v: Tensor) -> list[int]:
    """The positions (dimension 2) but 0 that hold a NaN or an infinity, of which queries before
    them must not hear. After a key that is NaN in every head nothing is a number any more."""
    bad = ~(k.isfinite() & v.isfinite()).all(3).all(1).all(0)  # (T,)
    end = k.isnan().any(3).all(1).all(0).nonzero().flatten().tolist()  # the first of these
    return [p for p in bad.nonzero().flatten().tolist() if p > 0 and (not end or p <= end[0])]
