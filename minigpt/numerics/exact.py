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
very kernel on the very shape, in the very place (`place.py`), with numbers that nearly cancel, so
that another order of summation shows, and compares it, bit for bit, with the first level. Sizes
that pass may be used, others are not: rows are cut and padded into calls of certified sizes only
(`plan`), and where none passes, the first level is left. A certificate holds for its shape and
place; when threads, dtype, device or a switch of torch's changes, the next call probes again. On
disk certificates outlive the process (`certificate_file.py`).

One row alone deserves a kernel of its own, for it is what decoding computes, and the kernels for
many rows waste half of what they read. The usual matrix · vector product adds in an order that no
other kernel shares. But most kernels for many rows turn out to add in plain chains of
multiply-adds over so many terms, and a bag of embeddings is such a chain too (`copies.Bags`): with
bags of the right length it has the very bits, at nearly the speed. The probe finds the length. A
small weight lies in the processor's caches, and what counts is the number of calls: there the row
goes twice, together with itself, to the kernel for many (`certificates.paired_linear`).

Attention has one more freedom to lose, the number of keys. Here a query at position p always meets
the keys of all whole blocks of `KEY_BLOCK` up to p, in one call; those after p are masked and their
weight is exactly zero. So p alone decides the number of keys. (A few queries may leave out most of
what is masked, where a probe finds that this changes nothing: the zeros come last in every sum.)
The norms work row by row; elementwise addition and multiplication are rounded correctly whatever
the kernel. The activation is neither (its kernel mixes vector and scalar code, whose last bits
differ), so it is certified too.

Training may use these operations as well: the forward is this, the gradients are the usual ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from minigpt.numerics.base import (
    ACTIVATION,
    KEY_BLOCK,
    RowOps,
    cuts_before_infinite,
    finite,
    records_gradients,
    whole_blocks,
)
from minigpt.numerics.calls import TILE, in_calls, padded, plan
from minigpt.numerics.certificates import (
    ATTENTION,
    AttentionCalls,
    AttentionKernel,
    AttentionShape,
    RowwiseShape,
    attention_calls,
    rowwise_sizes,
)
from minigpt.numerics.copies import Copies
from minigpt.numerics.device_attention import DeviceStarts, exactly
from minigpt.numerics.exact_product import ExactProduct, WithLinearGradient
from minigpt.numerics.place import Place, flushes_denormals, noted
from minigpt.support.errors import MinigptError

KEY_STEP = 32  # few queries meet keys in steps of this many, where that is certified
UNSHARED = 2**15  # numbers: an elementwise call of more, be it one row, is cut between threads


class ExactOps(RowOps):
    """Row operations in certified calls only."""

    name = "exact"

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None, copies: Copies) -> Tensor:
        if (ready := copies.ready(self, x, weight)) is not None:
            return ready(x, bias)
        place = Place.of(x)
        product: ExactProduct | None = copies.bound
        if product is None or not product.fits(place, weight, bias):
            product = copies.bound = ExactProduct(place, weight, bias)
        if records_gradients(x, weight, bias):
            rows = x.reshape(-1, x.shape[-1])
            y: Tensor = WithLinearGradient.apply(rows, weight, bias, product, copies)  # type: ignore[no-untyped-call]
            return y.view(*x.shape[:-1], -1)
        at_once = product.at_once(x.numel() // x.shape[-1], weight, copies)
        if at_once is not None and x.is_contiguous():
            return copies.make_ready(self, x, weight, at_once)(x, bias)
        return product(x, weight, bias, copies)

    def attention(
        self, q: Tensor, k: Tensor, v: Tensor, starts: Sequence[int], scale: float, dropout: float
    ) -> Tensor:
        if q.stride(-1) != 1 or k.stride(-1) != 1 or v.stride(-1) != 1:
            q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
        if isinstance(starts, DeviceStarts):
            return exactly(q, k, v, starts, scale)
        (B, H, T, D), G = q.shape, k.shape[1]
        if B == T == 1 and dropout == 0:
            return _attend_to_all(q, k, v, starts[0], scale)
        start, place = max(starts), Place.of(q)
        end = start + T
        ragged = min(starts) < start
        first = start - start % KEY_BLOCK  # position where the first query's key block begins
        # Rows go together if all their queries meet the same key blocks, each with a mask of its
        # own; and if a batch of that size is certified, for the reference is one sequence alone.
        if ragged and (T > 1 or min(starts) < first):
            return self._row_by_row(q, k, v, starts, scale, dropout)
        if T > 1 and not finite(k[:, :, start:end], v[:, :, start:end]):
            if B > 1:
                return self._row_by_row(q, k, v, starts, scale, dropout)
            # Masked weights are 0, but 0 x NaN is NaN: earlier queries must not meet it at all.
            cuts = cuts_before_infinite(k[:, :, start:end], v[:, :, start:end])
            if cuts:
                return self._in_runs(cuts, q, k, v, starts, scale, dropout)
        if k.shape[2] < first + KEY_BLOCK or k.shape[2] < whole_blocks(end):
            room = (0, 0, 0, whole_blocks(end) - k.shape[2])
            k, v = F.pad(k, room), F.pad(v, room)  # no room was left to read in whole blocks
        done = []
        for low in range(first, end, KEY_BLOCK):
            since, until = max(start, low), min(end, low + KEY_BLOCK)
            found = _calls_for(AttentionShape(B, G, H // G, until, D, place), until - since)
            if found is None:
                return self._row_by_row(q, k, v, starts, scale, dropout)
            calls, S = found
            queries = q if until - since == T else q[:, :, since - start : until - start]
            keys, values = (k, v) if k.shape[2] == S else (k[:, :, :S], v[:, :, :S])
            offsets = tuple(s - low for s in starts) if ragged else (since - low,)
            done.append(_attend_in_block(queries, keys, values, offsets, calls, scale, dropout))
        return done[0] if len(done) == 1 else torch.cat(done, 2)

    def activation(self, x: Tensor, name: str) -> Tensor:
        call = ACTIVATION[name]
        if x.shape[-1] <= UNSHARED:
            return _rowwise(name, call, x)
        return torch.cat([_rowwise(name, call, part) for part in x.split(UNSHARED, -1)], -1)

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        return _rowwise(
            "layer_norm", lambda rows: F.layer_norm(rows, weight.shape, weight, bias, eps), x
        )

    def log_softmax(self, x: Tensor) -> Tensor:
        return _rowwise("log_softmax", lambda rows: rows.log_softmax(-1), x)

    def check_context(self, dtype: torch.dtype, device: torch.device) -> None:
        if _compiling():
            raise MinigptError(
                "torch.compile chooses kernels of its own, whose bits exact numerics cannot "
                "vouch for: call the model uncompiled, or use numerics='fast'"
            )
        if dtype not in (torch.float32, torch.bfloat16, torch.float16):
            raise MinigptError(
                f"{str(dtype).removeprefix('torch.')} is a dtype whose sums depend on the number "
                f"of threads: exact numerics needs float32, bfloat16 or float16, or use "
                f"numerics='fast'"
            )
        if device.type == "cpu" and torch.get_num_threads() > 1 and flushes_denormals():
            raise MinigptError(
                "denormal numbers are flushed to zero in this thread, and torch's other ones may "
                "keep them: exact numerics needs torch.set_flush_denormal(False) before anything "
                "is computed, or torch.set_num_threads(1), or use numerics='fast'"
            )
        if torch.is_autocast_enabled(device.type):
            raise MinigptError(
                "autocast picks a dtype call by call and exact numerics keeps one: leave the "
                "autocast block, or load the model with dtype=torch.bfloat16, or use "
                "numerics='fast'"
            )


def _rowwise(name: str, call: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    width = x.shape[-1]
    x = x if x.is_contiguous() else x.contiguous()  # another layout would go through other code
    if x.numel() == width:  # one row is the reference
        return call(x)
    rows = x.view(-1, width)
    return in_calls(rows, call, rowwise_sizes(RowwiseShape(name, width, Place.of(x)))).view_as(x)


def _attend_to_all(q: Tensor, k: Tensor, v: Tensor, start: int, scale: float) -> Tensor:
    """What `ExactOps.attention` comes to for one query of one sequence, without detours."""
    (_, H, _, D), G, S = q.shape, k.shape[1], whole_blocks(start + 1)
    if k.shape[2] < S:
        k, v = (F.pad(x, (0, 0, 0, S - x.shape[2])) for x in (k, v))
    elif k.shape[2] > S:
        k, v = k.narrow(2, 0, S), v.narrow(2, 0, S)
    # All layers of a step ask the same.
    attend, size, mask = noted(
        (start, H, G, D, q.dtype),
        lambda: _one_query(start, AttentionShape(1, G, H // G, S, D, Place.of(q))),
    )
    y = attend(padded(q, size, 2), k, v, mask, scale)
    return y if size == 1 else y.narrow(2, 0, 1)


def _one_query(start: int, shape: AttentionShape) -> tuple[AttentionKernel, int, Tensor]:
    """The kernel, the queries per head that it is given, and their mask."""
    calls, place = attention_calls(shape), shape.place
    ((_, size),) = plan(1, calls.sizes)
    offset = start + KEY_BLOCK - shape.keys
    return (
        ATTENTION[calls.kernel],
        size,
        _mask((offset,), size, shape.keys, place.dtype, place.device),
    )


def _calls_for(shape: AttentionShape, queries: int) -> tuple[AttentionCalls, int] | None:
    """How attention to so many keys is computed, and how many of them are read: a few more.

    Few queries mostly wait for keys, so theirs are not read to the end of the block if certificates
    allow for less. None: a batch of this size is not certified.
    """
    whole, fewer = whole_blocks(shape.keys), -(-shape.keys // KEY_STEP) * KEY_STEP
    alone = attention_calls(shape._replace(batch_size=1, keys=whole))
    few = queries <= TILE and shape.place.device.type == "cpu"
    for keys in (fewer, whole) if few and fewer < whole else (whole,):
        calls = attention_calls(shape._replace(keys=keys))
        if calls.sizes and calls.kernel == alone.kernel:
            return calls, keys
    return (alone, whole) if shape.batch_size == 1 else None


def _attend_in_block(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: tuple[int, ...],
    calls: AttentionCalls,
    scale: float,
    dropout: float,
) -> Tensor:
    """Attention of queries (B, H, T, D) that lie in the last block of the keys (B, G, S, D).

    `offsets` says how far into the block the first query is: one number for all, or one for each
    sequence, of a single query then.
    """
    T, S = q.shape[2], k.shape[2]
    done, offset = [], 0
    for take, size in plan(T, calls.sizes):
        part = q if take == T else q[:, :, offset : offset + take]
        mask = _mask(tuple(o + offset for o in offsets), size, S, q.dtype, q.device)
        if dropout > 0:
            k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
            y = F.scaled_dot_product_attention(padded(part, size, 2), k, v, mask, dropout)
        else:
            y = ATTENTION[calls.kernel](padded(part, size, 2), k, v, mask, scale)
        done.append(y if take == size else y.narrow(2, 0, take))
        offset += take
    return done[0] if len(done) == 1 else torch.cat(done, 2)


def _compiling() -> bool:
    """Is torch.compile tracing this, or waiting to trace what this calls?"""
    if torch.compiler.is_compiling():
        return True
    callback = getattr(torch._C._dynamo.eval_frame, "get_eval_frame_callback", lambda: None)()
    return callback is not None and callback is not False


# --- masks ----------------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def _mask(
    offsets: tuple[int, ...], size: int, keys: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """What hides the future, (rows, 1, size, keys): 0 where query i sees key j, else -inf.

    Each row's first query lies `offset` positions into the last block of keys. All layers of a step
    ask for the same one.
    """
    with torch.inference_mode(False):
        every = _masks(whole_blocks(keys), dtype, device)
        rows = [every[:, :, offset : offset + size, :keys] for offset in offsets]
        return rows[0].contiguous() if len(rows) == 1 else torch.cat(rows)


@lru_cache(maxsize=64)
def _masks(keys: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(1, 1, 2 · KEY_BLOCK, keys): for every query of the last block, and for padding, which sees
    all, behind it."""
    with torch.inference_mode(False):
        hidden = torch.ones(KEY_BLOCK, keys, dtype=torch.bool).triu(keys - KEY_BLOCK + 1)
        mask = torch.zeros(2 * KEY_BLOCK, keys)
        mask[:KEY_BLOCK].masked_fill_(hidden, -torch.inf)
        return mask.to(device, dtype)[None, None]
