"""What the heads of a model keep of a text and look at: keys, values, attention weights.

All heads of all layers come from one pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minigpt.cache.kvcache import KVCache
from minigpt.cache.lossy import WindowCache
from minigpt.model import GPT
from minigpt.numerics.base import attention_weights
from minigpt.numerics.recorder import recording
from minigpt.support.checks import whole
from minigpt.support.errors import MinigptError
from minigpt.support.modes import evaluating


@dataclass(frozen=True)
class Heads:
    """The heads of one layer, on a text of T tokens; everything in float32 on the CPU."""

    keys: Tensor  # (G, S, D)
    values: Tensor  # (G, S, D)
    weights: Tensor  # (H, T, S)
    positions: list[int]  # that the S keys were made at; S < T when a cache has forgotten some


@torch.inference_mode()
def read_heads(
    source: GPT | KVCache, ids: Sequence[int] | None = None, layers: Sequence[int] | None = None
) -> list[Heads]:
    """What the heads of each layer keep of a text, and how much each of its tokens looks at which.

    The weights are computed again, from the queries of an uncached pass and the keys given back:
    they are what attention multiplies the values with, up to rounding.

    Args:
        source: a model, or a cache, of which the first row is read.
        ids: the text's tokens, for a model; a cache knows its own.
        layers: which; None: all.

    Raises:
        MinigptError: for a layer that is not there, a text that does not fit, or a cache that
            does not know its tokens, or whose model is gone or has changed since.
    """
    cache = source if isinstance(source, KVCache) else None
    if isinstance(source, GPT):
        model, text = source, list(ids or [])
    else:
        filled_by = source.origin and source.origin.weights.model
        if not isinstance(filled_by, GPT) or source.tokens is None:
            raise MinigptError(
                f"{source!r} does not know its model or tokens: pass a model and ids"
            )
        model, text = filled_by, source.tokens[0]
    layers = range(model.config.n_layer) if layers is None else layers
    for layer in layers:
        whole("layer", layer, 0, model.config.n_layer - 1)
    with evaluating(model), recording(model) as calls:
        model(torch.tensor([text], dtype=torch.int64, device=model.device))
    positions = list(range(len(text)))
    if isinstance(cache, WindowCache):
        positions = cache.positions[0]
    found = []
    for layer in layers:
        q, k, v, starts, scale, _ = calls[f"h.{layer}.attn"].arguments
        if cache is not None:
            k, v = cache.layer(layer)
        q, k, v = q.cpu(), *(x[:1, :, : len(positions)].cpu() for x in (k, v))  # (1, G, S, D)
        held = k.new_zeros(1, k.shape[1], len(text), k.shape[3]).index_copy(
            2, torch.tensor(positions), k
        )  # each key where it was made
        # In float64 nothing is lost where the keys forgotten had the largest scores.
        weights = attention_weights(q.double(), held.double(), starts, scale)[0, ..., positions]
        weights = (weights / weights.sum(-1, keepdim=True)).nan_to_num(0.0)  # 0: nothing is left
        found.append(Heads(k[0].float(), v[0].float(), weights.float(), positions))
    return found


def read_head(
    source: GPT | KVCache, ids: Sequence[int] | None = None, layer: int = 0, head: int = 0
) -> tuple[Tensor, Tensor, Tensor, list[int]]:
    """One head of `read_heads`: its group's keys (S, D) and values (S, D), its weights (T, S), and
    the positions of the keys.

    Raises:
        MinigptError: as `read_heads`, and for a head that is not there.
    """
    (heads,) = read_heads(source, ids, [layer])
    count = len(heads.weights)
    whole("head", head, 0, count - 1)
    group = head * len(heads.keys) // count
    return heads.keys[group], heads.values[group], heads.weights[head], heads.positions
