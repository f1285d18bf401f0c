"""Texts for the bundled model, as many as you like: stories, small talents, what people type.

What they say is data, `stories.txt`, which explains its own notation; this file only reads it. A
text is a function of a seed and its number, so processes can share the work and agree.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

Node = Callable[["_Teller"], str]  # writes its part of a text
_TOKENS = re.compile(r"[\[\]|{}]|<[^<>]*>|[^\[\]|{}<>]+")


def stories(seed: int, count: int, first: int = 0) -> Iterator[str]:
    """`count` texts of a series that depends on `seed` alone, from number `first` on."""
    for number in range(first, first + count):
        yield story(random.Random(seed * 2**40 + number))


def story(rng: random.Random, rule: str = "document") -> str:
    """One text, or what another rule makes: none has a word that is held out."""
    while True:
        text = _tidy(_Teller(rng).rule(rule))
        if held_out().isdisjoint(re.findall(r"[^\W\d_]+", text.lower())):
            return text


@cache
def held_out() -> frozenset[str]:
    """The names and nouns, in lower case, that no text has."""
    kinds = ("names", "animals", "objects", "places")
    return frozenset(word.lower() for kind in kinds for word in words(f"held_out_{kind}"))


@cache
def words(rule: str) -> tuple[str, ...]:
    """The alternatives of a rule that is a list of plain words."""
    return tuple(word.strip() for word in sources()[rule].split("|"))


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
        self.random = rng.random
        self.slots: dict[str, str] = {}

    def rule(self, name: str) -> str:
        return _rules()[name](self)

    def fill(self, name: str) -> str:
        if name not in self.slots:
            base = name.rstrip("123456789")
            taken = [text for slot, text in self.slots.items() if slot.rstrip("123456789") == base]
            while (drawn := self.rule(base)) in taken:
                pass
            self.slots[name] = drawn
        return self.slots[name]


@cache
def sources() -> dict[str, str]:
    """The text of each rule."""
    text = Path(__file__).with_name("stories.txt").read_text(encoding="utf-8")
    text = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)
    return dict(re.findall(r"^(\w+) = ?((?:.*\n)(?: .*\n|\n)*)", text, re.MULTILINE))


@cache
def _rules() -> dict[str, Node]:
    tidied = ((name, re.sub(r"\s+", " ", text)) for name, text in sources().items())
    return {name: _choice(_TOKENS.findall(text)[::-1], strip=True) for name, text in tidied}


def _choice(tokens: list[str], closing: str = "", strip: bool = False) -> Node:
    """Alternatives up to `closing`; tokens are taken from the end of the list."""
    options: list[Node] = []
    parts: list[str | Node] = []
    while True:
        token = tokens.pop() if tokens else closing
        if token in ("|", closing):
            options += _weighted(parts, strip)
            parts = []
            if token == closing:
                return options[0] if len(options) == 1 else _one_of(options)
        elif token == "[":
            parts.append(_choice(tokens, "]"))
        elif token == "{":
            name, colon, rest = tokens.pop().partition(":")
            tokens += [rest] if rest else []
            value = _choice(tokens, "}")
            parts.append(_setting(name, value) if colon else _cased(name, _slot(name.lower())))
        elif token[0] == "<":
            name = token[1:-1].rstrip("%")
            node = _cased(name, _rule(name.lower()))
            parts.append(_cut(node) if token[-2] == "%" else node)
        else:
            parts.append(token)


def _weighted(parts: list[str | Node], strip: bool) -> list[Node]:
    """An alternative, as often as its weight says."""
    weight = 1
    if parts and isinstance(parts[0], str) and (match := re.match(r"\s*(\d+)\*", parts[0])):
        weight, parts[0] = int(match[1]), parts[0][match.end() :]
    if strip and parts and isinstance(parts[0], str):
        parts[0] = parts[0].lstrip()
    if strip and parts and isinstance(parts[-1], str):
        parts[-1] = parts[-1].rstrip()
    return weight * [lambda t: "".join([p if isinstance(p, str) else p(t) for p in parts])]


def _one_of(options: list[Node]) -> Node:
    return lambda t: options[int(t.random() * len(options))](t)


def _slot(name: str) -> Node:
    return lambda t: t.fill(name)


def _rule(name: str) -> Node:
    return lambda t: t.rule(name)


def _setting(name: str, value: Node) -> Node:
    def set_it(t: _Teller) -> str:
        t.slots[name] = value(t)
        return ""

    return set_it


def _cut(node: Node) -> Node:
    def first_words(t: _Teller) -> str:
        found = node(t).split()
        return " ".join(found[: 1 + int(t.random() * len(found))])

    return first_words


def _cased(name: str, node: Node) -> Node:
    if name.isupper():
        return lambda t: node(t).upper()
    if name[0].isupper():
        return lambda t: (text := node(t))[:1].upper() + text[1:]
    return node
