"""What a learner writes: GPT-2 in lesson 0, its cache in lesson 2, parts of later models in 9.

Nothing else in the package uses it: it is as short as it can be, knows one activation and one kind
of head, and checks nothing. `model.py` and `cache/` are the real ones. The names of weights are
those of GPT-2's checkpoints, so `load_state_dict` takes the real weights. Shapes use the legend of
`model.py`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minigpt.config import GPTConfig
from minigpt.model import GPT as RealGPT

# --- lesson 0 -------------------------------------------------------------------------------------


class Linear(nn.Module):
    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(n_in, n_out))
        self.bias = nn.Parameter(torch.zeros(n_out))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias  # (..., in) -> (..., out)


class LayerNorm(nn.Module):
    def __init__(self, C: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(C)), nn.Parameter(torch.zeros(C))

    def forward(self, x: Tensor) -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        x = x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
        return x * self.weight + self.bias


class Attention(nn.Module):
    def __init__(self, C: int, H: int) -> None:
        super().__init__()
        self.c_attn, self.c_proj = Linear(C, 3 * C), Linear(C, C)
        self.H = H

    def forward(self, x: Tensor) -> Tensor:
        T = x.shape[1]
        q, k, v = self.c_attn(x).chunk(3, dim=-1)  # (B, T, C) each
        q, k, v = (part.unflatten(-1, (self.H, -1)).transpose(1, 2) for part in (q, k, v))
        future = torch.ones(T, T, dtype=torch.bool, device=x.device).triu(1)  # (T, T)
        scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5  # (B, H, T, T)
        weights = scores.masked_fill(future, -torch.inf).softmax(-1)
        return self.c_proj((weights @ v).transpose(1, 2).flatten(2))  # (B, T, C)


class MLP(nn.Module):
    def __init__(self, C: int) -> None:
        super().__init__()
        self.c_fc, self.c_proj = Linear(C, 4 * C), Linear(4 * C, C)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, C: int, H: int) -> None:
        super().__init__()
        self.ln_1, self.attn = LayerNorm(C), Attention(C, H)
        self.ln_2, self.mlp = LayerNorm(C), MLP(C)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        C = config.n_embd
        self.wte = nn.Embedding(config.vocab_size, C)
        self.wpe = nn.Embedding(config.n_positions, C)
        self.h = nn.ModuleList(Block(C, config.n_head) for _ in range(config.n_layer))
        self.ln_f = LayerNorm(C)

    def forward(self, tokens: Tensor) -> Tensor:
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.wte(tokens) + self.wpe(positions)  # (B, T, C)
        for block in self.h:
            x = block(x)
        return self.ln_f(x) @ self.wte.weight.T  # (B, T, V)


def loss(logits: Tensor, tokens: Tensor) -> Tensor:
    right = logits.log_softmax(-1)[:, :-1].gather(-1, tokens[:, 1:, None])
    return -right.mean()


def weights_of(model: RealGPT) -> dict[str, Tensor]:
    """The weights of a real model, for `GPT.load_state_dict`: the tied head is no second copy."""
    return {n: w for n, w in model.state_dict().items() if n != "lm_head.weight"}


# --- lesson 2 -------------------------------------------------------------------------------------


class Cache:
    """Keys and values of every layer, growing by concatenation."""

    def __init__(self, n_layer: int) -> None:
        self.held: list[tuple[Tensor, Tensor] | None] = [None] * n_layer

    def get(self, layer: int) -> tuple[Tensor, Tensor] | None:
        return self.held[layer]

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        held = self.held[layer]
        if held is not None:
            k, v = torch.cat([held[0], k], dim=2), torch.cat([held[1], v], dim=2)
        self.held[layer] = k, v  # (B, H, S, D) each
        return k, v


class PreallocatedCache:
    """The same in one piece of memory, taken once."""

    def __init__(self, n_layer: int, B: int, H: int, room: int, D: int) -> None:
        self.keys = torch.zeros(n_layer, B, H, room, D)
        self.values = torch.zeros(n_layer, B, H, room, D)
        self.lengths = [0] * n_layer

    def get(self, layer: int) -> tuple[Tensor, Tensor] | None:
        S = self.lengths[layer]
        return (self.keys[layer, :, :, :S], self.values[layer, :, :, :S]) if S else None

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        start, end = self.lengths[layer], self.lengths[layer] + k.shape[2]
        self.keys[layer, :, :, start:end] = k
        self.values[layer, :, :, start:end] = v
        self.lengths[layer] = end
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]


class CachedAttention(Attention):
    def forward(self, x: Tensor, cache: Cache | PreallocatedCache, layer: int) -> Tensor:  # type: ignore[override]
        T = x.shape[1]
        q, k, v = self.c_attn(x).chunk(3, dim=-1)  # (B, T, C) each
        q, k, v = (part.unflatten(-1, (self.H, -1)).transpose(1, 2) for part in (q, k, v))
        k, v = cache.update(layer, k, v)  # (B, H, S, D) each
        S = k.shape[2]
        future = torch.ones(T, S, dtype=torch.bool, device=x.device).triu(1 + S - T)  # (T, S)
        scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5  # (B, H, T, S)
        weights = scores.masked_fill(future, -torch.inf).softmax(-1)
        return self.c_proj((weights @ v).transpose(1, 2).flatten(2))  # (B, T, C)


class CachedGPT(GPT):
    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config)
        for block in self.h:
            block.attn = CachedAttention(config.n_embd, config.n_head)

    def forward(self, tokens: Tensor, cache: Cache | PreallocatedCache) -> Tensor:  # type: ignore[override]
        held = cache.get(0)
        start = 0 if held is None else held[0].shape[2]
        positions = start + torch.arange(tokens.shape[1], device=tokens.device)
        x = self.wte(tokens) + self.wpe(positions)  # (B, T, C)
        for layer, block in enumerate(self.h):
            assert isinstance(block, Block)
            x = x + block.attn(block.ln_1(x), cache, layer)
            x = x + block.mlp(block.ln_2(x))
        return self.ln_f(x) @ self.wte.weight.T  # (B, T, V)


# --- lesson 9 -------------------------------------------------------------------------------------


def rotate(x: Tensor, positions: Tensor, base: float = 10_000.0) -> Tensor:
    """Rotary positions (Su et al. 2021), with the pairs of Llama's code: i and i + D/2.

    Args:
        x: queries or keys, (..., T, D).
        positions: of the T tokens, (T,).
        base: of the frequencies; Llama's and the paper's is 10,000.
    """
    D = x.shape[-1]
    frequencies = base ** (-torch.arange(0, D, 2) / D)  # (D/2,), from 1 down
    angles = positions[:, None] * frequencies  # (T, D/2)
    cos, sin = angles.cos(), angles.sin()
    a, b = x.chunk(2, dim=-1)  # (..., T, D/2) each
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


def attend(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """One query (D,) that meets all keys and values (S, D) at once."""
    scores = keys @ q / q.shape[-1] ** 0.5  # (S,)
    return scores.softmax(-1) @ values  # (D,)


def attend_online(q: Tensor, keys: Tensor, values: Tensor, block: int) -> Tensor:
    """The same, meeting them block by block: nothing of the length S is ever made."""
    most, total, mixed = torch.tensor(-torch.inf), torch.tensor(0.0), torch.zeros_like(q)
    for start in range(0, len(keys), block):
        scores = keys[start : start + block] @ q / q.shape[-1] ** 0.5  # (block,)
        higher = torch.maximum(most, scores.max())
        shares = (scores - higher).exp()  # (block,)
        shrink = (most - higher).exp()  # what was summed up to now was beside a smaller maximum
        total = total * shrink + shares.sum()
        mixed = mixed * shrink + shares @ values[start : start + block]
        most = higher
    return mixed / total
