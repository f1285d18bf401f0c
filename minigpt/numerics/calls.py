"""Cutting rows into calls of certified sizes, and padding the last one (see `exact.py`)."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

TILE = 16  # rows in the reference call


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
        return call(rows) if size == count else call(padded(rows, size, 0))[:count]
    done, offset = [], 0
    for take, size in cuts:
        done.append(call(padded(rows[offset : offset + take], size, 0))[:take])
        offset += take
    return torch.cat(done)


def padded(rows: Tensor, size: int, dim: int) -> Tensor:
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
