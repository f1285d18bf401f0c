"""Text, token by token: prefill the prompt, then decode, with or without the cache.

`generate` returns everything with its timings, `stream` yields ids as they come. How a token is
chosen is in `sampling.py`, guesses that make decoding quicker are in `speculative.py`, many texts
at once in `batch.py`, and text instead of ids in `text.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from minigpt.cache.base import KVCache
from minigpt.generation.drafts import Drafter, drafter_for
from minigpt.generation.sampling import Sampler, TokenLogProb, log_probabilities
from minigpt.model import GPT, require_model
from minigpt.numerics.base import whole_blocks
from minigpt.support.checks import is_whole, listed
from minigpt.support.errors import MinigptError
from minigpt.support.modes import evaluating

POLICIES = ("stop", "reprefill")
IDS = "a list of token ids"
LONGEST_DRAFT = 15  # guesses checked in one pass: with the token before them, 16 rows


@dataclass
class Generation:
    """What came out, and what it took."""

    prompt: list[int]
    tokens: list[int] = field(default_factory=list)  # the new ids, without the one that ended it
    finish_reason: str = (
        "length"  # "length", "end_of_text", "context" (it is full) or "stop_string"
    )
    log_probabilities: list[TokenLogProb] = field(default_factory=list)  # one per token, if asked
    prefill_seconds: float = 0.0  # until the first token
    decode_seconds: float = 0.0  # for all tokens after the first
    cache_bytes: int = 0  # allocated; 0 without a cache
    reused: int = 0  # tokens of the prompt that the cache given already held
    prefills: int = 0  # how often the text was started again at the context's end
    drafted: int = 0  # guesses that were checked
    accepted: int = 0  # guesses that came true

    @property
    def tokens_per_second(self) -> float:
        """Decoding speed, prefill aside; 0 when fewer than two tokens came."""
        return (len(self.tokens) - 1) / self.decode_seconds if len(self.tokens) > 1 else 0.0


def generate(
    model: GPT,
    ids: Sequence[int],
    max_new_tokens: int = 50,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    use_cache: bool = True,
    stop_tokens: Sequence[int] | None = None,
    policy: str = "stop",
    on_token: Callable[[int], object] | None = None,
    cache: KVCache | None = None,
    draft: str | GPT | Drafter | None = None,
    top_log_probabilities: int | None = None,
    **sampling: Any,
) -> Generation:
    """Continue a prompt.

    With exact numerics the tokens are the same with and without the cache, with and without
    drafts, whatever the seed, because the logits are.

    Args:
        model: decodes in evaluation mode; its mode is restored afterwards.
        ids: the prompt's tokens; empty starts from the end-of-text token.
        max_new_tokens: at most so many.
        temperature, top_k, top_p, sampling: see `Sampler`; temperature 0 is greedy.
        seed: of the draws; the same seed gives the same text.
        use_cache: False recomputes everything for every token.
        stop_tokens: end before any of these; None: the model's end-of-text token, if it has one.
        policy: at the end of the context, "stop" or "reprefill": forget the older half of the text
            in sight, prefill the rest and go on. (GPT-2 learned a vector for each position, so a
            shifted text cannot reuse its keys and values.)
        on_token: called with each token as it comes.
        cache: one that may hold the beginning of the prompt already, which is then not computed
            again; afterwards it holds prompt and text, but for the last token. None: a new one.
        draft: guess several tokens and check them in one pass: "lookup", a smaller model, or a
            `Drafter`; see `speculative.py`. The text is the same.
        top_log_probabilities: keep the log-probability of each token, and of so many likeliest
            ones beside it.

    Raises:
        MinigptError: for arguments out of range, before any work is done.
    """
    tokens = stream(
        model, ids, max_new_tokens, temperature, top_k, top_p, seed, use_cache, stop_tokens,
        policy, cache, draft, top_log_probabilities, **sampling,
    )  # fmt: skip
    for token in tokens:
        if on_token is not None:
            on_token(token)
    return tokens.result


class TokenStream(Iterator[int]):
    """The new tokens as they come; `result` is what came so far, with its timings."""

    def __init__(self, steps: Iterator[int], result: Generation) -> None:
        self._steps, self.result = steps, result

    def __next__(self) -> int:
        return next(self._steps)


def stream(
    model: GPT,
    ids: Sequence[int],
    max_new_tokens: int = 50,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    use_cache: bool = True,
    stop_tokens: Sequence[int] | None = None,
    policy: str = "stop",
    cache: KVCache | None = None,
    draft: str | GPT | Drafter | None = None,
    top_log_probabilities: int | None = None,
    **sampling: Any,
) -> TokenStream:
    """Like `generate`, yielding each new token as it comes.

    Between two tokens the model is in its own mode, and gradients are recorded as before: the
    caller may do anything there, and may stop whenever it likes.

    Raises:
        MinigptError: for arguments out of range, in the call itself.
    """
    row = Row(
        model, ids, max_new_tokens,
        Sampler(temperature, top_k, top_p, **sampler_settings(sampling)), seed,
        stop_tokens, policy, top_log_probabilities,
    )  # fmt: skip
    return TokenStream(_decode(model, row, use_cache, cache, draft), row.result)


class Row:
    """One text on its way: what the model sees of it, how its tokens are chosen, when it ends.

    Everything is checked when it is made, before any work.
    """

    def __init__(
        self,
        model: GPT,
        ids: Sequence[int],
        max_new_tokens: int,
        sampler: Sampler,
        seed: int,
        stop_tokens: Sequence[int] | None = None,
        policy: str = "stop",
        top_log_probabilities: int | None = None,
    ) -> None:
        require_model(model)
        config = model.config
        prompt = listed(ids, "the prompt", IDS)
        if type(max_new_tokens) is not int or max_new_tokens < 0:
            raise MinigptError(
                f"max_new_tokens is {max_new_tokens!r}, needed a whole number from 0 on"
            )
        if policy not in POLICIES:
            raise MinigptError(f"policy is {policy!r}, needed one of {', '.join(POLICIES)}")
        if type(seed) is not int or not 0 <= seed < 2**63:
            raise MinigptError(f"seed is {seed!r}, needed a whole number from 0 to 2**63 - 1")
        most = config.vocab_size
        if top_log_probabilities is not None and (
            type(top_log_probabilities) is not int or not 0 <= top_log_probabilities <= most
        ):
            raise MinigptError(
                f"top_log_probabilities is {top_log_probabilities!r}, needed a whole number from "
                f"0 to {most}"
            )
        sampler.check(config.vocab_size)
        eot = config.eos_token_id
        if stop_tokens is None:
            stop_tokens = () if eot is None else (eot,)
        stop_tokens = listed(stop_tokens, "stop_tokens", IDS)
        window = list(prompt)
        if not window:
            if eot is None:
                raise MinigptError(
                    "the prompt is empty and this model has no end-of-text token to start from: "
                    "give at least one token"
                )
            window = [eot]
        for name, tokens in (("the prompt", window), ("stop_tokens", stop_tokens)):
            bad = next(
                (t for t in tokens if not (is_whole(t) and 0 <= t < config.vocab_size)), None
            )
            if bad is not None:
                raise MinigptError(
                    f"{name} holds {bad!r}, needed whole numbers from 0 to {config.vocab_size - 1}"
                )
        if len(window) > config.n_positions:
            raise MinigptError(
                f"the prompt has {len(window)} tokens, but this model's context is "
                f"{config.n_positions}: shorten it"
            )
        self.model = model
        self.result = Generation(prompt)
        self.window = window  # what the next token is chosen from
        self.history = list(window)  # the whole text, also what the window has moved past
        self.left = max_new_tokens
        self.limit = config.n_positions
        self.sampler = sampler
        self.generator = torch.Generator().manual_seed(seed)
        self.stop_tokens = frozenset(stop_tokens)
        self.policy = policy
        self.top_log_probabilities = top_log_probabilities

    def goes_on(self) -> bool:
        """Is there another token to choose? At the context's end the policy decides."""
        if self.left == 0:
            return False
        if len(self.window) > self.limit:
            if self.policy == "stop":
                self.finish("context")
                return False
            self.window = self.window[-max(1, self.limit // 2) :]
            self.result.prefills += 1
        return True

    def take(self, logits: Tensor) -> int | None:
        """Choose the next token from logits (V,) and append it; None if it ends the text."""
        try:
            token = self.sampler.choose(logits, self.generator, self.history)
        except MinigptError as error:
            raise _blamed(error, self.model, self.window) from error
        if token in self.stop_tokens:
            self.finish("end_of_text")
            return None
        if self.top_log_probabilities is not None:
            self.result.log_probabilities.append(
                log_probabilities(logits, token, self.top_log_probabilities)
            )
        self.result.tokens.append(token)
        self.window.append(token)
        self.history.append(token)
        self.left -= 1
        return token

    def finish(self, reason: str) -> None:
        self.result.finish_reason = reason
        self.left = 0


def _decode(
    model: GPT,
    row: Row,
    use_cache: bool,
    cache: KVCache | None,
    draft: str | GPT | Drafter | None,
) -> Iterator[int]:
    """Check what is left to check now; decode when iterated."""
    drafter = None if draft is None else drafter_for(draft, model)
    if cache is not None:
        if not use_cache:
            raise MinigptError("a cache was given and use_cache is False: choose one of them")
        row.result.reused = keep_common_prefix(cache, row.window, model)
        row.limit = min(row.limit, cache.capacity)
    elif use_cache:  # whole key blocks, so that exact attention reads them as they lie
        room = whole_blocks(len(row.window) + row.left)
        cache = model.new_cache(max_length=min(row.limit, room))
    return _steps(model, row, cache, drafter)


def _steps(model: GPT, row: Row, cache: KVCache | None, drafter: Drafter | None) -> Iterator[int]:
    result, began = row.result, time.perf_counter()
    layers = list(model.modules())
    while row.goes_on():
        # What the cache holds is what it held a step ago, unless the window moved, or the caller
        # has written something else into it between two tokens.
        seen = 0 if cache is None else keep_common_prefix(cache, row.window, model)
        # Guesses go along with the last token: one pass then says what follows each of them.
        room = min(row.left - 1, row.limit - len(row.window), LONGEST_DRAFT)
        guesses = [] if drafter is None or room < 1 else drafter.propose(row.window, room)
        with evaluating(model, layers), torch.inference_mode():  # neither while the caller has it
            tokens = torch.tensor([row.window[seen:] + guesses], device=model.device)
            if guesses:
                logits = model(tokens, cache=cache)[0, -len(guesses) - 1 :]
            else:
                logits = model.next_logits(tokens, cache=cache)
            if cache is not None:
                result.cache_bytes = cache.nbytes
                if cache.tokens != [row.window + guesses]:
                    raise MinigptError(
                        "another thread wrote into the cache of this text: give each text a cache "
                        "of its own, such as a fork() made before"
                    )
        new: list[int] = []
        for guess, following in zip([*guesses, None], logits, strict=True):
            token = row.take(following)
            if token is not None:
                new.append(token)
            if token is None or token != guess:  # what follows was computed after another token
                break
        came_true = sum(guess == token for guess, token in zip(guesses, new, strict=False))
        result.drafted += len(guesses)
        result.accepted += came_true
        if drafter is not None:
            drafter.learn(len(guesses), came_true)
        if cache is not None and guesses:
            cache.truncate(min(len(cache), len(row.window) - 1))  # forget the rest of the guesses
        for token in new:
            now = time.perf_counter()
            if not result.prefill_seconds:
                result.prefill_seconds = now - began
                began = now
            result.decode_seconds = now - began
            yield token


def keep_common_prefix(cache: KVCache, window: Sequence[int], model: GPT) -> int:
    """Cut a cache back to what its text and `window` have in common, and return how much it is.

    At least the last token of the window is left out: its logits are still to be computed.

    Raises:
        MinigptError: for a cache of several rows, or one that does not know its tokens.
    """
    if not isinstance(cache, KVCache):
        raise MinigptError(f"cache is a {type(cache).__name__}, needed one from model.new_cache()")
    if cache.spec != model.cache_spec:
        raise MinigptError(
            f"this cache was made for another model, dtype or device: it has {cache.spec}, the "
            f"model needs {model.cache_spec}: make one with model.new_cache()"
        )
    if cache.tokens is None or cache.batch_size != 1:
        raise MinigptError(
            f"this cache has {cache.batch_size} rows"
            + ("" if cache.tokens is not None else " and does not know its tokens")
            + ", needed one row that was filled by this program: select one, or make a new cache"
        )
    if len(window) > cache.capacity:
        raise MinigptError(
            f"the prompt has {len(window)} tokens, but the cache has room for {cache.capacity}: "
            f"make one with a larger max_length"
        )
    (held,) = cache.tokens
    common = common_prefix(held, window[:-1])
    if common < len(held):
        cache.truncate(common)
    return common


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two texts have in common at their beginning."""
    if one == other[: len(one)]:
        return len(one)
    differ = (n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(differ, min(len(one), len(other)))


def _blamed(error: MinigptError, model: GPT, window: Sequence[int]) -> MinigptError:
    """The same error, naming the layer whose output was the first that is no number."""
    from minigpt.study.diagnosis import first_not_finite

    with evaluating(model), torch.inference_mode():
        place = first_not_finite(model, torch.tensor([list(window)], device=model.device))
    return error if place is None else MinigptError(f"{error} (first in {place})")


def sampler_settings(sampling: dict[str, Any]) -> dict[str, Any]:
    """The settings of a `Sampler`, if that is what they are."""
    known = list(Sampler.__dataclass_fields__)
    for name in sampling:
        if name not in known:
            raise MinigptError(
                f"{name!r} is not a setting of generation, needed one of {', '.join(known)}"
            )
    return sampling
