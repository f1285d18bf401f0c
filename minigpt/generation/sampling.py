"""From logits to the next token; long because each way to choose is a small pure function.

Each function takes logits (..., V) and returns logits (..., V), with -inf where a token is ruled
out. `Sampler` puts them together and draws; `log_probabilities` is what the model itself thought.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from minigpt.support.checks import is_number, is_whole, listed, whole
from minigpt.support.errors import MinigptError


def add_bias(logits: Tensor, bias: Mapping[int, float]) -> Tensor:
    """Add to the logits of some tokens: `logit_bias` in OpenAI's API.

    -inf bans a token. +inf forces: only tokens with +inf are left, each with its own logit.
    """
    offsets = logits.new_zeros(logits.shape[-1])  # (V,)
    offsets[list(bias)] = offsets.new_tensor(list(bias.values()))
    forced = offsets == torch.inf
    if forced.any():
        return logits.masked_fill(~forced, -torch.inf)
    return logits + offsets


def ban(tokens: Iterable[int]) -> dict[int, float]:
    """The bias under which none of these tokens is chosen."""
    return dict.fromkeys(tokens, -math.inf)


def force(tokens: Iterable[int]) -> dict[int, float]:
    """The bias under which one of these tokens is chosen: the one for certain, if it is only one.

    Biases join as any dicts do: `ban([3]) | {5: 2.0}`.
    """
    return dict.fromkeys(tokens, math.inf)


def count_tokens(history: Sequence[int], vocab_size: int) -> Tensor:
    """How often each token occurs in a text: (V,) int64, which the penalties take.

    Raises:
        MinigptError: for a history that is not a list of tokens of this vocabulary.
    """
    try:
        tokens = torch.as_tensor(history if len(history) else torch.empty(0, dtype=torch.int64))
        integers = tokens.ndim == 1 and tokens.dtype in (torch.int64, torch.int32)
    except (TypeError, ValueError, RuntimeError):
        integers = False
    if not integers or ((tokens < 0) | (tokens >= vocab_size)).any():
        raise MinigptError(
            f"the history holds something else than tokens, needed a list of whole numbers from 0 "
            f"to {vocab_size - 1}"
        )
    return torch.bincount(tokens.cpu(), minlength=vocab_size)


def penalize_repetition(logits: Tensor, counts: Tensor, penalty: float) -> Tensor:
    """Make tokens that occurred less likely, however often they did (CTRL, Keskar et al. 2019).

    Positive logits are divided by the penalty and negative ones multiplied: above 1 both fall.

    Args:
        counts: (..., V), from `count_tokens`.
    """
    lower = torch.where(logits < 0, logits * penalty, logits / penalty)
    return torch.where(counts > 0, lower, logits)


def penalize_presence(logits: Tensor, counts: Tensor, penalty: float) -> Tensor:
    """Subtract the penalty from tokens that occurred, however often (OpenAI's API)."""
    return logits - penalty * (counts > 0).to(logits.dtype)


def penalize_frequency(logits: Tensor, counts: Tensor, penalty: float) -> Tensor:
    """Subtract the penalty once for each time that a token occurred (OpenAI's API)."""
    return logits - penalty * counts.to(logits.dtype)


def scale_temperature(logits: Tensor, temperature: float) -> Tensor:
    """Divide by the temperature: below 1 sharpens the distribution, above 1 flattens it."""
    numbers = torch.finfo(logits.dtype)  # beyond these ends it would become 0 or infinity, and
    return logits / min(max(temperature, numbers.tiny), numbers.max)  # 0 / 0 is not a number


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Keep the k likeliest tokens, and any that tie with the last of them (Fan et al. 2018)."""
    smallest = logits.topk(k, dim=-1).values[..., -1:]
    return logits.masked_fill(logits < smallest, -torch.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the fewest likeliest tokens with at least probability p together (Holtzman et al. 2020).

    The likeliest token always stays.
    """
    ordered, index = logits.sort(dim=-1, descending=True, stable=True)
    probabilities = ordered.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities  # probability of all likelier tokens
    ordered = ordered.masked_fill(before >= p, -torch.inf)
    ordered[..., 0] = logits.amax(dim=-1)  # even for a p that rounds to 0
    return torch.empty_like(logits).scatter_(-1, index, ordered)


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Keep tokens at least p times as likely as the likeliest (min-p, Nguyen et al. 2024)."""
    probabilities = logits.softmax(dim=-1)
    least = p * probabilities.amax(dim=-1, keepdim=True)
    return logits.masked_fill(probabilities < least, -torch.inf)


def ends_of_repeats(history: Sequence[int], size: int) -> list[int]:
    """The tokens that would complete a run of `size` tokens that the history has already."""
    tokens = listed(history)
    ending = tokens[len(tokens) - size + 1 :] if size <= len(tokens) else None
    return [
        tokens[place + size - 1]
        for place in range(len(tokens) - size + 1)
        if tokens[place : place + size - 1] == ending
    ]


@dataclass(frozen=True)
class Sampler:
    """How the next token is chosen.

    What is set applies in this order, which is that of Hugging Face transformers: logit_bias,
    repetition_penalty, presence_penalty, frequency_penalty, no_repeat_ngram_size, min_new_tokens,
    logits_processor; then, unless the temperature is 0, temperature, top_k, top_p, min_p.

    Args:
        temperature: 0 takes the likeliest token (greedy), whatever top_k, top_p and min_p are.
        top_k: keep this many likeliest tokens; None keeps all.
        top_p: keep the likeliest tokens with this probability together; None keeps all.
        min_p: keep tokens with at least this fraction of the likeliest one's probability; None
            keeps all.
        repetition_penalty: above 1 shuns tokens of the history, below 1 seeks them.
        presence_penalty: subtracted from the logits of the history's tokens; -2 to 2.
        frequency_penalty: the same, as many times as the token occurs; -2 to 2.
        logit_bias: added to the logits of these tokens, see `add_bias`, `ban` and `force`; None
            adds nothing.
        no_repeat_ngram_size: no run of this many tokens comes twice, prompt and text together; 0
            lets it.
        min_new_tokens: until there are so many new tokens, none that ends the text is chosen.
        logits_processor: a function of one's own, such as one of transformers' logits processors:
            from the text so far (1, S) int64 and the logits (1, V) float32, both on the CPU and
            its own to change, to logits (1, V). It is called once for each token that is chosen,
            in order, with the same numbers with and without the cache and drafts: a pure function
            keeps the text exact.

    Raises:
        MinigptError: for a setting out of range.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | None = field(default=None, hash=False)
    no_repeat_ngram_size: int = 0
    min_new_tokens: int = 0
    logits_processor: Callable[[Tensor, Tensor], Tensor] | None = field(default=None, hash=False)

    def __post_init__(self) -> None:
        if not is_number(self.temperature) or not 0 <= self.temperature < math.inf:
            raise MinigptError(
                f"temperature is {self.temperature!r}, needed 0 (greedy) or a positive number"
            )
        if self.top_k is not None:
            whole("top_k", self.top_k)
        if self.top_p is not None and (not is_number(self.top_p) or not 0 < self.top_p <= 1):
            raise MinigptError(f"top_p is {self.top_p!r}, needed a probability in (0, 1]")
        if self.min_p is not None and (not is_number(self.min_p) or not 0 <= self.min_p <= 1):
            raise MinigptError(f"min_p is {self.min_p!r}, needed a fraction in [0, 1]")
        penalty = self.repetition_penalty
        if not is_number(penalty) or not 0 < penalty < math.inf:
            raise MinigptError(
                f"repetition_penalty is {penalty!r}, needed a positive number (1 changes nothing)"
            )
        for name in ("presence_penalty", "frequency_penalty"):
            penalty = getattr(self, name)
            if not is_number(penalty) or not -2 <= penalty <= 2:
                raise MinigptError(
                    f"{name} is {penalty!r}, needed a number in [-2, 2] (0 changes nothing)"
                )
        for name in ("no_repeat_ngram_size", "min_new_tokens"):
            whole(name, getattr(self, name), 0)
        if self.logits_processor is not None and not callable(self.logits_processor):
            raise MinigptError(
                f"logits_processor is {self.logits_processor!r}, needed a function of the text "
                f"so far and the logits"
            )
        if self.logit_bias is None:
            return
        if not isinstance(self.logit_bias, Mapping):
            raise MinigptError(
                f"logit_bias is a {type(self.logit_bias).__name__}, needed a dict of token: bias"
            )
        for token, bias in self.logit_bias.items():
            if not is_whole(token) or not is_number(bias) or math.isnan(bias):
                raise MinigptError(
                    f"logit_bias has {token!r}: {bias!r}, needed a token's id and a number (-inf "
                    f"to ban it, inf to force it)"
                )
        object.__setattr__(self, "logit_bias", dict(self.logit_bias))  # ours from here on

    def check(self, vocab_size: int) -> None:
        """Refuse settings that this vocabulary cannot serve."""
        if self.top_k is not None and self.top_k > vocab_size:
            raise MinigptError(
                f"top_k is {self.top_k}, but the vocabulary has {vocab_size} tokens: "
                f"needed 1 to {vocab_size}"
            )
        bias = self.logit_bias or {}
        for token in bias:
            if not 0 <= token < vocab_size:
                raise MinigptError(
                    f"logit_bias has token {token}, but the vocabulary has {vocab_size} tokens: "
                    f"needed 0 to {vocab_size - 1}"
                )
        if list(bias.values()).count(-math.inf) == vocab_size:
            raise MinigptError(
                f"logit_bias bans all {vocab_size} tokens, needed at least one to choose"
            )

    def choose(
        self,
        logits: Tensor,
        generator: torch.Generator,
        history: Sequence[int] = (),
        never: Iterable[int] = (),
    ) -> int:
        """The next token for one row of logits (V,).

        Drawn on the CPU in float32, from `generator`, so that a seed means the same everywhere.
        Greedy draws nothing. Arguments and errors as `distribution`.
        """
        logits = self._prefer(logits, history, never)
        if self.temperature == 0:
            return int(logits.argmax())
        return int(torch.multinomial(self._filter(logits).softmax(-1), 1, generator=generator))

    @property
    def draws(self) -> bool:
        """Is there chance in it?"""
        return self.temperature != 0

    @property
    def forgets(self) -> bool:
        """Does the choice depend on the logits alone, and not on the text or on single tokens?"""
        others = (self.no_repeat_ngram_size, self.min_new_tokens, self.logits_processor is not None)
        return not self._penalizes and not any(others)

    @property
    def _penalizes(self) -> bool:
        penalties = (self.repetition_penalty, self.presence_penalty, self.frequency_penalty)
        return bool(self.logit_bias) or penalties != (1, 0, 0)

    def noise(self, width: int, generator: torch.Generator) -> Tensor:
        """What `choose` draws for one token: (V,) on the CPU, for `pick`."""
        return torch.empty(width).exponential_(1, generator=generator)

    def pick(self, logits: Tensor, noise: Tensor | None) -> Tensor:
        """The choice of a sampler that `forgets`, (B, V) -> (B,), without leaving the device.

        It is that of `choose`, where softmax has the same bits: multinomial, too, divides each
        probability by an exponential number and takes the largest quotient.

        Args:
            noise: (B, V), each row from `noise`; None for a greedy one.
        """
        if noise is None:
            return logits.argmax(-1)
        return (self._filter(logits.float()).softmax(-1) / noise).argmax(-1)

    def distribution(
        self, logits: Tensor, history: Sequence[int] = (), never: Iterable[int] = ()
    ) -> Tensor:
        """The probabilities that `choose` draws from: (V,) -> (V,), float32 on the CPU.

        Greedy gives the likeliest token, or the first of several, probability 1.

        Args:
            logits: (V,), of one position.
            history: the tokens that the penalties are about: the prompt and what followed it.
            never: tokens that are not chosen here, such as an end that would come too early.

        Raises:
            MinigptError: when the logits hold NaN or nothing but infinities, before or after the
                settings; and for settings or a history that do not fit the vocabulary.
        """
        logits = self._prefer(logits, history, never)
        if self.temperature == 0:
            return torch.zeros_like(logits).index_fill_(0, logits.argmax(), 1.0)
        return self._filter(logits).softmax(-1)

    def _prefer(self, logits: Tensor, history: Sequence[int], never: Iterable[int]) -> Tensor:
        """What greedy honours as well, everything but the filters: (V,) -> (V,)."""
        self.check(_width(logits))
        logits = _numbers(logits)
        banned = list(never)
        if self.forgets and not banned:
            return logits
        if self._penalizes:
            logits = add_bias(logits, self.logit_bias or {})
            counts = count_tokens(history, len(logits))
            logits = penalize_repetition(logits, counts, self.repetition_penalty)
            logits = penalize_presence(logits, counts, self.presence_penalty)
            logits = penalize_frequency(logits, counts, self.frequency_penalty)
        if self.no_repeat_ngram_size:
            banned += ends_of_repeats(history, self.no_repeat_ngram_size)
        if banned:
            logits = add_bias(logits, ban(banned))
        if self.logits_processor is not None:
            logits = self._processed(logits, history)
        top = logits.max()
        if not top.isfinite():
            raise MinigptError(
                f"the settings leave no token to choose, the best logit is {float(top)}: ban fewer "
                f"tokens (logit_bias, no_repeat_ngram_size, min_new_tokens, logits_processor), or "
                f"use a milder penalty"
            )
        return logits

    def _processed(self, logits: Tensor, history: Sequence[int]) -> Tensor:
        """What the caller's own function makes of the logits: (V,) -> (V,)."""
        assert self.logits_processor is not None
        text = torch.tensor([listed(history)], dtype=torch.int64)  # (1, S)
        made = self.logits_processor(text, logits.clone()[None])
        if not isinstance(made, Tensor) or made.shape != (1, len(logits)):
            found = tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__
            raise MinigptError(
                f"logits_processor gave {found}, needed logits of shape (1, {len(logits)})"
            )
        return made[0].detach().float().cpu()

    def _filter(self, logits: Tensor) -> Tensor:
        """What matters to a draw only, the temperature and the filters: (..., V) -> (..., V)."""
        logits = logits - logits.amax(-1, keepdim=True)
        logits = scale_temperature(logits, self.temperature)
        if self.top_k is not None:
            logits = keep_top_k(logits, self.top_k)
        if self.top_p is not None:
            logits = keep_top_p(logits, self.top_p)
        if self.min_p is not None:
            logits = keep_min_p(logits, self.min_p)
        return logits


@dataclass(frozen=True)
class TokenLogProb:
    """How likely the model thought a token, and what it thought likelier."""

    token: int
    log_probability: float  # nats, 0 for certain
    top: tuple[tuple[int, float], ...] = ()  # (token, log-probability), likeliest first


def log_probabilities(logits: Tensor, token: int, top_n: int = 0) -> TokenLogProb:
    """The model's own log-probabilities at one position, before any setting of a `Sampler`.

    Computed in float32. Of equally likely tokens the first comes first, as greedy takes it.

    Args:
        logits: (V,).
        token: whose log-probability is wanted, such as the chosen one's.
        top_n: so many likeliest tokens beside it.

    Raises:
        MinigptError: for a token or `top_n` beyond the vocabulary, or logits that hold NaN.
    """
    vocab_size = _width(logits)
    token = whole("token", token, 0, vocab_size - 1)
    whole("top_n", top_n, 0, vocab_size)
    scores = _numbers(logits).log_softmax(-1)
    top: list[int] = []
    if top_n:
        least = scores.topk(top_n).values[-1]  # topk may take any of equals, so take all of them
        candidates = (scores >= least).nonzero()[:, 0]
        order = scores[candidates].sort(descending=True, stable=True).indices[:top_n]
        top = candidates[order].tolist()
    return TokenLogProb(token, float(scores[token]), tuple((t, float(scores[t])) for t in top))


def _width(logits: Tensor) -> int:
    """V, of logits (V,)."""
    if not isinstance(logits, Tensor) or logits.ndim != 1 or not len(logits):
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise MinigptError(f"the logits are {found}, needed a tensor (V,): those of one position")
    return len(logits)


def _numbers(logits: Tensor) -> Tensor:
    """Logits as float32 on the CPU; refused when they cannot be a distribution."""
    logits = logits.detach().float().cpu()
    top = logits.max()
    if not top.isfinite():
        raise MinigptError(
            f"the model's logits hold {float(top)}: its weights are damaged, or its dtype "
            f"overflows; try dtype float32"
        )
    return logits
