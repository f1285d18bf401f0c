"""Our cache in Hugging Face's transformers, in one file because all of it needs transformers.

Any decoder-only model will do, in `model(...)` and in `generate`.

`HFCache` is a cache as transformers knows it and keeps everything in a `KVCache`; `to_hf` and
`from_hf` carry keys and values from one program to the other; two functions at the end generate
text with and without it. What a transformers model computes is its own business: its logits have
the bits that its own cache gives, not those of a pass without one.

Needs `pip install 'minigpt[hf]'`. Shapes use the legend of `model.py`.
"""

from __future__ import annotations

import inspect
import time
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import Any, NoReturn

import torch
import transformers
from torch import Tensor

from minigpt.cache.growing import GrowingCache
from minigpt.cache.kinds import LOSSLESS, make_cache
from minigpt.cache.kvcache import CacheSpec, KVCache
from minigpt.cache.origin import FOREIGN, Origin
from minigpt.generation.sampling import Sampler
from minigpt.model import GPT
from minigpt.numerics.base import records_gradients
from minigpt.support.checks import whole
from minigpt.support.errors import MinigptError
from minigpt.support.modes import evaluating

RUN_ON = ("4.57", "5.0", "5.23")  # transformers' versions that the tests were run on
if ".".join(transformers.__version__.split(".")[:2]) not in RUN_ON:
    raise MinigptError(
        f"transformers is {transformers.__version__}, needed one of {', '.join(RUN_ON)}, on which "
        f"this was run, because its caches change from version to version: pip install one of them"
    )

# Older versions lack some of these names, and would be refused with another sentence.
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase  # noqa: E402
from transformers.cache_utils import (  # noqa: E402
    Cache,
    CacheLayerMixin,
    DynamicLayer,
    StaticLayer,
)


class HFLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """One layer of an `HFCache`, for the code in transformers that looks at layers."""

    is_sliding = False
    is_croppable = True
    is_initialized = True
    supports_early_init = False  # the memory is there already

    def __init__(self, cache: HFCache, layer: int) -> None:
        self.cache, self.layer = cache, layer  # the parent's would set keys and values to None

    @property
    def keys(self) -> Tensor:  # type: ignore[override]
        """(B, G, S, D)"""
        return self.cache.held(self.layer)[0]

    @property
    def values(self) -> Tensor:  # type: ignore[override]
        """(B, G, S, D)"""
        return self.cache.held(self.layer)[1]

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        return None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        return self.cache.update(key_states, value_states, self.layer)

    def get_seq_length(self) -> int:
        return self.cache.length

    def get_mask_sizes(self, query_length: int | Tensor) -> tuple[int, int]:
        """How many keys the next T queries will see, and the position of the first one."""
        if isinstance(query_length, Tensor):  # before 5.23: the positions (T,), not their number
            query_length = query_length.shape[0]
        return self.cache.length + query_length, 0

    def get_max_length(self) -> int:
        return self.cache.capacity

    get_max_cache_shape = get_max_length  # its name before 5.23


class HFCache(Cache):
    """A `KVCache` that transformers takes: `model(..., past_key_values=HFCache(cache))`.

    Rows are of one length, as everywhere in transformers: a shorter text is padded on its left,
    and the attention mask, given with every call, hides the padding. The lengths move when the last
    layer has written. What a pass wrote that ended before is forgotten when the cache is next
    used, so look at `cache.cache` rather than at a `KVCache` remembered from before; beams and
    selected rows put another one in its place. Gradients flow through a growing cache, whose
    tensors are never written to; the memory of the other kinds is, so a backward pass is refused.

    Args:
        cache: of a lossless kind, its rows of one length; it goes on from what that holds.

    Raises:
        MinigptError: for another kind of cache, and, in `update`, for keys that do not fit.
    """

    offloading = False  # the parent's constructor would set these, and make layers of its own
    layer_class_to_replicate = None

    def __init__(self, cache: KVCache) -> None:
        self._cache = _plain(cache)
        self._pass = ExitStack()  # holds the cache's `extend` open from the first layer to the last
        self._count = 0  # T, the positions that this pass adds
        self._written = 0  # layers that have written in this pass
        self._cut = False  # have gradients been left behind?

    @property
    def cache(self) -> KVCache:
        """All that it holds, as the last whole pass left it."""
        if self._written:
            with suppress(_Unfinished), self._pass:
                raise _Unfinished
            self._written = 0
        return self._cache

    @property
    def layers(self) -> list[HFLayer]:  # type: ignore[override]
        """One for each layer. (Made anew, as in `KVCache`, so that no cycle keeps the memory.)"""
        return [HFLayer(self, layer) for layer in range(self._cache.spec.n_layer)]

    @property
    def batch_size(self) -> int:
        return self._cache.batch_size

    @property
    def capacity(self) -> int:
        """Positions that each row may reach."""
        return self._cache.capacity

    @property
    def length(self) -> int:
        """Positions so far; during a pass, those before it. (len() is the number of layers.)"""
        return len(self._cache)

    def held(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values of one layer, (B, G, S, D); see `KVCache.layer`."""
        keys, values = self._cache.layer(layer)
        return keys[:, :, : self.length], values[:, :, : self.length]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Keep the keys and values of T new positions of one layer.

        Args:
            key_states, value_states: (B, G, T, D).
            layer_idx: 0 begins a pass, the others follow in their order.

        Returns:
            Keys and values of everything up to them, (B, G, S, D).

        Raises:
            MinigptError: when they do not fit the cache, or a layer comes out of turn.
        """
        if layer_idx == 0:
            self._begin(key_states, value_states)
        elif layer_idx != self._written:
            raise MinigptError(
                f"layer {layer_idx} wrote to the cache when it was the turn of layer "
                f"{self._written}, needed all layers in order: use transformers' own cache for "
                f"this model"
            )
        self._check(key_states, value_states)
        self._written = layer_idx + 1
        keys, values = self._appended(layer_idx, key_states, value_states)
        end = self.length + self._count
        if self._written == self._cache.spec.n_layer:
            self._pass.close()
            self._written = 0
        return keys[:, :, :end], values[:, :, :end]  # beyond is room for later tokens

    def _appended(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values up to the new ones, and the room beyond."""
        cache = self._cache.layers[layer]
        if isinstance(self._cache, GrowingCache):
            keys, values, _ = cache.append(k, v)
            return keys, values
        self._cut = self._cut or records_gradients(k, v)
        with torch.no_grad():
            keys, values, _ = cache.append(k, v)
        return _WithoutGradient.of(keys, values) if self._cut else (keys, values)

    def _begin(self, k: Tensor, v: Tensor) -> None:
        cache = self.cache  # without what an unfinished pass left
        self._count = k.shape[-2]
        self._check(k, v)
        self._pass.enter_context(cache.extend(cache.spec, cache.batch_size, self._count))

    def _check(self, k: Tensor, v: Tensor) -> None:
        spec = self._cache.spec
        shape = (self.batch_size, spec.n_kv_head, self._count, spec.head_dim)
        for new in (k, v):
            if (new.shape, new.dtype, new.device) != (shape, spec.dtype, spec.device):
                raise MinigptError(
                    f"this cache was given {tuple(new.shape)} in {new.dtype} on {new.device}, "
                    f"needed {shape} in {spec.dtype} on {spec.device} (rows, heads, positions, "
                    f"head width): make one with minigpt.hf.new_cache(model, "
                    f"batch_size={k.shape[0]}), where each beam is a row"
                )

    # --- surgery, by transformers' names ----------------------------------------------------------

    def reset(self) -> None:
        """Forget everything, ready for the next text."""
        self.cache.reset()
        self._cut = False

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the newest positions.

        Args:
            tokens_to_remove: minus how many; or, as it was before 5.23, the length to keep.

        Raises:
            MinigptError: when there are fewer.
        """
        length = len(self.cache)
        keep = tokens_to_remove if tokens_to_remove > 0 else length + tokens_to_remove
        self.cache.truncate(min(keep, length))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows, in this order.

        Args:
            indices: row numbers (n,), or for each row whether it stays (B,).
        """
        rows = torch.arange(self.batch_size)[indices.cpu()]
        self._cache = self.cache.select(rows.tolist())

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Give each beam the history of the one that it goes on from; beam_idx is (B,)."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row so many times, its copies side by side."""
        self.batch_select_indices(torch.arange(self.batch_size).repeat_interleave(repeats))

    def __deepcopy__(self, memo: dict[int, Any]) -> HFCache:
        """How transformers' guide keeps the cache of a common prompt: here, a fork."""
        twin = HFCache(self.cache.fork())
        twin._cut = self._cut
        return twin

    def __repr__(self) -> str:
        return f"HFCache({self._cache!r})"


class _WithoutGradient(torch.autograd.Function):
    """Keys and values whose gradients were cut off: a backward pass through them is refused."""

    @classmethod
    def of(cls, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        # Without the count of changes, by which torch would complain first, and not as plainly.
        anchor = torch.empty(0, requires_grad=True)
        return cls.apply(anchor, keys.data, values.data)  # type: ignore[no-untyped-call]

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        return keys.view_as(keys), values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> NoReturn:
        raise MinigptError(
            "gradients do not flow through a static or paged cache, which writes over its own "
            "memory: train without a cache, or with minigpt.hf.new_cache(..., kind='growing')"
        )


class _Unfinished(Exception):
    """Ends the `extend` of a pass that never came to its last layer."""


# --- making and converting ------------------------------------------------------------------------


def new_cache(
    model: PreTrainedModel,
    batch_size: int = 1,
    max_length: int | None = None,
    kind: str = "static",
) -> HFCache:
    """An empty cache for a model of transformers, in its dtype and on its device.

    Args:
        model: decoder-only, with full attention in every layer.
        batch_size: rows decoded side by side; beam search has rows x beams of them.
        max_length: positions to make room for, prompt included; None: the model's context.
        kind: "static", "growing", or "paged", in which beams share their common beginning.

    Raises:
        MinigptError: for a model that keeps something else, a lossy kind, or sizes out of range.
    """
    spec = cache_spec(model)
    if max_length is None:
        max_length = _context(model)
    if max_length is None:
        raise MinigptError(
            f"{type(model).__name__} does not say how long its context is: give max_length"
        )
    return HFCache(_lossless(kind, spec, batch_size, max_length))


def cache_spec(model: PreTrainedModel) -> CacheSpec:
    """What a cache must hold for this model.

    Seen rather than read off the configuration, whose names differ from family to family: one
    token goes through the model, and its own cache shows what it kept.

    Raises:
        MinigptError: when it is not keys and values of one shape in every layer.
    """
    name = type(model).__name__
    takes = "past_key_values" in inspect.signature(model.forward).parameters
    if not isinstance(model, PreTrainedModel) or model.config.is_encoder_decoder or not takes:
        raise MinigptError(
            f"{name} takes no cache of keys and values of its own text alone, needed a "
            f"decoder-only model of transformers, such as GPT2LMHeadModel"
        )
    own = DynamicCache(config=model.config)
    token = torch.zeros(1, 1, dtype=torch.int64, device=model.device)
    with evaluating(model), torch.no_grad():
        model(input_ids=token, attention_mask=token + 1, past_key_values=own, use_cache=True)
    found = {_layer_kept(layer) for layer in own.layers}
    if len(found) != 1 or not isinstance(kept := found.pop(), tuple):
        kinds = {type(layer).__name__ for layer in own.layers}
        raise MinigptError(
            f"{name} keeps {', '.join(sorted(kinds)) or 'nothing'}, needed keys and values of one "
            f"shape for all positions in every layer: use transformers' own cache for this model"
        )
    (_, heads, _, width), dtype, device = kept
    return CacheSpec(len(own.layers), heads, width, dtype, device)


def _layer_kept(layer: Any) -> tuple[torch.Size, torch.dtype, torch.device] | str:
    """Shape, dtype and device of a layer's keys and of its values; or what else it is."""
    if type(layer) is not DynamicLayer or layer.keys is None or layer.values is None:
        return type(layer).__name__
    keys, values = ((t.shape, t.dtype, t.device) for t in (layer.keys, layer.values))
    return keys if keys == values else "keys unlike values"


def _context(model: GPT | PreTrainedModel) -> int | None:
    """Positions that the model was made for, where it says."""
    if isinstance(model, GPT):
        return model.config.n_positions
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def _lossless(kind: str, spec: CacheSpec, batch_size: int, capacity: int) -> KVCache:
    """An empty cache of a kind that transformers can follow."""
    if kind not in LOSSLESS:
        raise MinigptError(f"cache kind is {kind!r}, needed one of {', '.join(LOSSLESS)}")
    return make_cache(kind, spec, batch_size, capacity)


def _plain(cache: KVCache) -> KVCache:
    """The cache itself, if transformers can follow it."""
    if cache.lossy:
        raise MinigptError(
            f"a {cache.kind} cache does not hold all keys and values as they were, needed one of "
            f"{', '.join(LOSSLESS)}"
        )
    if min(cache.lengths) != len(cache):
        raise MinigptError(
            f"the rows of this cache have lengths {cache.lengths}, needed one length for all, as "
            f"transformers knows no other: select() rows of one length"
        )
    return cache


def to_hf(cache: KVCache) -> DynamicCache:
    """transformers' own cache with what ours holds, for a model with the same weights.

    Nothing is copied where the kind keeps keys in one piece (static, growing): the two share their
    memory, so truncate or reset the first only when the second is done, or pass `cache.fork()`.

    Raises:
        MinigptError: for a lossy kind, or rows of different lengths.
    """
    new = DynamicCache()
    for index in range(_plain(cache).spec.n_layer if len(cache) else 0):
        layer = DynamicLayer()  # type: ignore[no-untyped-call]
        layer.keys, layer.values = cache.layer(index)  # (B, G, S, D)
        layer.dtype, layer.device = cache.spec.dtype, cache.spec.device
        layer.is_initialized = True
        new.layers.append(layer)
    return new


def from_hf(
    cache: Cache,
    model_or_spec: GPT | PreTrainedModel | CacheSpec,
    capacity: int | None = None,
    kind: str = "static",
) -> KVCache:
    """Our cache with what one of transformers holds: a single copy, into the memory it grows in.

    Args:
        cache: a DynamicCache, StaticCache or HFCache.
        model_or_spec: that will go on with it.
        capacity: positions to make room for; None: the model's context, or just what is held.
        kind: see `new_cache`.

    Raises:
        MinigptError: when the cache holds something else than this model would keep, or nothing.
    """
    layers: list[Any] = list(cache.layers)
    strange = {type(layer).__name__ for layer in layers
               if type(layer) not in (DynamicLayer, StaticLayer, HFLayer)}  # fmt: skip
    if strange:
        raise MinigptError(
            f"this cache has layers of {', '.join(sorted(strange))}, needed keys and values of all "
            f"positions, as in DynamicCache"
        )
    length = int(cache.get_seq_length())
    if not length:
        raise MinigptError("this cache is empty: make an empty one with new_cache()")
    held = [(layer.keys[:, :, :length], layer.values[:, :, :length]) for layer in layers]
    origin = None
    if isinstance(model_or_spec, CacheSpec):
        spec, context = model_or_spec, None
    elif isinstance(model_or_spec, GPT):
        spec, context = model_or_spec.cache_spec, _context(model_or_spec)
        origin = replace(Origin.of(model_or_spec), numerics=FOREIGN)
    else:
        spec, context = cache_spec(model_or_spec), _context(model_or_spec)
    rows = held[0][0].shape[0]
    for tensor in (tensor for pair in held for tensor in pair):
        found = CacheSpec(
            len(layers), tensor.shape[1], tensor.shape[3], tensor.dtype, tensor.device
        )
        if found != spec:
            raise MinigptError(
                f"this cache was made for another model, dtype or device: it has {found}, "
                f"the model needs {spec}"
            )
    new = _lossless(kind, spec, rows, capacity or context or length)
    with torch.no_grad(), new.extend(spec, rows, length, origin=origin):
        for layer, (keys, values) in zip(new.layers, held, strict=True):
            layer.append(keys, values)
    return new


# --- with and without -----------------------------------------------------------------------------


def generate_without_cache(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    max_length: int = 50,
    temperature: float = 0.0,
    seed: int = 0,
) -> tuple[str, float]:
    """Continue a prompt with a model of transformers, computing everything anew for each token.

    Args:
        model: decodes in evaluation mode; its mode is restored afterwards.
        tokenizer: the model's.
        prompt: at least one token.
        max_length: tokens at most, those of the prompt included.
        temperature: 0 is greedy; see `Sampler`.
        seed: of the draws; the same seed gives the same text.

    Returns:
        The text, prompt included, and the seconds from the first pass to the last token.

    Raises:
        MinigptError: for arguments out of range.
    """
    return _generate(model, tokenizer, prompt, max_length, temperature, seed, None)


def generate_with_kv_cache(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    max_length: int = 50,
    temperature: float = 0.0,
    seed: int = 0,
    max_seq_len: int | None = None,
    kind: str = "static",
) -> tuple[str, float]:
    """Like `generate_without_cache`, with one of our caches: each pass sees only new tokens.

    Args:
        max_seq_len: positions that the cache has room for; the text ends where it is full. None:
            `max_length`.
        kind: of the cache, see `new_cache`.

    Returns:
        The text and the seconds; making the cache is not among them.
    """
    whole("max_length", max_length)
    room = max_length if max_seq_len is None else max_seq_len
    cache = new_cache(model, max_length=room, kind=kind)
    return _generate(model, tokenizer, prompt, min(max_length, room), temperature, seed, cache)


def _generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    max_length: int,
    temperature: float,
    seed: int,
    cache: HFCache | None,
) -> tuple[str, float]:
    sampler = Sampler(temperature)
    if type(seed) is not int or not 0 <= seed < 2**63:
        raise MinigptError(f"seed is {seed!r}, needed a whole number from 0 to 2**63 - 1")
    ids = _prompt_ids(model, tokenizer, prompt, max_length)
    stop_tokens = _end_of_text(model, tokenizer)
    generator = torch.Generator().manual_seed(seed)
    began = time.perf_counter()
    with evaluating(model), torch.inference_mode():
        while len(ids) < max_length:
            pending = ids if cache is None else ids[cache.length :]  # not seen by the model yet
            tokens = torch.tensor([pending], device=model.device)  # (1, T)
            out = model(input_ids=tokens, past_key_values=cache, use_cache=cache is not None)
            token = sampler.choose(out.logits[0, -1], generator)
            if token in stop_tokens:
                break
            ids.append(token)
    seconds = time.perf_counter() - began
    return str(tokenizer.decode(ids, skip_special_tokens=True)), seconds


def _prompt_ids(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, max_length: int
) -> list[int]:
    whole("max_length", max_length)
    context = _context(model)
    if context is not None and max_length > context:
        raise MinigptError(f"max_length is {max_length}, but this model has {context} positions")
    ids = list(tokenizer(prompt)["input_ids"])
    if not 1 <= len(ids) <= max_length:
        raise MinigptError(
            f"the prompt has {len(ids)} tokens, needed 1 to {max_length}, which max_length and the "
            f"cache have room for"
        )
    return ids


def _end_of_text(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The tokens that `model.generate` would stop at, and the tokenizer's own."""
    given = model.generation_config.eos_token_id
    listed = given if isinstance(given, list) else [given]
    return {token for token in [*listed, tokenizer.eos_token_id] if token is not None}
