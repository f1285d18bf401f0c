"""Guess several tokens cheaply, check them all in one pass of the model: the same text, sooner.

Reading the weights is most of the work of decoding one token, and one pass can read them for many
tokens at once. So a drafter guesses what comes next, the model computes the logits after every
guess, and the loop chooses from them, one by one, exactly as it would without guesses: a guess is
kept if it is the very token that was chosen, and what follows the first wrong one is thrown away
(`cache.truncate`). The random draws are the same as in plain decoding, one for each token that
comes out, so with exact numerics the text is the same, to the bit, greedy or sampled, whatever the
guesses were.

Leviathan et al. (2023) and Chen et al. (2023) accept a guess with probability min(1, p / q), drawn
from a generator of its own. That keeps the distribution, but not the text of a seed. Drafters here
do not draw, they name one token (q = 1), for which both schemes accept equally often, p.
"""

from __future__ import annotations

from collections.abc import Sequence

from minigpt.cache.kvcache import KVCache
from minigpt.generation.decoding import LONGEST_DRAFT, Drafter, Row, decode
from minigpt.generation.sampling import Sampler
from minigpt.model import GPT
from minigpt.support.errors import MinigptError


class Lookup:
    """What followed the last time? No model: find the last few tokens earlier in the text.

    As in prompt lookup decoding (Saxena 2023). Texts that quote themselves (code, summaries,
    answers about a document, loops) repeat whole stretches.

    Checking guesses that fail makes a step dearer, so the number of guesses follows their success:
    doubled when all came true, cut to what did when not, and when none do, ever fewer occasions are
    taken.

    Args:
        longest, shortest: lengths of the ending that is looked for, the longest first.
    """

    def __init__(self, longest: int = 4, shortest: int = 2) -> None:
        self.longest, self.shortest = longest, shortest
        self.length = 4  # guesses to make next time
        self.pause = 1  # occasions to let pass after the next failure
        self.waiting = 0

    def propose(self, tokens: Sequence[int], room: int) -> list[int]:
        found = self._followers(list(tokens), min(room, self.length))
        if found and self.waiting:
            self.waiting -= 1
            return []
        return found

    def learn(self, drafted: int, accepted: int) -> None:
        if not drafted:
            return
        if accepted == 0:
            self.waiting = self.pause
            self.pause = min(2 * self.pause, 32)
        else:
            self.pause = 1
        self.length = (
            min(LONGEST_DRAFT, 2 * drafted) if accepted == drafted else max(2, accepted + 1)
        )

    def _followers(self, tokens: list[int], room: int) -> list[int]:
        for length in range(min(self.longest, len(tokens) - 1), self.shortest - 1, -1):
            ending = tokens[-length:]
            last = ending[-1]
            for end in range(len(tokens) - 1, length - 1, -1):  # the latest occurrence first
                if tokens[end - 1] == last and tokens[end - length : end] == ending:
                    text = tokens.copy()
                    for place in range(end, end + room):  # past its end, a loop goes on looping
                        text.append(text[place])
                    return text[len(tokens) :]
        return []


class SmallModel:
    """Guesses of a smaller model with the same vocabulary: its greedy continuation, with a cache.

    Args:
        model: the one that guesses.
        length: guesses at a time.
    """

    def __init__(self, model: GPT, length: int = 4) -> None:
        self.model, self.length = model, length
        self._cache: KVCache | None = None

    def propose(self, tokens: Sequence[int], room: int) -> list[int]:
        limit = self.model.config.n_positions
        count = min(room, self.length, limit - len(tokens))
        if count < 1:
            return []
        if self._cache is None or _is_stale(self._cache):
            self._cache = self.model.new_cache()
        # What it guessed and what was kept of it have a beginning in common: that stays cached.
        row = Row(self.model, tokens, count, Sampler(), seed=0, stop_tokens=())
        return list(decode(row, self._cache))

    def learn(self, drafted: int, accepted: int) -> None:
        if drafted:
            self.length = min(8, drafted + 1) if accepted == drafted else max(1, accepted + 1)


def _is_stale(cache: KVCache) -> bool:
    """Have the weights that filled it changed since, in training for one?"""
    return cache.origin is not None and cache.origin.weights.model is None


def drafter_for(draft: str | GPT | Drafter, model: GPT) -> Drafter:
    """The drafter that `generate(draft=...)` names.

    Raises:
        MinigptError: for anything that cannot draft for this model.
    """
    if draft == "lookup":
        return Lookup()
    if isinstance(draft, GPT):
        ours, theirs = model.config.vocab_size, draft.config.vocab_size
        if ours != theirs:
            raise MinigptError(
                f"the draft model has a vocabulary of {theirs} tokens and the model one of {ours}: "
                f"they must be the same to guess for it"
            )
        return SmallModel(draft)
    if isinstance(draft, str) or not hasattr(draft, "propose"):
        raise MinigptError(f"draft is {draft!r}, needed 'lookup', a smaller model, or a Drafter")
    return draft


def acceptance(drafted: int, accepted: int) -> str:
    """For people: "12 of 20 guesses came true (60 %)"."""
    share = f" ({100 * accepted / drafted:.0f} %)" if drafted else ""
    return f"{accepted:,} of {drafted:,} guesses came true{share}"
