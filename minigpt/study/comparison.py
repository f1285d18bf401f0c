"""What a kind of cache costs on a text: its memory, and how far its logits are off.

Each kind decodes the text token by token after a prompt, as generation would, beside the uncached
logits. For the lossless kinds under exact numerics every difference is 0.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from minigpt.cache.kinds import KINDS, make_cache
from minigpt.model import GPT, require_model
from minigpt.support.checks import listed, whole
from minigpt.support.errors import MinigptError
from minigpt.support.modes import evaluating
from minigpt.support.tables import table
from minigpt.support.tokens import listed_tokens
from minigpt.support.wording import counted

Kind = str | tuple[str, Mapping[str, int]]


@dataclass(frozen=True)
class KindCost:
    """One kind of cache, measured on the text."""

    kind: str
    settings: dict[str, int]
    lossy: bool
    nbytes: int  # allocated at the end of the text
    bytes_per_token: int  # of one more token
    ratio: float  # of nbytes, to those of `static`
    max_difference: float  # between a logit and the uncached one, over all that were decoded
    mean_difference: float
    loss: float  # nats per token
    loss_change: float  # against the uncached loss
    greedy_changed: int  # decoded positions whose likeliest token is another one

    @property
    def name(self) -> str:
        settings = ", ".join(f"{name} {value}" for name, value in self.settings.items())
        return f"{self.kind} ({settings})" if settings else self.kind


@dataclass(frozen=True)
class CacheComparison:
    """A table with one row for each kind; print it, or let a notebook show it."""

    numerics: str
    dtype: str
    prompt: int  # tokens prefilled in one go
    decoded: int  # tokens after it, decoded one by one, whose logits are compared
    loss: float  # uncached, nats per token, over what was decoded and has a next token
    kinds: tuple[KindCost, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return "\n".join([self._about(), table(_HEADINGS, [_cells(kind) for kind in self.kinds])])

    def _repr_html_(self) -> str:
        def row(tag: str, cells: Sequence[str]) -> str:
            return "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells)

        body = "".join(f"<tr>{row('td', _cells(kind))}</tr>" for kind in self.kinds)
        return (
            f"<table><caption>{html.escape(self._about())}</caption>"
            f"<thead><tr>{row('th', _HEADINGS)}</tr></thead><tbody>{body}</tbody></table>"
        )

    def _about(self) -> str:
        return (
            f"{self.decoded} tokens decoded after a prompt of {self.prompt}, {self.numerics} "
            f"numerics in {self.dtype}; uncached loss {self.loss:.4f} nats per token"
        )


_HEADINGS = (
    "cache",
    "bytes",
    "per token",
    "of static",
    "max |Δ logit|",
    "mean |Δ logit|",
    "loss",
    "Δ loss",
    "greedy changed",
)


def _cells(kind: KindCost) -> tuple[str, ...]:
    return (
        kind.name,
        f"{kind.nbytes:,}",
        f"{kind.bytes_per_token:,}",
        f"{kind.ratio:.0%}",
        f"{kind.max_difference:.2g}",
        f"{kind.mean_difference:.2g}",
        f"{kind.loss:.4f}",
        f"{kind.loss_change:+.4f}",
        f"{kind.greedy_changed}",
    )


@torch.inference_mode()
def compare_caches(
    model: GPT,
    ids: Sequence[int],
    kinds: Sequence[Kind] = tuple(KINDS),
    prompt: int | None = None,
) -> CacheComparison:
    """Decode a text with each kind of cache, and hold its logits against the uncached ones.

    Args:
        model: runs in evaluation mode; its mode is restored afterwards.
        ids: the text's tokens, at most the model's context.
        kinds: names, or pairs of a name and its settings: ("window", {"window": 64}).
        prompt: how many tokens are prefilled in one go; None: half of them.

    Raises:
        MinigptError: for a text too short or too long, or an unknown kind or setting.
    """
    require_model(model)
    ids = listed_tokens(ids, "the text", model.config.vocab_size)
    T, limit = len(ids), model.config.n_positions
    if not 3 <= T <= limit:
        raise MinigptError(f"the text to compare on has {counted(T, 'token')}, needed 3 to {limit}")
    why = f"two of the text's {T} tokens are left to decode"
    prompt = whole("prompt", T // 2 if prompt is None else prompt, 1, T - 2, why)
    pairs = [_pair(kind) for kind in listed(kinds, "kinds")]
    for name, settings in pairs:  # refuse before any work is done
        make_cache(name, model.cache_spec, 1, 1, **settings)
    tokens = torch.tensor([ids], device=model.device)
    with evaluating(model):
        want = model(tokens)[0, prompt:]  # (decoded, V)
        static = model.new_cache(max_length=T).nbytes
        loss = _loss(want, tokens[0, prompt:])
        costs = []
        for name, settings in pairs:
            cache = model.new_cache(1, T, name, **settings)
            model.next_logits(tokens[:, :prompt], cache)
            got = torch.cat(
                [model.next_logits(tokens[:, t : t + 1], cache) for t in range(prompt, T)]
            )
            off = (got.float() - want.float()).abs()
            new_loss = _loss(got, tokens[0, prompt:])
            costs.append(
                KindCost(
                    kind=name,
                    settings=settings,
                    lossy=cache.lossy,
                    nbytes=cache.nbytes,
                    bytes_per_token=cache.bytes_per_token(),
                    ratio=cache.nbytes / static,
                    max_difference=float(off.max()),
                    mean_difference=float(off.mean()),
                    loss=new_loss,
                    loss_change=new_loss - loss,
                    greedy_changed=int((got.argmax(-1) != want.argmax(-1)).sum()),
                )
            )
    return CacheComparison(
        numerics=model.numerics,
        dtype=str(model.dtype).removeprefix("torch."),
        prompt=prompt,
        decoded=T - prompt,
        loss=loss,
        kinds=tuple(costs),
    )


def _loss(logits: Tensor, tokens: Tensor) -> float:
    """Mean nats per token: logits (T, V) against the tokens that come next, of (T,)."""
    return float(F.cross_entropy(logits[:-1].float(), tokens[1:]))


def _pair(kind: Kind) -> tuple[str, dict[str, int]]:
    """A kind's name and its settings."""
    try:
        name, settings = (kind, {}) if isinstance(kind, str) else kind
        return name, dict(settings)
    except (TypeError, ValueError):
        raise MinigptError(
            f"one of the kinds is {kind!r}, needed a name, or a pair of a name and its settings"
        ) from None
