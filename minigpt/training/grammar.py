"""Texts for the bundled model, as many as you like: stories, small talents, what people type.

What they say is data, `stories.txt`, which explains its own notation; this file only reads it. A
text is a function of a seed and its number, so processes can share the work and agree.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

Choice = list[list[Any]]  # alternatives, made of texts, choices, and (name, one of < % { :, value)
_TOKENS = re.compile(r"\s*\d+\*|[\[\]|{}]|<[^<>]*>|[^\[\]|{}<>]+")


def stories(seed: int, count: int, first: int = 0) -> Iterator[str]:
    """`count` texts of a series that depends on `seed` alone, from number `first` on."""
    return (story(random.Random(seed * 2**40 + n)) for n in range(first, first + count))


def story(rng: random.Random, rule: str = "document") -> str:
    """One text, or what another rule makes: none has a word that is held out."""
    while True:
        text = _tidy(_Teller(rng).follow(rule))
        if held_out().isdisjoint(re.findall(r"[^\W\d_]+", text.lower())):
            return text


@cache
def held_out() -> frozenset[str]:
    """The names and nouns, in lower case, that no text has."""
    lists = [rule for rule in rule_texts() if rule.startswith("held_out_")]
    return frozenset(word.lower() for rule in lists for word in words(rule))


@cache
def words(rule: str) -> tuple[str, ...]:
    """The alternatives of a rule that is a list of plain words."""
    return tuple(word.strip() for word in rule_texts()[rule].split("|"))


@cache
def rule_texts() -> dict[str, str]:
    """The text of each rule."""
    text = Path(__file__).with_name("stories.txt").read_text(encoding="utf-8")
    return dict(re.findall(r"^(\w+) = ?((?:.*\n)(?: .*\n|\n)*)", text, re.MULTILINE))


def _tidy(text: str) -> str:
    """Articles, plurals, white space, capitals after ^ and the line ends of \\ and /."""
    text = re.sub(r"\b([Aa]) (?=[aeiou](?<!u)|u(?!n[io]|s|k))", r"\1n ", text)
    text = re.sub(r"(ch|sh|x|ss)s\b", r"\1es", text)
    text = re.sub(r"\^(.)", lambda match: match[1].upper(), text)
    text = re.sub(r"\s+", " ", text).replace(" .", ".").replace(" ,", ",").strip()
    return re.sub(r" ?/ ?", "\n\n", re.sub(r" ?\\ ?", "\n", text))


class _Teller:
    """One text in the making: what was drawn for each slot."""

    def __init__(self, rng: random.Random) -> None:
        self.random, self.slots = rng.random, dict[str, str]()

    def follow(self, rule: str) -> str:
        return self.choose(_rules()[rule]).strip()

    def choose(self, choice: Choice) -> str:
        parts = choice[int(self.random() * len(choice))]
        return "".join([part if isinstance(part, str) else self.tell(part) for part in parts])

    def tell(self, part: Choice | tuple[str, str, Choice]) -> str:
        if isinstance(part, list):
            return self.choose(part)
        name, sign, value = part
        if sign == ":":
            self.slots[name] = self.choose(value)
            return ""
        text = self.fill(name.lower()) if sign == "{" else self.follow(name.lower())
        if sign == "%":
            text = " ".join(text.split()[: 1 + int(self.random() * len(text.split()))])
        if name[0].isupper():
            text = text.upper() if name.isupper() else text[:1].upper() + text[1:]
        return text

    def fill(self, name: str) -> str:
        base = name.rstrip("123456789")
        while name not in self.slots:
            drawn = self.follow(base)
            alike = [slot for slot in self.slots if slot.strip("123456789") == base]
            if drawn not in map(self.slots.get, alike):
                self.slots[name] = drawn
        return self.slots[name]


@cache
def _rules() -> dict[str, Choice]:
    return {name: _read(_TOKENS.findall(text)[::-1]) for name, text in rule_texts().items()}


def _read(tokens: list[str], closing: str = "") -> Choice:
    """Alternatives up to `closing`; tokens are taken from the end of the list."""
    choice, parts, weight = Choice(), list[Any](), 1
    while True:
        token = tokens.pop() if tokens else closing
        if token in ("|", closing):
            choice += [parts] * weight
            if token == closing:
                return choice
            parts, weight = [], 1
        elif token[-1] == "*":
            weight = int(token[:-1])
        elif token == "[":
            parts.append(_read(tokens, "]"))
        elif token == "{":
            name, colon, rest = tokens.pop().partition(":")
            tokens += [rest] if rest else []
            parts.append((name, colon or "{", _read(tokens, "}")))
        elif token[0] == "<":
            parts.append((token[1:-1].rstrip("%"), "%" if token[-2] == "%" else "<", []))
        else:
            parts.append(token)
