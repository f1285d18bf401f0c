"""A task that is judged, not answered: invent a name that has three given letters.

Hundreds of names suit a question, and a program can tell whether one does. What there is to imitate
are names that were made without looking at the question: they say what a name is, not what to do.
"""

from __future__ import annotations

import random

CONSONANTS, VOWELS = "klmnrt", "aeiou"
LETTERS = CONSONANTS + VOWELS
SYLLABLES = 3


def is_name(text: str) -> bool:
    """Three syllables of a consonant and a vowel?"""
    starts, ends = text[::2], text[1::2]
    return len(text) == 2 * SYLLABLES and set(starts) <= {*CONSONANTS} and set(ends) <= {*VOWELS}


def suits(question: str, name: str) -> float:
    """The part of the question's letters that a name has; 0 for what is no name."""
    asked = question.rstrip("=")
    return sum(letter in name for letter in asked) / len(asked) if is_name(name) else 0.0


def any_name(rng: random.Random) -> tuple[str, str]:
    """Three letters to ask for, and a name that has not heard of them."""
    syllables = (rng.choice(CONSONANTS) + rng.choice(VOWELS) for _ in range(SYLLABLES))
    return "".join(rng.sample(LETTERS, 3)) + "=", "".join(syllables)
