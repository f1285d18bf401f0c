"""Exact numerics: a row's bits depend on its own numbers and its position, on nothing else.

Why bits differ at all. A product row · column is a long sum, and floating-point addition is not
associative: (a + b) + c and a + (b + c) round differently. A library picks the order of each sum
for speed, by the *shape* of the whole call: one row goes to another kernel than sixteen, many rows
are cut for the caches another way, two threads may split one sum in two. Decoding with a cache
computes one row at a time, the uncached pass computes all rows at once; so the sums are ordered
differently and the last bits differ. Nothing is wrong, and nothing is equal.

Two levels make them equal.

*By construction.* A call of one fixed shape orders its sums in one fixed way. Every row alone, in
the first place of a call of `TILE` rows, the others zero: whatever came along with the row before,
it meets the same kernel in the same place. This holds wherever the same call gives the same bits
twice, on any device, in any dtype. It costs up to `TILE` times the work.

*By certificate.* Most kernels do better than they promise. A probe (`certificates.py`) runs the
very kernel on the very shape, dtype, device and number of threads with numbers that nearly cancel,
so that another order of summation shows, and compares it, bit for bit, with the first level. Sizes
that pass may be used, others are not: rows are cut and padded into calls of certified sizes only
(`plan`), and where none passes, the first level is left. A certificate is remembered for its shape,
dtype, device, thread count and precision setting; change any of these, and the next call probes
again.

Attention has one more freedom to lose, the number of keys. Here a query at position p always meets
the keys of all whole blocks of `KEY_BLOCK` up to p, in one call; those after p are masked and their
weight is exactly zero. So p alone decides the number of keys. Softmax and the norms work row by
row; elementwise addition and multiplication are rounded correctly whatever the kernel. The
activation is neither (its kernel mixes vector and scalar code, whose last bits differ), so it is
certified too.

Training may use these operations as well: the forward is this, the gradients are the usual ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from minigpt.numerics.base import (
    ACTIVATION,
    KEY_BLOCK,
    DeviceStarts,
    RowOps,
    plain_linear,
    records_gradients,
)
from minigpt.numerics.certificates import (
    TILE,
    AttentionShape,
    LinearShape,
    Place,
    RowwiseShape,
    attention_mix,
    attention_scores,
    attention_sizes,
    certified_calls,
    rowwise_sizes,
)
from minigpt.numerics.packed import Packed
from minigpt.support.errors import MinigptError


class ExactOps(RowOps):
    """Row operations in certified calls only."""

    name = "exact"

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None, packed: Packed) -> Tensor:
        n_in, n_out = weight.shape
        by_column, has_bias = weight.stride(0) == 1, bias is not None
        shape = LinearShape(n_in, n_out, by_column, has_bias, Place.of(x))
        certified = certified_calls(shape)

        def call(rows: Tensor) -> Tensor:
            if certified.kernel.get(len(rows), certified.reference) == "packed":
                kernel = packed.kernel(weight)
                assert kernel is not None  # there was one for a weight of this shape and place
                return kernel(rows, bias)
            return plain_linear(rows, weight, bias)

        def product(rows: Tensor) -> Tensor:
            return in_calls(rows, call, certified.sizes)

        rows = x.reshape(-1, x.shape[-1])
        if records_gradients(x, weight):
            y = _WithLinearGradient.apply(rows, weight, bias, product)  # type: ignore[no-untyped-call]
        else:
            y = product(rows)
        return y.view(*x.shape[:-1], -1)

    def attention(
        self, q: Tensor, k: Tensor, v: Tensor, starts: Sequence[int], scale: float, dropout: float
    ) -> Tensor:
        B, H, T, D = q.shape
        G, start, place = k.shape[1], max(starts), Place.of(q)
        end = start + T
        firsts = range(start - start % KEY_BLOCK, end, KEY_BLOCK)  # of the key blocks of queries
        shapes = [AttentionShape(B, G, H // G, s + KEY_BLOCK, D, place) for s in firsts]
        # Rows go together if all their queries meet the same key blocks, each with a mask of its
        # own; and if a batch of that size is certified, for the reference is one sequence alone.
        ragged = min(starts) < start
        if (ragged and (T > 1 or min(starts) < firsts[0])) or (
            B > 1 and not all(map(attention_sizes, shapes))
        ):
            each: Sequence[Sequence[int]] = [(start,) for start in starts]
            if isinstance(starts, DeviceStarts):
                each = starts.split()
            rows = zip(q.split(1), k.split(1), v.split(1), each, strict=True)
            return torch.cat(
                [self.attention(*qkv, its, scale, dropout) for *qkv, its in rows]  # type: ignore[call-arg]
            )
        missing = firsts[-1] + KEY_BLOCK - k.shape[2]
        if missing > 0:  # no room was left to read in whole blocks
            k, v = F.pad(k, (0, 0, 0, missing)), F.pad(v, (0, 0, 0, missing))
        k, v = k.flatten(0, 1), v.flatten(0, 1)  # (N, S, D), with N = B·G
        q = (q * scale).reshape(B * G, H // G, T, D)  # (N, R, T, D), with R = H / G
        blocks = []
        for first, shape in zip(firsts, shapes, strict=True):
            low, high = max(start, first), min(end, first + KEY_BLOCK)
            queries = q if high - low == T else q[:, :, low - start : high - start]
            seen = slice(0, first + KEY_BLOCK)
            lows: list[int] | Tensor = [s - first for s in starts] if ragged else [low - first]
            if isinstance(starts, DeviceStarts):
                lows = starts.hidden[:, first:]
            sizes = attention_sizes(shape)
            blocks.append(_attend_in_block(queries, k[:, seen], v[:, seen], lows, sizes, dropout))
        y = blocks[0] if len(blocks) == 1 else torch.cat(blocks, 2)  # (N, R, T, D)
        return y.reshape(B, H, T, D)

    def activation(self, x: Tensor, name: str) -> Tensor:
        return _rowwise(name, ACTIVATION[name], x)

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        return _rowwise(
            "layer_norm", lambda rows: F.layer_norm(rows, weight.shape, weight, bias, eps), x
        )

    def check_context(self, device: torch.device) -> None:
        if _compiling():
            raise MinigptError(
                "torch.compile chooses kernels of its own, whose bits exact numerics cannot "
                "vouch for: call the model uncompiled, or use numerics='fast'"
            )
        if torch.is_autocast_enabled(device.type):
            raise MinigptError(
                "autocast picks a dtype call by call and exact numerics keeps one: leave the "
                "autocast block, or load the model with dtype=torch.bfloat16, or use "
                "numerics='fast'"
            )


def _rowwise(name: str, call: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    width = x.shape[-1]
    if x.numel() == width:  # one row is the reference
        return call(x)
    return in_calls(
        x.reshape(-1, width), call, rowwise_sizes(RowwiseShape(name, width, Place.of(x)))
    ).view_as(x)


def _attend_in_block(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lows: list[int] | Tensor,
    sizes: tuple[int, ...],
    dropout: float,
) -> Tensor:
    """Attention of queries that lie in the last key block.

    (N, R, T, D) queries, (N, S, D) keys and values -> (N, R, T, D). `lows` says how far into the
    block the first query is: one number for all, or one for each sequence, of a single query then;
    or which keys of the block that one does not see, (B, KEY_BLOCK).
    """
    N, R, T, D = q.shape
    done, offset = [], 0
    for take, size in plan(T, sizes):
        scores = attention_scores(_padded(q[:, :, offset : offset + take], size, 2), k)
        if isinstance(lows, Tensor) or len(lows) > 1:
            hidden = lows if isinstance(lows, Tensor) else _future(q.device)[lows]  # (B, KEY_BLOCK)
            by_row = scores.view(len(hidden), -1, scores.shape[-1])  # (B, G·R·size, S)
            by_row[..., -KEY_BLOCK:].masked_fill_(hidden[:, None], -torch.inf)
        elif take > 1:
            first = lows[0] + offset
            hidden = _future(q.device)[first : first + size]  # (size, KEY_BLOCK)
            scores.view(N, R, size, -1)[..., -KEY_BLOCK:].masked_fill_(hidden, -torch.inf)
        elif (first := lows[0] + offset) < KEY_BLOCK - 1:
            scores[:, :, first + 1 - KEY_BLOCK :] = -torch.inf
        weights = scores.softmax(-1)  # (N, R·size, S)
        if dropout > 0:
            weights = F.dropout(weights, dropout)
        done.append(attention_mix(weights, v).view(N, R, size, D)[:, :, :take])
        offset += take
    return done[0] if len(done) == 1 else torch.cat(done, 2)


class _WithLinearGradient(torch.autograd.Function):
    """The exact product going forward, the usual gradients going back."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        product: Callable[[Tensor], Tensor],
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return product(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        return grad @ weight.T, x.T @ grad, grad.sum(0) if ctx.has_bias else None, None


def _compiling() -> bool:
    """Is torch.compile tracing this, or waiting to trace what this calls?"""
    if torch.compiler.is_compiling():
        return True
    callback = getattr(torch._C._dynamo.eval_frame, "get_eval_frame_callback", lambda: None)()
    return callback is not None and callback is not False


# --- cutting rows into calls ------------------------------------------------------------------


@lru_cache(maxsize=4096)
def plan(rows: int, sizes: tuple[int, ...]) -> list[tuple[int, int]]:
    """Cut `rows` rows into calls of these sizes: pairs (rows taken, size of the call).

    Few rows, or a nearly full call, are padded up to the next size; otherwise the largest size that
    fits goes first. With no size to choose from, each row goes alone into a call of `TILE`.
    """
    calls = []
    while rows:
        above = min((size for size in sizes if size >= rows), default=None)
        below = max((size for size in sizes if size <= rows), default=None)
        if above is not None and (below is None or above <= max(64, 1.25 * rows)):
            calls.append((rows, above))
            break
        take, size = (below, below) if below is not None else (1, TILE)
        calls.append((take, size))
        rows -= take
    return calls


def in_calls(rows: Tensor, call: Callable[[Tensor], Tensor], sizes: tuple[int, ...]) -> Tensor:
    """call(rows) for (N, width) rows, in calls of these sizes only."""
    count = rows.shape[0]
    cuts = plan(count, sizes)
    if len(cuts) == 1:
        ((_, size),) = cuts
        return call(rows) if size == count else call(_padded(rows, size, 0))[:count]
    done, offset = [], 0
    for take, size in cuts:
        done.append(call(_padded(rows[offset : offset + take], size, 0))[:take])
        offset += take
    return torch.cat(done)


def _padded(rows: Tensor, size: int, dim: int) -> Tensor:
    """Fill up to `size` with copies of the last row, which nobody will read."""
    count = rows.shape[dim]
    if count == size:
        return rows
    shape = list(rows.shape)
    if count == 1:
        shape[dim] = size
        return rows.expand(shape).contiguous()
    shape[dim] = size - count
    return torch.cat([rows, rows.narrow(dim, -1, 1).expand(shape)], dim)


@lru_cache
def _future(device: torch.device) -> Tensor:
    """[i, j]: is key j of a block later than query i? Rows past the block are padding: all seen."""
    with torch.inference_mode(False):
        block = torch.ones(KEY_BLOCK, KEY_BLOCK, dtype=torch.bool, device=device).triu(1)
        return F.pad(block, (0, 0, 0, KEY_BLOCK))
