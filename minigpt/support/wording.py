"""Words that several sentences share: numbers with their nouns, and what was probably meant."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def counted(count: int, noun: str, plural: str = "") -> str:
    """ "1 token", "1,024 tokens", "0 tokens"; `plural` where an s is not enough."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def meant(word: str, known: Iterable[str]) -> str:
    """ ", did you mean 'seed'?" for the known word nearest to a mistyped one; "" when none is."""
    nearest = get_close_matches(word, known, n=1)
    return f", did you mean {nearest[0]!r}?" if nearest else ""
