"""GPT-2, read top to bottom: embeddings, blocks of attention and MLP, logits.

Training, uncached and cached decoding all run this one forward. Attention hands its keys and
values to a cache (read `cache/plain.py`) and reads back everything so far. Arithmetic on rows goes
through a set of row operations, which decides whether a row's bits may depend on its neighbours
(`numerics/base.py`, which begins with attention's formula).

Letters used for shapes here and everywhere:
    B batch, T new tokens, S cached + new tokens, C model width, H query heads,
    G key/value heads (G = H in GPT-2), D head width (C / H), V vocabulary
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minigpt.cache.kinds import make_cache
from minigpt.cache.kvcache import CacheSpec, KVCache, LayerCache, Layers, NoCache, opened
from minigpt.config import GPTConfig, refuse_unbuildable
from minigpt.numerics import row_ops
from minigpt.numerics.base import RowModule, set_ops
from minigpt.numerics.copies import Copies
from minigpt.numerics.place import one_place
from minigpt.support.errors import MinigptError
from minigpt.support.tokens import check_tokens, within_context


class Linear(RowModule):
    """y = x W + b. W is (in, out), as in GPT-2's checkpoints: the transpose of nn.Linear's."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_in, n_out))
        self.bias = nn.Parameter(torch.zeros(n_out))
        self.copies = Copies()

    def forward(self, x: Tensor) -> Tensor:
        return self.ops.linear(x, self.weight, self.bias, self.copies)  # (..., in) -> (..., out)


class Head(RowModule):
    """Logits: each hidden state against each token's vector. W is (V, C), as an embedding is."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.vocab_size, config.n_embd))
        self.copies = Copies()

    def forward(self, x: Tensor) -> Tensor:
        return self.ops.linear(x, self.weight.T, None, self.copies)  # (..., C) -> (..., V)


class LayerNorm(RowModule):
    """Each row to mean 0 and variance 1, then scaled and shifted (Ba et al. 2016)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.n_embd))
        self.bias = nn.Parameter(torch.zeros(config.n_embd))
        self.eps = config.layer_norm_epsilon

    def forward(self, x: Tensor) -> Tensor:
        return self.ops.layer_norm(x, self.weight, self.bias, self.eps)


class Attention(RowModule):
    """Causal self-attention (Vaswani et al. 2017), with grouped heads (Ainslie et al. 2023).

    `ops.attention` computes softmax(scale · Q Kᵀ) V, which `numerics.base.attend` spells out. With
    G < H key/value heads, each serves H / G query heads; the cache shrinks by that factor.
    """

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.heads = (config.n_head, config.kv_heads, config.kv_heads)  # queries, keys, values
        self.c_attn = Linear(config.n_embd, sum(self.heads) * config.head_dim)
        self.c_proj = Linear(config.n_embd, config.n_embd)
        self.head_dim = config.head_dim
        self.scale = config.head_dim**-0.5 if config.scale_attn_weights else 1.0
        if config.scale_attn_by_inverse_layer_idx:
            self.scale /= layer + 1
        self.attn_pdrop, self.resid_pdrop = config.attn_pdrop, config.resid_pdrop

    def forward(self, x: Tensor, cache: LayerCache | NoCache) -> Tensor:
        qkv = self.c_attn(x).view(*x.shape[:2], -1, self.head_dim).transpose(1, 2)
        q, k, v = qkv.split_with_sizes(self.heads, 1)  # (B, H, T, D), (B, G, T, D), (B, G, T, D)
        k, v, starts = cache.append(k, v)  # (B, G, S, D): all up to now
        dropout = self.attn_pdrop if self.training else 0.0
        y = self.ops.attention(q, k, v, starts, self.scale, dropout)  # (B, H, T, D)
        y = self.c_proj(y.transpose(1, 2).flatten(2))  # (B, T, C)
        return F.dropout(y, self.resid_pdrop) if self.training else y


class MLP(RowModule):
    """Two linear layers around the activation, on each position alone."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.c_fc = Linear(config.n_embd, config.inner)
        self.c_proj = Linear(config.inner, config.n_embd)
        self.activation = config.activation_function
        self.resid_pdrop = config.resid_pdrop

    def forward(self, x: Tensor) -> Tensor:
        y = self.c_proj(self.ops.activated(self.c_fc, x, self.activation))
        return F.dropout(y, self.resid_pdrop) if self.training else y


class Block(nn.Module):
    """Attention, then MLP; each reads a normalised copy and adds to the residual stream."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(config)
        self.attn = Attention(config, layer)
        self.ln_2 = LayerNorm(config)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, cache: LayerCache | NoCache) -> Tensor:
        x = x + self.attn(self.ln_1(x), cache)
        return x + self.mlp(self.ln_2(x))


class GPT(RowModule):
    """A GPT-2-style language model: (B, T) tokens in, (B, T, V) logits out.

    Args:
        config: the shape.
        numerics: "fast", or "exact" (see `numerics/exact.py`); None: fast in training, else exact.

    Raises:
        MinigptError: for a model that does not fit in memory.
    """

    def __init__(self, config: GPTConfig, numerics: str | None = None) -> None:
        super().__init__()
        refuse_unbuildable(config)
        self.config = config
        tokens, positions, C = config.vocab_size, config.n_positions, config.n_embd
        self.wte = nn.Embedding.from_pretrained(torch.empty(tokens, C), freeze=False)
        self.wpe = nn.Embedding.from_pretrained(torch.empty(positions, C), freeze=False)
        self.h = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.ln_f = LayerNorm(config)
        self.lm_head = Head(config)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.wte.weight
        self.numerics = numerics
        if self.wte.weight.device.type != "meta":
            self.init_weights()

    def forward(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """Logits of every position given.

        With a cache the tokens continue what it holds, it grows by T, and no gradients are
        recorded: a cache is for inference. If anything fails the cache is as it was.

        Args:
            tokens: (B, T) int64.
            cache: from `new_cache`; None computes everything from position 0.

        Returns:
            (B, T, V), in the dtype of the weights; [:, t] predicts the token after tokens[:, t].

        Raises:
            MinigptError: for tokens, lengths or a cache that do not fit this model.
        """
        return self._logits(tokens, cache, slice(None))

    def next_logits(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """Like `forward`, for the last position only: (B, T) -> (B, V), the head computed once."""
        return self._logits(tokens, cache, -1)

    def _logits(self, tokens: Tensor, cache: KVCache | None, wanted: slice | int) -> Tensor:
        for block in (b for b in self.h if "ops" not in vars(b.ln_1)):  # added since
            set_ops(block, self.ops)
        check_tokens(tokens, self.config.vocab_size, self.config.n_positions, self.device)
        self.ops.check_context(self.dtype, self.device)
        place = one_place(self.dtype, self.device)
        with place, opened(cache, self.cache_spec, tokens, self) as (positions, layers):
            return self.compute(tokens, positions, layers, wanted)

    def compute(self, tokens: Tensor, positions: Tensor, layers: Layers, wanted: int | slice = -1
                ) -> Tensor:  # fmt: skip
        """The pass itself, unchecked: `positions` (B, T) or (T,), one of `layers` for a block."""
        x = self.wte(tokens) + self.wpe(positions)  # (B, T, C)
        x = F.dropout(x, self.config.embd_pdrop) if self.training else x
        for block, layer in zip(self.h, layers, strict=True):
            x = block(x, layer)
        return self.lm_head(self.ln_f(x)[:, wanted])  # (B, T, V), or (B, V)

    @property
    def device(self) -> torch.device:
        return self.wte.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.wte.weight.dtype

    @property
    def cache_spec(self) -> CacheSpec:
        """What a cache must match: layers, heads, dtype, device."""
        c = self.config
        return CacheSpec(len(self.h), c.kv_heads, c.head_dim, self.dtype, self.device)

    def new_cache(
        self, batch_size: int = 1, max_length: int | None = None, kind: str = "static",
        **settings: int,
    ) -> KVCache:  # fmt: skip
        """An empty cache for this model, in its dtype and on its device.

        Args:
            batch_size: B, the rows decoded side by side.
            max_length: positions to make room for; None: the context length.
            kind, settings: "static" (preallocated), "growing", "paged" (has `page`), or with less
                memory and other logits "quantized", "window" (has `window`, `sinks`).

        Raises:
            MinigptError: for a length beyond the context, an unknown kind or setting.
        """
        room = within_context(max_length, self.config.n_positions)
        return make_cache(kind, self.cache_spec, batch_size, room, **settings)

    @property
    def numerics(self) -> str:
        """The set of row operations, "fast" or "exact". May be set; None returns to the default."""
        return self.ops.name

    @numerics.setter
    def numerics(self, name: str | None) -> None:
        self._chosen = name
        set_ops(self, row_ops(name or ("fast" if self.training else "exact")))

    def train(self, mode: bool = True) -> GPT:
        """Training mode, or evaluation mode; the default numerics follow."""
        super().train(mode)
        if self._chosen is None:
            self.numerics = None
        return self

    @torch.no_grad()
    def init_weights(self) -> None:
        """GPT-2's: normal(0, 0.02), biases 0; and smaller by sqrt(2 x layers) where a layer writes
        to the residual stream, so that its variance does not grow with depth."""
        std = self.config.initializer_range
        for name, parameter in self.named_parameters():
            if name.endswith("c_proj.weight"):
                parameter.normal_(0.0, std / (2 * self.config.n_layer) ** 0.5)
            elif parameter.ndim == 2:
                parameter.normal_(0.0, std)

    @classmethod
    def from_pretrained(
        cls, source: str | Path, dtype: torch.dtype | None = None,
        device: str | torch.device = "cpu", numerics: str | None = None, weights: str | None = None,
    ) -> GPT:  # fmt: skip
        """A trained model, in evaluation mode, from a directory or a hub name such as "gpt2".

        Arguments and errors are those of `load` in `checkpoint/pretrained.py`.
        """
        from minigpt.checkpoint import pretrained  # here: it needs this module

        return pretrained.load(source, dtype, device, numerics, weights)

    def save_pretrained(self, directory: str | Path) -> None:
        """Write a checkpoint that `from_pretrained` and transformers load as it is."""
        from minigpt.checkpoint import pretrained  # here: it needs this module

        pretrained.save(self, directory)


def require_model(model: object) -> None:
    """Refuse anything but a model, such as the name of one."""
    if not isinstance(model, GPT):
        raise MinigptError(
            f"the model is {model!r}, needed a minigpt.GPT: load one with GPT.from_pretrained()"
        )
