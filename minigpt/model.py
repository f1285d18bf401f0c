"""GPT-2, read top to bottom: embeddings, blocks of attention and MLP, logits.

Training, uncached and cached decoding all run this one forward. Attention hands its keys and
values to a cache (`cache.py`) and reads back everything so far; arithmetic on rows (products,
norms, attention weights) goes through a set of row operations (`numerics.py`), which decides
whether a row's bits may depend on its neighbours. Loading and saving are in `weights.py`.

Letters used for shapes here and everywhere:
    B batch, T new tokens, S cached + new tokens, C model width, H query heads,
    G key/value heads (G = H in GPT-2), D head width (C / H), V vocabulary
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minigpt.cache.base import CacheSpec, KVCache, LayerCache, NoCache
from minigpt.cache.kinds import make_cache
from minigpt.checkpoint import weights as checkpoint
from minigpt.config import GPTConfig
from minigpt.numerics import row_ops
from minigpt.numerics.base import RowModule, row_modules
from minigpt.numerics.packed import Packed
from minigpt.support.checks import device_named
from minigpt.support.errors import MinigptError


class Linear(RowModule):
    """y = x W + b. W is (in, out), as in GPT-2's checkpoints: the transpose of nn.Linear's."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_in, n_out))
        self.bias = nn.Parameter(torch.zeros(n_out))
        self.packed = Packed()

    def forward(self, x: Tensor) -> Tensor:
        return self.ops.linear(x, self.weight, self.bias, self.packed)  # (..., in) -> (..., out)


class Head(RowModule):
    """Logits: each hidden state against each token's vector. W is (V, C), as an embedding is."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.vocab_size, config.n_embd))
        self.packed = Packed()

    def forward(self, x: Tensor) -> Tensor:
        return self.ops.linear(x, self.weight.T, None, self.packed)  # (..., C) -> (..., V)


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

    With G < H key/value heads, each serves H / G query heads; the cache shrinks by that factor.
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
        qkv = self.c_attn(x).unflatten(-1, (-1, self.head_dim))  # (B, T, H + 2G, D)
        q, k, v = (part.transpose(1, 2) for part in qkv.split(self.heads, 2))  # (B, H or G, T, D)
        k, v, starts = cache.append(k, v)  # (B, G, S, D): all up to now
        dropout = self.attn_pdrop if self.training else 0.0
        y = self.ops.attention(q, k, v, starts, self.scale, dropout)  # (B, H, T, D)
        y = self.c_proj(y.transpose(1, 2).flatten(2))  # (B, T, C)
        return F.dropout(y, self.resid_pdrop, self.training)


class MLP(RowModule):
    """Two linear layers around the activation, on each position alone."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.c_fc = Linear(config.n_embd, config.inner)
        self.c_proj = Linear(config.inner, config.n_embd)
        self.activation = config.activation_function
        self.resid_pdrop = config.resid_pdrop

    def forward(self, x: Tensor) -> Tensor:
        y = self.c_proj(self.ops.activation(self.c_fc(x), self.activation))
        return F.dropout(y, self.resid_pdrop, self.training)


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


def embedding(count: int, width: int) -> nn.Embedding:
    """A table of vectors, not yet drawn: `GPT` draws all weights at once, or loads them."""
    return nn.Embedding.from_pretrained(torch.empty(count, width), freeze=False)


class GPT(RowModule):
    """A GPT-2-style language model: (B, T) tokens in, (B, T, V) logits out.

    Args:
        config: the shape.
        numerics: "exact" for bits that do not depend on how the work was cut, "fast" for whatever
            is quickest; None: exact in evaluation mode, fast in training.

    Raises:
        MinigptError: for a model that does not fit in memory.
    """

    def __init__(self, config: GPTConfig, numerics: str | None = None) -> None:
        super().__init__()
        if not isinstance(config, GPTConfig):
            raise MinigptError(
                f"config is {config!r}, needed a GPTConfig: a trained model comes from "
                f"GPT.from_pretrained()"
            )
        checkpoint.refuse_beyond_memory(config)
        self.config = config
        self.wte = embedding(config.vocab_size, config.n_embd)  # tokens
        self.wpe = embedding(config.n_positions, config.n_embd)  # positions
        self.h = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.ln_f = LayerNorm(config)
        self.lm_head = Head(config)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.wte.weight  # type: ignore[assignment]
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
        with self._reading(tokens, cache):
            return self.lm_head(self._hidden(tokens, cache))

    def next_logits(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """Like `forward`, for the last position only: (B, T) -> (B, V), the head computed once."""
        with self._reading(tokens, cache):
            return self.lm_head(self._hidden(tokens, cache)[:, -1])

    def _hidden(self, tokens: Tensor, cache: KVCache | None) -> Tensor:
        layer_caches = [NoCache()] * len(self.h) if cache is None else cache.layers
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        if cache is not None:  # rows may be of different lengths
            positions = torch.tensor(cache.lengths, device=tokens.device)[:, None] + positions
        x = self.wte(tokens) + self.wpe(positions)  # (B, T, C)
        x = F.dropout(x, self.config.embd_pdrop, self.training)
        for block, layer_cache in zip(self.h, layer_caches, strict=True):
            x = block(x, layer_cache)
        return self.ln_f(x)

    @contextmanager
    def _reading(self, tokens: Tensor, cache: KVCache | None) -> Iterator[None]:
        """Check the input and claim the positions; the cache moves only if all of it succeeds."""
        self._check_tokens(tokens)
        self.ops.check_context(tokens.device)
        batch_size, count = tokens.shape
        if cache is None:
            if count > self.config.n_positions:
                raise MinigptError(
                    f"{count} tokens do not fit the context of {self.config.n_positions} "
                    f"positions: pass at most {self.config.n_positions}"
                )
            yield
        elif not isinstance(cache, KVCache):
            raise MinigptError(f"cache is {cache!r}, needed one from model.new_cache()")
        else:
            with torch.no_grad(), cache.extend(self.cache_spec, batch_size, count, tokens):
                yield

    def _check_tokens(self, tokens: Tensor) -> None:
        if not isinstance(tokens, Tensor) or tokens.dtype not in (torch.int64, torch.int32):
            found = tokens.dtype if isinstance(tokens, Tensor) else type(tokens).__name__
            raise MinigptError(f"tokens are {found}, needed a (B, T) tensor of int64")
        if tokens.ndim != 2 or tokens.numel() == 0:
            raise MinigptError(
                f"tokens have shape {tuple(tokens.shape)}, needed (B, T) with at least one row and "
                f"one token"
            )
        if tokens.device != self.device:
            raise MinigptError(
                f"tokens are on {tokens.device} and the model is on {self.device}: "
                f"move them with tokens.to(model.device)"
            )
        low, high = map(int, tokens.aminmax())
        if low < 0 or high >= self.config.vocab_size:
            raise MinigptError(
                f"token {low if low < 0 else high} is outside the vocabulary, "
                f"needed ids from 0 to {self.config.vocab_size - 1}"
            )

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
        return CacheSpec(c.n_layer, c.kv_heads, c.head_dim, self.dtype, self.device)

    def new_cache(
        self,
        batch_size: int = 1,
        max_length: int | None = None,
        kind: str = "static",
        **settings: int,
    ) -> KVCache:
        """An empty cache for this model, in its dtype and on its device.

        Args:
            batch_size: B, the rows decoded side by side.
            max_length: positions to make room for; None: the context length.
            kind: "static" (preallocated), "growing", "paged", or with less memory and other logits
                "quantized", "window"; see `cache_kinds.py`.
            settings: of the kind: `page` for paged, `window` and `sinks` for window.

        Raises:
            MinigptError: for a length beyond the context, an unknown kind or setting.
        """
        limit = self.config.n_positions
        max_length = limit if max_length is None else max_length
        if isinstance(max_length, int) and max_length > limit:
            raise MinigptError(f"max_length is {max_length}, but this model has {limit} positions")
        cache = make_cache(kind, self.cache_spec, batch_size, max_length, **settings)
        cache.model = self
        return cache

    @property
    def numerics(self) -> str:
        """Which row operations the layers use, "fast" or "exact"; see `numerics.py`, `exact.py`.

        Settable at any time; None returns to the default: exact in evaluation, fast in training.
        """
        return self.ops.name

    @numerics.setter
    def numerics(self, name: str | None) -> None:
        self._chosen = name
        ops = row_ops(name or ("fast" if self.training else "exact"))
        for _, module in row_modules(self):
            module.ops = ops

    def train(self, mode: bool = True) -> GPT:
        """Training mode, or evaluation mode; the default numerics follow."""
        super().train(mode)
        if self._chosen is None:
            self.numerics = None
        return self

    @torch.no_grad()
    def init_weights(self) -> None:
        """GPT-2's initialisation: normal(0, 0.02), the layers that write to the residual stream
        smaller by sqrt(2 x layers), so that its variance does not grow with depth; biases 0."""
        std = self.config.initializer_range
        for name, parameter in self.named_parameters():
            if name.endswith("c_proj.weight"):
                parameter.normal_(0.0, std / (2 * self.config.n_layer) ** 0.5)
            elif parameter.ndim == 2:
                parameter.normal_(0.0, std)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        dtype: torch.dtype | None = None,
        device: str | torch.device = "cpu",
        numerics: str | None = None,
        weights: str | None = None,
    ) -> GPT:
        """A trained model, in evaluation mode, from a directory or a hub name such as "gpt2".

        Weights are memory-mapped: on the CPU, in the file's dtype, nothing is copied.

        Args:
            source: a directory with `config.json` and safetensors, or a name on the hub.
            dtype: float32, float16 or bfloat16; None: what the file has.
            device: where the weights go: "cpu", "cuda", ...
            numerics: "exact" or "fast"; None: exact in evaluation mode, fast in training.
            weights: "int8" for a quarter of the bytes and other logits, see `int8.py`; None: as
                they are.

        Raises:
            MinigptError: when the checkpoint is missing, damaged or not a GPT-2, or there is no
                such device.
        """
        from minigpt.checkpoint import hub
        from minigpt.numerics import int8

        row_ops(numerics or "exact")  # refuse a wrong name before reading anything
        if weights not in (None, "int8"):
            raise MinigptError(
                f"weights is {weights!r}, needed 'int8', or None for those there are"
            )
        device = device_named(device)
        config, tensors = checkpoint.load(hub.resolve(source), dtype)
        with torch.device("meta"):
            model = cls(config, numerics)
        model.load_state_dict(
            {name: tensor.to(device) for name, tensor in tensors.items()},
            assign=True, strict=False,
        )  # fmt: skip
        if config.tie_word_embeddings:
            model.lm_head.weight = model.wte.weight  # type: ignore[assignment]
        if weights == "int8":
            int8.quantize(model)
        return model.eval()

    def save_pretrained(self, directory: str | Path) -> None:
        """Write `config.json` and `model.safetensors`, which transformers loads as they are.

        Raises:
            MinigptError: when the directory cannot be written; an old checkpoint there survives.
        """
        tensors = dict(self.state_dict())
        if "h.0.attn.c_attn.weight" not in tensors:
            raise MinigptError(
                "this model has int8 weights, which GPT-2's file format does not know: save the "
                "model that they were made from"
            )
        if self.config.tie_word_embeddings:
            del tensors["lm_head.weight"]
        checkpoint.save(directory, self.config, tensors)
