"""What the stories promise: always the same ones, never the same twice, and good English."""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter

import pytest

from minigpt.training.stories import ANIMALS, LEXICON, NAMES, PLOTS, stories, story

SAMPLE = 3000
ALL_NAMES = {name for names in NAMES.values() for name in names.split("|")}


@pytest.fixture(scope="module")
def sample() -> list[str]:
    return list(stories(seed=1, count=SAMPLE))


def offenders(pattern: str, texts: list[str]) -> list[str]:
    """The places where `pattern` occurs, with a little context: [] is what a test wants."""
    found = [re.search(rf".{{0,30}}(?:{pattern}).{{0,30}}", text, re.DOTALL) for text in texts]
    return [match[0] for match in found if match]


def hero_of(text: str) -> str:
    """The name or, for a hero without one, the animal in the opening."""
    named = re.search(r"\b(?:named|called) ([A-Z]\w+)", text.split("\n")[0])
    first = text.split()[0]
    if first in ALL_NAMES:
        return first
    if named and named.start() < 120:
        return named[1]
    return next(w for w in re.findall(r"\w+", text) if w in ANIMALS)


# --- the same stories for everybody ---


def test_the_first_hundred_stories_never_change():
    text = "\n".join(stories(seed=0, count=100))
    assert (
        hashlib.sha256(text.encode()).hexdigest()
        == "767fa5a41c8c9e9b50c071e1ed67c0057e94b31557a198019f4b0b237929b1d8"
    )


def test_a_seed_gives_its_stories_in_one_order_however_many_are_asked_for():
    assert list(stories(seed=3, count=5)) == list(stories(seed=3, count=50))[:5]


def test_seeds_differ():
    assert list(stories(seed=1, count=5)) != list(stories(seed=2, count=5))


def test_stories_are_those_of_one_generator():
    rng = random.Random(4)
    assert list(stories(seed=4, count=3)) == [story(rng) for _ in range(3)]


# --- many of them ---


@pytest.mark.slow
def test_twenty_thousand_stories_are_all_different():
    assert len(set(stories(seed=2, count=20_000))) == 20_000


def test_every_plot_is_told(sample):
    assert len(PLOTS) >= 12
    for _, plot in PLOTS:
        words = max(re.split(r"[][{}|/]", " ".join(plot.split())), key=len).strip()
        assert any(words in text.replace("\n\n", " ") for text in sample), words


def test_openings_vary(sample):
    counts = Counter(" ".join(text.split()[:3]) for text in sample)
    assert len(counts) > 200
    assert max(counts.values()) < SAMPLE / 4


@pytest.mark.parametrize("opening", ["Once upon a time", "The little fox", "One sunny morning"])
def test_what_people_type_first_is_an_opening(opening):
    assert any(text.startswith(opening) for text in stories(seed=5, count=SAMPLE))


def test_a_story_has_90_to_160_words(sample):
    assert not [text for text in sample if not 90 <= len(text.split()) <= 160]


# --- in good English ---


def test_the_grammar_leaves_no_trace(sample):
    assert not offenders(r"[\[\]{}|/_]", sample)


def test_stories_are_plain_ascii(sample):
    assert all(text.isascii() for text in sample)


def test_spaces_are_single_and_paragraphs_are_one_empty_line_apart(sample):
    assert not offenders(r"  |\n\n\n|(?<!\n)\n(?!\n)| \n|\n |^\s|\s$", sample)


def test_no_space_stands_before_punctuation(sample):
    assert not offenders(r" [.,!?]", sample)


def test_every_quotation_is_closed_in_its_paragraph(sample):
    paragraphs = [paragraph for text in sample for paragraph in text.split("\n\n")]
    assert not [p for p in paragraphs if p.count('"') % 2]


def test_quotations_have_no_space_inside_the_marks(sample):
    spoken = [quote for text in sample for quote in re.findall(r'"([^"]*)"', text)]
    assert not [quote for quote in spoken if quote != quote.strip() or not quote]


def test_a_quotation_starts_with_a_capital_unless_it_goes_on(sample):
    starts = [m for text in sample for m in re.finditer(r'(.{8}|^)"([^"])[^"]*"', text)]
    goes_on = [m for m in starts if m[2].islower()]
    assert all(m[1].endswith(", ") for m in goes_on)


def test_a_quotation_ends_with_punctuation(sample):
    assert not offenders(r'[a-z]" ', sample)


def test_every_paragraph_ends_its_last_sentence(sample):
    assert not [t for t in sample for p in t.split("\n\n") if not re.search(r'[.!?]"?$', p)]


def test_every_sentence_starts_with_a_capital(sample):
    # After ?" and !" the sentence may go on: "Who is there?" he asked.
    assert not offenders(r'\. "?[a-z]|\." [a-z]|[?!] "?[a-z]|^"?[a-z]|\n"?[a-z]', sample)


def test_an_stands_before_a_vowel_and_a_before_a_consonant(sample):
    assert not offenders(r"\b[Aa] [aeiouAEIOU]|\b[Aa]n [^aeiouAEIOU]", sample)


def test_no_word_is_said_twice_in_a_row(sample):
    said = r"\b(?!grew\b|looked\b)(\w+) \1\b"
    assert not offenders(said, sample)


# --- that hold together ---


def test_whoever_opens_a_story_ends_it(sample):
    def last_two_sentences(text: str) -> str:
        return " ".join(re.split(r'(?<=[.!?])"? ', text.replace("\n\n", " "))[-2:])

    assert not [text for text in sample if hero_of(text) not in last_two_sentences(text)]


def test_at_most_two_characters_have_names(sample):
    assert max(len(ALL_NAMES & set(re.findall(r"\w+", text))) for text in sample) == 2


def test_a_nameless_hero_has_a_friend_with_a_name(sample):
    nameless = [t for t in sample if re.match(r"The (?:little|small|young) \w+ (?!looked)", t)]
    assert nameless
    assert max(len(ALL_NAMES & set(re.findall(r"\w+", text))) for text in nameless) == 1


def test_the_two_named_characters_differ_in_pronoun(sample):
    kind = {name: she for she, names in NAMES.items() for name in names.split("|")}
    pairs = [ALL_NAMES & set(re.findall(r"\w+", text)) for text in sample]
    assert all(len({kind[name] for name in pair}) == 2 for pair in pairs if len(pair) == 2)


def test_what_is_lost_is_what_is_found(sample):
    lost = [(t, m[1]) for t in sample if (m := re.search(r"not find \w+ (?:\w+) ([\w ]+)\.", t))]
    assert len(lost) > SAMPLE / 40
    assert all(f"The {thing} was" in text for text, thing in lost)


def test_a_lost_thing_is_found_where_nobody_had_looked(sample):
    spots = LEXICON["spot"].split("|")
    for text in (text for text in sample if "could not find" in text):
        places = re.findall("|".join(spots), text)
        assert len(set(places)) == len(places) == 3
