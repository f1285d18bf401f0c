"""The checker of stories: it accepts what the generator tells, and refuses what was changed."""

from __future__ import annotations

import random
import re

import pytest

from minigpt.training.grammar import story, words
from minigpt.training.story_check import find_changes

STORY = (
    "Once upon a time, there was a little fox named Mia. She lived near the harbour. One day, Mia "
    "could not find her red kite. She looked under a bench. It was not there. Soon, a tall bear "
    'called Tom came by. "I lost my kite," said Mia. Tom found the kite behind a rock. "Thank '
    'you!" said Mia. Mia and Tom danced at the harbour.'
)


@pytest.fixture(scope="module")
def told() -> list[str]:
    return [story(random.Random(f"told {number}"), "story") for number in range(1_000)]


def test_the_generators_own_stories_hold_together(told):
    refused = [text for text in told if find_changes(text)]
    assert len(refused) <= 5, refused


def test_a_story_of_a_person_holds_together():
    assert find_changes(STORY) == []


@pytest.mark.parametrize(
    ("was", "now", "complaint"),
    [
        ("Mia and Tom danced", "The badger and Tom danced", "the badger is a stranger"),
        ("Mia and Tom danced", "Mia the badger and Tom danced", "Mia the fox became a badger"),
        ("Tom found the kite", "Ben found the kite", "Ben is a stranger"),
        ("said Mia. Mia and", "said Mira. Mia and", "Mira is a stranger"),
        ('"I lost my kite,"', '"I lost my drum,"', "my drum was never mentioned, beside kite"),
        ("One day, Mia", "One day, he", "she is he elsewhere"),
        ("at the harbour.", "at the market.", "the harbour became the market"),
        ("found the kite", "found the blue kite", "the red kite became blue"),
        ("found the kite", "found the klorp", "klorp is no word"),
        ("a tall bear called Tom", "Tom", "Tom is a stranger"),
        ("a rock.", "a rock. A mouse and a cow and a goat came.", "are in it"),
        ("It was not there. ", "It was not there. " * 3, "said 3 times: It was not there."),
    ],
)
def test_what_changes_is_said(was, now, complaint):
    assert was in STORY
    assert any(complaint in said for said in find_changes(STORY.replace(was, now)))


def swapped(text: str, pattern: str, others: list[str], rng: random.Random) -> str | None:
    """With the last of what fits the pattern made another one, where it was known before."""
    found = list(re.finditer(pattern, text))
    if not found or not re.search(rf"\b{found[-1][1]}\b", text[: found[-1].start(1)]):
        return None
    last, new = found[-1], rng.choice([w for w in others if w.lower() not in text.lower()])
    return text[: last.start(1)] + new + text[last.end(1) :]


def mutants(told: list[str], pattern: str, rule: str) -> list[str]:
    rng, others = random.Random(pattern), list(words(rule))
    found = [swapped(text, pattern, others, rng) for text in told]
    return [text for text in found if text]


@pytest.mark.parametrize("what", ["animal", "thing", "area"])
def test_another_kind_or_object_or_place_at_the_end_is_seen(told, what):
    changed = mutants(told, rf"\bthe (?:[a-z]+ )?({'|'.join(words(what))})\b", what)
    assert len(changed) > 100
    assert sum(bool(find_changes(text)) for text in changed) / len(changed) > 0.95


def test_another_name_at_the_end_is_seen(told):
    names = [*words("girl"), *words("boy")]
    pattern = rf"\b({'|'.join(names)})\b"
    rng = random.Random(0)
    changed = [text for text in (swapped(t, pattern, names, rng) for t in told) if text]
    assert len(changed) > 200
    assert sum(bool(find_changes(text)) for text in changed) / len(changed) > 0.95


def test_he_for_she_is_seen(told):
    both = {"she": "he", "he": "she"}
    changed = []
    for text in told:
        spoken = re.sub(r'"[^"]*"', lambda m: "#" * len(m[0]), text)
        found = list(re.finditer(r"\b(she|he)\b", spoken))
        rest = set(re.findall(r"\b(she|he|her|his|him)\b", spoken.lower()))
        if len(found) > 1 and rest:
            last = found[-1]
            changed.append(text[: last.start()] + both[last[0]] + text[last.end() :])
    assert len(changed) > 100
    assert sum(bool(find_changes(text)) for text in changed) / len(changed) > 0.95


def test_what_a_person_typed_may_introduce_anybody():
    typed = "Mia the fox, Tom the bear and Ben the goat met a cow. Then"
    told = f"{typed} Mia went home."
    assert "is a stranger" not in " ".join(find_changes(told, typed))
