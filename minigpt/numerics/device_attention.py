"""Attention of one query a row, whose position only the device knows.

A step of decoding that is recorded once and replayed (`generation/device_steps.py`) may have no
position baked into it. Both sets of row operations have such an attention: `quickly` is that of
`FastOps`, `exactly` has the bits of `ExactOps`. Shapes use the legend of `model.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from minigpt.numerics.base import KEY_BLOCK
from minigpt.numerics.calls import padded, plan
from minigpt.numerics.certificates import (
    ATTENTION,
    AttentionCalls,
    AttentionShape,
    attention_calls,
)
from minigpt.numerics.place import Place


class DeviceStarts(tuple[int, ...]):
    """Where each row goes on, when only the device knows exactly: one new token a row.

    The numbers themselves are the latest start that any row may have, the last position of a block
    of keys: so much the host must know, to say how many keys are read. A step that is captured
    once and replayed therefore serves every position of a block.

    Args:
        blocks: of keys, that the rows' starts lie in, each once and ascending: 1 for positions 0 to
            63. Which row lies in which, the device knows.
        positions: (B,), on the device.
        numbers: (at least S,), 0, 1, ... up to the last key of the last block.
        dtype: of the scores.
    """

    blocks: tuple[int, ...]
    positions: Tensor
    hidden: Tensor  # (B, 1, 1, S) bool: the keys that come after each row's new one
    dtype: torch.dtype

    def __new__(
        cls, blocks: Sequence[int], positions: Tensor, numbers: Tensor, dtype: torch.dtype
    ) -> DeviceStarts:
        end = max(blocks) * KEY_BLOCK
        starts = super().__new__(cls, [end - 1] * len(positions))
        starts.blocks, starts.positions, starts.dtype = tuple(blocks), positions, dtype
        starts.hidden = numbers[:end] > positions[:, None, None, None]
        return starts

    @cached_property
    def beyond(self) -> list[Tensor]:
        """For each block but the first: does a row lie in it, or in a later one? (B, 1, 1, 1)."""
        positions = self.positions[:, None, None, None]
        return [positions >= (block - 1) * KEY_BLOCK for block in self.blocks[1:]]

    @cached_property
    def mask(self) -> Tensor:
        """What hides the future, to be added to scores: (B, 1, 1, S), 0 or -inf. One for all
        layers of a step."""
        return torch.where(self.hidden, -torch.inf, 0.0).to(self.dtype)


def quickly(q: Tensor, k: Tensor, v: Tensor, starts: DeviceStarts, scale: float) -> Tensor:
    """Attention of one query a row, (B, H, 1, D), in two products that no position is baked into.

    The fused kernel gives a single query's head to one multiprocessor of many.
    """
    (B, H, _, D), G, S = q.shape, k.shape[1], max(starts) + 1
    k, v = k[:, :, :S].flatten(0, 1), v[:, :, :S].flatten(0, 1)  # (N, S, D), with N = B·G
    q = q.reshape(B * G, H // G, D)
    # baddbmm scales the scores in the product, where beta = 0 ignores what it is given.
    scores = torch.baddbmm(q.new_empty(1, 1, 1), q, k.transpose(1, 2), beta=0, alpha=scale)
    scores.view(B, G, H // G, -1).masked_fill_(starts.hidden[..., : k.shape[1]], -torch.inf)
    return torch.bmm(scores.softmax(-1), v).view(B, H, 1, D)


def exactly(q: Tensor, k: Tensor, v: Tensor, starts: DeviceStarts, scale: float) -> Tensor:
    """What `ExactOps.attention` comes to for one query a row, where only the device knows which
    block of keys each is in.

    All rows are computed with the keys of every block that some row is in, and each keeps its own:
    so nothing changes for the host when one row comes into the block where another is already.
    """
    (B, H, _, D), G, end = q.shape, k.shape[1], max(starts) + 1
    if k.shape[2] < end:
        k, v = (F.pad(x, (0, 0, 0, end - x.shape[2])) for x in (k, v))
    done = q
    for block, beyond in zip(starts.blocks, (None, *starts.beyond), strict=True):
        S = block * KEY_BLOCK
        every = q, k.narrow(2, 0, S), v.narrow(2, 0, S), starts.mask.narrow(-1, 0, S)
        calls, alone = (
            attention_calls(AttentionShape(rows, G, H // G, S, D, Place.of(q))) for rows in (B, 1)
        )
        if B == 1 or (calls.sizes and calls.kernel == alone.kernel):
            y = _one_query(calls, *every, scale)
        else:
            rows = zip(*(x.split(1) for x in every), strict=True)
            y = torch.cat([_one_query(alone, *row, scale) for row in rows])  # type: ignore[call-arg]
        done = y if beyond is None else torch.where(beyond, y, done)
    return done


def _one_query(
    calls: AttentionCalls, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float
) -> Tensor:
    """(B, H, 1, D), (B, G, S, D) twice, (B or 1, 1, 1, S) -> (B, H, 1, D)."""
    ((_, size),) = plan(1, calls.sizes)
    if size > 1:
        q, mask = padded(q, size, 2), mask.expand(-1, -1, size, -1)
    y = ATTENTION[calls.kernel](q, k, v, mask, scale)
    return y if size == 1 else y.narrow(2, 0, 1)
