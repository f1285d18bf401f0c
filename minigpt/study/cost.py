"""What a model and a cache for it cost in memory, and a pass in work, from the model's shape alone.

Nothing is loaded: parameters follow from the configuration, and the bytes of a cache from a cache
of that kind on torch's "meta" device, whose tensors have sizes and no memory.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from minigpt.cache.kinds import KINDS, make_cache
from minigpt.cache.kvcache import CacheSpec, KVCache
from minigpt.checkpoint import hub, weights
from minigpt.config import PRESETS, GPTConfig
from minigpt.support.checks import path_of, whole
from minigpt.support.errors import MinigptError
from minigpt.support.tables import table
from minigpt.support.wording import counted

PARTS = {  # by what a parameter's name holds
    "wte.": "token embeddings",
    "wpe.": "position embeddings",
    ".attn.": "attention",
    ".mlp.": "MLPs",
    "ln_": "norms",
    "lm_head.": "output head",
}
DTYPES = (torch.float32, torch.bfloat16)  # float16 takes what bfloat16 does
_UNITS = {"": 1, **{unit: 1000 ** (n + 1) for n, unit in enumerate("KMGT")}}
_UNITS |= {f"{unit}I": 1024 ** (n + 1) for n, unit in enumerate("KMGT")}
NUMBERS = ("token", "sequence", "batch", "tokens_that_fit", "sequences_that_fit")  # of a CacheCost


@dataclass(frozen=True)
class CacheCost:
    """One kind of cache in one dtype."""

    kind: str
    dtype: str
    token: int  # bytes that one more token of one row takes, in the long run
    sequence: int  # bytes of one row as long as the context
    batch: int  # bytes of all rows, each that long
    tokens_that_fit: int  # positions held at once, over all rows, in the memory that weights leave
    sequences_that_fit: int  # rows as long as the context


@dataclass(frozen=True)
class PassCost:
    """The work of one pass of a model."""

    flop: int  # multiplications and additions
    nbytes: int  # read from memory, if everything that is needed comes from there once

    @property
    def intensity(self) -> float:
        """FLOP for each byte read: the arithmetic intensity."""
        return self.flop / self.nbytes


@dataclass(frozen=True)
class Inspection:
    """A model and its caches; print it, or take `to_dict` for JSON."""

    source: str
    config: GPTConfig
    dtype: str  # of the weights in memory; float32 for a preset
    stored: str  # ... and in the checkpoint's file, which may be narrower
    parameters: dict[str, int]  # by part
    rows: int  # in a batch
    memory: int  # bytes, for weights and caches together
    caches: tuple[CacheCost, ...]

    @property
    def total(self) -> int:
        """Parameters of the whole model."""
        return sum(self.parameters.values())

    @property
    def nbytes(self) -> int:
        """Bytes of the weights in memory."""
        return self.total * _bytes_per_number(self.dtype)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "total": self.total, "nbytes": self.nbytes}

    def __str__(self) -> str:
        c, size = self.config, _bytes_per_number(self.dtype)
        grouped = "" if c.kv_heads == c.n_head else f" ({c.kv_heads} for keys and values)"
        parts = [
            (part, f"{count:,}", f"{count / self.total:.1%}", f"{count * size:,}")
            for part, count in [*self.parameters.items(), ("all", self.total)]
        ]
        costs = [
            (cost.kind, cost.dtype, *(f"{getattr(cost, field):,}" for field in NUMBERS))
            for cost in self.caches
        ]
        context = f"{c.n_positions:,} tokens"
        headings = ("kind", "dtype", "per token", context, "batch", "tokens fit", "sequences fit")
        narrow = []
        if self.stored != self.dtype:
            on_disk = self.total * _bytes_per_number(self.stored)
            narrow = [f"stored in {self.stored} ({on_disk:,} bytes), computed with in {self.dtype}"]
        lines = [
            f"{self.source}: {counted(c.n_layer, 'layer')}, "
            f"{counted(c.n_head, 'head')}{grouped} of {c.head_dim}, width {c.n_embd}, "
            f"context {c.n_positions:,}, vocabulary {c.vocab_size:,}",
            *narrow,
            "",
            table(("parameters", "number", "share", f"bytes ({self.dtype})"), parts),
            "",
            f"a cache, in bytes (batch of {self.rows}; float16 as bfloat16)",
            table(headings, costs, left=2),
            "",
            self._left(),
        ]
        return "\n".join(lines)

    def _left(self) -> str:
        """What the weights leave of the memory, or what they alone would need."""
        left = {dtype: self.memory - self.total * dtype.itemsize for dtype in DTYPES}
        fits = [f"{free:,} ({_name(dtype)})" for dtype, free in left.items() if free > 0]
        short = [
            f"in {_name(dtype)} the weights alone take {self.total * dtype.itemsize:,} bytes"
            for dtype, free in left.items()
            if free <= 0
        ]
        leaves = f"the weights leave {' and '.join(fits) or 'nothing'} for caches"
        return "; ".join([f"of {self.memory:,} bytes of memory {leaves}", *short])


def inspect(source: str | Path, batch: int = 1, memory: int = 8 * 1000**3) -> Inspection:
    """What a model is made of, and what caches for it cost.

    Args:
        source: a directory with `config.json` (weights are not needed), a preset's name such as
            "gpt2-xl", with or without "random:" before it, or a name on the hub.
        batch: B, rows in a batch.
        memory: bytes there are, for weights and caches together.

    Raises:
        MinigptError: when there is no such model, or for numbers below 1.
    """
    whole("batch", batch)
    whole("memory", memory)
    path_of(source)  # or it is refused
    config, dtype, stored = _shape(str(source))
    parameters = dict.fromkeys(PARTS.values(), 0)
    for name, shape in config.tensors().items():
        part = next(part for mark, part in PARTS.items() if mark in name)
        parameters[part] += math.prod(shape)
    parameters = {part: count for part, count in parameters.items() if count}
    costs = []
    for kind in KINDS:
        for each in DTYPES:
            free = max(0, memory - sum(parameters.values()) * each.itemsize)
            token = _empty_cache(config, kind, each).bytes_per_token()
            sequence = cache_bytes(config, kind, config.n_positions, each)
            costs.append(
                CacheCost(
                    kind=kind,
                    dtype=_name(each),
                    token=token,
                    sequence=sequence,
                    batch=batch * sequence,
                    tokens_that_fit=free // token,
                    sequences_that_fit=free // sequence,
                )
            )
    return Inspection(
        str(source), config, _name(dtype), _name(stored), parameters, batch, memory, tuple(costs)
    )


def cache_bytes(
    config: GPTConfig, kind: str, length: int, dtype: torch.dtype = torch.float32, **settings: int
) -> int:
    """Bytes allocated by a cache of one row, made for the whole context, that holds `length`.

    Raises:
        MinigptError: for an unknown kind or setting, or a length beyond the context.
    """
    whole("length", length, 0, config.n_positions, "the context")
    one_layer = replace(config, n_layer=1)  # every layer takes the same
    cache = _empty_cache(one_layer, kind, dtype, **settings)
    new = torch.empty(1, config.kv_heads, length, config.head_dim, dtype=dtype, device="meta")
    if length:
        with torch.no_grad(), cache.extend(cache.spec, 1, length):
            cache.layers[0].append(new, new)
    return config.n_layer * cache.nbytes


def pass_cost(
    config: GPTConfig, rows: int, new: int, held: int = 0, dtype: torch.dtype = torch.float32
) -> PassCost:
    """What a pass costs that gives the logits after the last token of each row.

    Counted are the products and attention, which are nearly all of it. Every weight is read once,
    whatever the number of rows; every row has keys and values of its own.

    Args:
        rows: B, texts side by side.
        new: T, tokens of each that are computed: 1 when decoding.
        held: tokens of each that a cache holds already.

    Raises:
        MinigptError: for numbers out of range.
    """
    whole("rows", rows)
    whole("new", new)
    whole("held", held, 0)
    L, C, V, D = config.n_layer, config.n_embd, config.vocab_size, config.head_dim
    H, G = config.n_head, config.kv_heads
    inner = config.n_inner or 4 * C
    block = C * (H + 2 * G) * D + C * C + 2 * C * inner  # weights that each token meets
    keys = held + new  # that each query meets: those that are hidden from it are computed too
    products = 2 * rows * (new * L * block + V * C)  # 2: multiply and add; one head for each row
    attention = 2 * 2 * rows * new * keys * L * H * D  # 2: scores, and the mixture of values
    numbers = L * block + V * C + rows * keys * 2 * L * G * D
    return PassCost(products + attention, numbers * dtype.itemsize)


def _empty_cache(config: GPTConfig, kind: str, dtype: torch.dtype, **settings: int) -> KVCache:
    """A cache for a model of this shape that takes no memory, and tells what a real one would."""
    spec = CacheSpec(config.n_layer, config.kv_heads, config.head_dim, dtype, torch.device("meta"))
    return make_cache(kind, spec, 1, config.n_positions, **settings)


def parse_size(text: str) -> int:
    """Bytes: "512MB", "8GB" (8 x 1000³), "8GiB" (8 x 1024³), "1.5 GB" or plain "1000".

    Raises:
        MinigptError: for anything else.
    """
    pattern = r"(\d+(?:\.\d+)?)\s*([KMGT]I?)?B?"
    match = re.fullmatch(pattern, text.strip().upper()) if isinstance(text, str) else None
    size = round(float(match[1]) * _UNITS[match[2] or ""]) if match else 0
    if size < 1:
        raise MinigptError(
            f"the size is {text!r}, needed a number of bytes such as 512MB, 8GB or 8GiB"
        )
    return size


def _shape(source: str) -> tuple[GPTConfig, torch.dtype, torch.dtype]:
    preset = source.removeprefix("random:")
    here = os.path.isdir(source) or os.path.isdir(hub.WEIGHTS_DIR / source)
    if preset != source or (preset in PRESETS and not here):
        return GPTConfig.preset(preset), torch.float32, torch.float32
    return weights.read_config(hub.resolve(source))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _bytes_per_number(dtype: str) -> int:
    number: int = getattr(torch, dtype).itemsize
    return number
