"""The loop of decoding: compute logits, choose a token, append it, with or without a cache.

A `Row` is one text on its way; `decode` runs the model for it. The functions that users call are
in `continuation.py`, `batch.py` and `beam.py`. How a token is chosen is in `sampling.py`, where
guesses come from in `drafts.py`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from minigpt.cache.kvcache import KVCache
from minigpt.cache.origin import Origin
from minigpt.generation.device_steps import DeviceSteps, steps_for
from minigpt.generation.sampling import Sampler, TokenLogProb, log_probabilities
from minigpt.model import GPT, require_model
from minigpt.numerics.recorder import recording
from minigpt.support.checks import is_whole, listed, whole
from minigpt.support.errors import MinigptError
from minigpt.support.modes import evaluating
from minigpt.support.wording import counted

POLICIES = ("stop", "reprefill")
IDS = "a list of token ids"
LONGEST_DRAFT = 15  # guesses checked in one pass: with the token before them, 16 rows


@dataclass
class Generation:
    """What came out, and what it took."""

    prompt: list[int]
    tokens: list[int] = field(default_factory=list)  # the new ids, without the one that ended it
    finish_reason: str = "length"  # or "end_of_text", "context" (it is full), "stop_string"
    log_probabilities: list[TokenLogProb] = field(default_factory=list)  # one per token, if asked
    ending: TokenLogProb | None = None  # that of the token that ended it, if asked
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


class Row:
    """One text on its way: what the model sees of it, how its tokens are chosen, when it ends.

    Everything is checked when it is made, before any work. Copies of weights that may have changed
    are not (`copies.recheck`), for that reads the model: once for all rows, whoever makes them.
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
        max_new_tokens = whole("max_new_tokens", max_new_tokens, 0)
        if policy not in POLICIES:
            raise MinigptError(f"policy is {policy!r}, needed one of {', '.join(POLICIES)}")
        seed, most = whole("seed", seed, 0, 2**63 - 1), config.vocab_size
        if top_log_probabilities is not None:
            whole("top_log_probabilities", top_log_probabilities, 0, most)
        sampler.check(most)
        eot = config.eos_token_id
        if stop_tokens is None:
            stop_tokens = config.stop_tokens
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
            bad = [token for token in tokens if not (is_whole(token) and 0 <= token < most)]
            if bad:
                raise MinigptError(
                    f"{name} holds {bad[0]!r}, needed whole numbers from 0 to {most - 1}"
                )
        if len(window) > config.n_positions:
            raise MinigptError(
                f"the prompt has {counted(len(window), 'token')}, but this model's context is "
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
        self.ahead = 1  # tokens that may be computed before anybody sees the first of them

    @property
    def may_choose_on_device(self) -> bool:
        return self.sampler.forgets and self.top_log_probabilities is None

    def noise(self) -> Tensor:
        """What chance has for its next token, (V,) on the CPU, if that is chosen on the device."""
        return self.sampler.noise(self.model.config.vocab_size, self.generator)

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
            early = len(self.result.tokens) < self.sampler.min_new_tokens
            never = self.stop_tokens if early else ()
            token = self.sampler.choose(logits, self.generator, self.history, never)
        except MinigptError as error:
            raise _blamed(error, self.model, self.window) from error
        if self.top_log_probabilities is not None:
            told = log_probabilities(logits, token, self.top_log_probabilities)
            if token in self.stop_tokens:
                self.result.ending = told
            else:
                self.result.log_probabilities.append(told)
        return self.accept(token)

    def accept(self, token: int) -> int | None:
        """Append a token that was chosen; None if it ends the text."""
        if token in self.stop_tokens:
            self.finish("end_of_text")
            return None
        self.result.tokens.append(token)
        self.window.append(token)
        self.history.append(token)
        self.left -= 1
        return token

    def finish(self, reason: str) -> None:
        self.result.finish_reason = reason
        self.left = 0


class Drafter(Protocol):
    """Something that guesses which tokens come next."""

    def propose(self, tokens: Sequence[int], room: int) -> list[int]:
        """At most `room` guesses of what follows `tokens`; none if it has no idea."""
        ...

    def learn(self, drafted: int, accepted: int) -> None:
        """How many of its last guesses came true."""
        ...


def decode(row: Row, cache: KVCache | None, drafter: Drafter | None = None) -> Iterator[int]:
    """The new tokens of a text, one by one.

    Args:
        cache: of one row, holding nothing or the beginning of some text; None recomputes everything
            for every token.
        drafter: its guesses are checked several at a time.
    """
    model, result, began = row.model, row.result, time.perf_counter()
    layers = list(model.modules())
    while row.goes_on():
        # What the cache holds is what it held a step ago, unless the window moved, or the caller
        # has written something else into it between two tokens.
        seen = 0 if cache is None else keep_common_prefix(cache, row.window)
        # Guesses go along with the last token: one pass then says what follows each of them.
        room = min(row.left - 1, row.limit - len(row.window), LONGEST_DRAFT)
        guesses = [] if drafter is None or room < 1 else drafter.propose(row.window, room)
        steps = steps_for(model, cache) if seen == len(row.window) - 1 and not guesses else None
        new: list[int] | None = None
        with evaluating(model, layers), torch.inference_mode():  # neither while the caller has it
            if steps is not None and row.may_choose_on_device:
                chosen = choose_on_device([row], steps)
                new = None if chosen is None else chosen[0]
            if new is None:
                tokens = torch.tensor([row.window[seen:] + guesses], device=model.device)
                if guesses:
                    logits = model(tokens, cache=cache)[0, -len(guesses) - 1 :]
                elif steps is not None:
                    logits = steps.logits(row.window[-1:])
                else:
                    logits = model.next_logits(tokens, cache=cache)
            if cache is not None:
                result.cache_bytes = cache.nbytes
                if new is None:
                    refuse_other_hands(cache, row.window + guesses)
        if new is None:
            new = []
            for guess, following in zip([*guesses, None], logits, strict=True):
                token = row.take(following)
                if token is not None:
                    new.append(token)
                if token is None or token != guess:  # what follows came after another token
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


def choose_on_device(rows: Sequence[Row], steps: DeviceSteps) -> list[list[int]] | None:
    """The next tokens of each text, whose row of the cache lacks its last one only, chosen without
    looking; none of one that has ended and is still in the batch.

    All have one sampler. None: some logits were no numbers, and nothing has changed.
    """
    cache, before = steps.cache, [row.generator.get_state() for row in rows]
    held = cache.lengths
    going = [(row, length) for row, length in zip(rows, held, strict=True) if row.left]
    room = min(min(cache.capacity, row.limit) - length for row, length in going)
    left = min(max(row.left for row, _ in going), room)
    count = min(left, rows[0].ahead)
    chosen = steps.advance(
        [row.window[-1] for row in rows], count, rows[0].sampler,
        lambda: torch.stack([row.noise() for row in rows]), left - count,
    )  # fmt: skip
    if chosen is None:
        cache.truncate(held)
        for row, state in zip(rows, before, strict=True):
            row.generator.set_state(state)
        return None
    if len(rows) == 1:  # a batch's cache is in no other hands
        refuse_other_hands(cache, rows[0].window + [token for (token,) in chosen[:-1]])
    new: list[list[int]] = [[] for _ in rows]
    for tokens in chosen:
        for row, token, its in zip(rows, tokens, new, strict=True):
            if row.left and row.accept(token) is not None:
                its.append(token)
    # What was computed after a text's end is nobody's.
    ends = [min(len(row.window), n) for row, n in zip(rows, cache.lengths, strict=True)]
    if ends != cache.lengths:
        cache.truncate(ends)
    return new


def refuse_other_hands(cache: KVCache, text: list[int]) -> None:
    """A cache that holds something else than this text after a pass was written to meanwhile."""
    if cache.tokens != [text]:
        raise MinigptError(
            "another thread wrote into the cache of this text: give each text a cache of its own, "
            "such as a fork() made before"
        )


def check_cache(cache: KVCache, model: GPT) -> None:
    """Refuse a cache that the model cannot go on with, before anything is cut off it.

    Raises:
        MinigptError: for what is no cache, or one of another model, weights or numerics.
    """
    if not isinstance(cache, KVCache):
        raise MinigptError(f"cache is a {type(cache).__name__}, needed one from model.new_cache()")
    with evaluating(model):
        cache.check_model(model.cache_spec, Origin.of(model))


def keep_common_prefix(cache: KVCache, window: Sequence[int]) -> int:
    """Cut a cache back to what its text and `window` have in common, and return how much it is.

    At least the last token of the window is left out: its logits are still to be computed.

    Raises:
        MinigptError: for a cache of several rows, or one that does not know its tokens.
    """
    if cache.tokens is None or cache.batch_size != 1:
        raise MinigptError(
            f"this cache has {counted(cache.batch_size, 'row')}"
            + ("" if cache.tokens is not None else " and does not know its tokens")
            + ", needed one row that was filled by this program: select one, or make a new cache"
        )
    if len(window) > cache.capacity:
        raise MinigptError(
            f"the prompt has {counted(len(window), 'token')}, but the cache has room for "
            f"{cache.capacity}: "
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
    for name in ("wte", "wpe"):
        if not getattr(model, name).weight.isfinite().all():
            return MinigptError(f"{error} (first in {name}, the embeddings)")
    with evaluating(model), torch.inference_mode(), recording(model) as calls:
        model(torch.tensor([list(window)], device=model.device))
    for name, call in calls.items():
        if not call.output.isfinite().all():
            place = name.replace("h.", "layer ", 1) if name.startswith("h.") else name
            return MinigptError(f"{error} (first in {place})")
    return error
