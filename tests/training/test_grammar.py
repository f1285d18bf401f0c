"""What the texts promise: always the same, in good English, without a word that is held out."""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter

import pytest

from minigpt.training import grammar as module
from minigpt.training.grammar import held_out, rule_texts, stories, story

SAMPLE = 2_000


@pytest.fixture(scope="module")
def sample() -> list[str]:
    """Stories alone, without the letters, lists and questions that are texts as well."""
    return [story(random.Random(f"sample {number}"), "story") for number in range(SAMPLE)]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return list(stories(seed=1, count=SAMPLE))


@pytest.fixture
def tell(monkeypatch):
    """tell("a = x | y", rule="a"): one text of a small grammar."""

    def one(grammar: str, rule: str = "text", seed: int = 0) -> str:
        rules = dict(re.findall(r"(\w+) = (.*)", grammar))
        monkeypatch.setattr(module, "rule_texts", lambda: rules)
        module._rules.cache_clear()
        return story(random.Random(seed), rule)

    held_out()  # of the real grammar, kept
    yield one
    monkeypatch.undo()
    module._rules.cache_clear()


def offenders(pattern: str, texts: list[str]) -> list[str]:
    """The places where `pattern` occurs, with a little context: [] is what a test wants."""
    found = [re.search(rf".{{0,30}}(?:{pattern}).{{0,30}}", text, re.DOTALL) for text in texts]
    return [match[0] for match in found if match]


class TestTheSameForEverybody:
    def test_the_first_hundred_never_change(self):
        text = "\n".join(stories(seed=0, count=100))
        assert hashlib.sha256(text.encode()).hexdigest() == (
            "f275897acddde71cf9b2432d40f0dfe5ea490d37abc3b293bd99b5de96d3be1b"
        )

    def test_a_text_is_a_function_of_seed_and_number(self):
        assert list(stories(3, 5)) == list(stories(3, 50))[:5]
        assert list(stories(3, 2, first=40)) == list(stories(3, 50))[40:42]

    def test_seeds_differ(self):
        assert not set(stories(1, 5)) & set(stories(2, 5))

    def test_nearly_all_are_different(self, texts):
        assert len(set(texts)) > 0.98 * SAMPLE  # counting to ten is the same each time


class TestTheNotation:
    def test_a_slot_keeps_what_was_drawn_and_a_rule_draws_anew(self, tell):
        grammar = "text = {pet} {pet} {pet} {pet} {pet} {pet} {pet} {pet}\npet = cat|dog|hen|cow"
        assert len(set(tell(grammar).split())) == 1
        assert len(set(tell(grammar.replace("{pet}", "<pet>")).split())) > 1

    def test_numbered_slots_of_one_rule_differ(self, tell):
        grammar = "text = {pet} {pet2} {pet3}\npet = cat|dog|hen"
        assert {tuple(sorted(tell(grammar, seed=n).split())) for n in range(9)} == {
            ("cat", "dog", "hen")
        }

    def test_a_number_before_a_choice_is_its_weight(self, tell):
        counts = Counter(tell("text = 9*cat|dog", seed=n) for n in range(400))
        assert 320 < counts["cat"] < 390

    def test_a_slot_that_is_set_writes_nothing_and_is_used(self, tell):
        assert tell("text = {pet:a <size> cat}It was {pet}.\nsize = big") == "It was a big cat."

    def test_choices_nest_and_may_be_empty(self, tell):
        found = {tell("text = a[ [b|c]| d|]", seed=n) for n in range(40)}
        assert found == {"a", "a b", "a c", "a d"}

    def test_capitals_follow_those_of_the_name(self, tell):
        assert tell("text = {pet} {Pet} {PET} ^{pet}\npet = cat") == "cat Cat CAT Cat"

    def test_a_percent_sign_cuts_after_some_word(self, tell):
        found = {tell("text = <line%>\nline = one two three", seed=n) for n in range(40)}
        assert found == {"one", "one two", "one two three"}

    def test_slashes_end_lines_and_paragraphs(self, tell):
        assert tell("text = a \\ b / c") == "a\nb\n\nc"

    def test_articles_and_plurals_are_made_to_fit(self, tell):
        assert tell("text = a apple, a unicorn, a ugly fox, two foxs") == (
            "an apple, a unicorn, an ugly fox, two foxes"
        )

    def test_every_rule_is_used(self):
        named = {
            name.lower()
            for text in rule_texts().values()
            for name in re.findall(r"[<{](\w+)", text)
        }
        asked = named | {name.rstrip("123456789") for name in named}
        unused = {rule for rule in rule_texts() if rule not in asked | {"document"}}
        assert all(rule.startswith("held_out_") for rule in unused)
        assert len(unused) == 4


class TestWhatIsHeldOut:
    def test_is_two_hundred_names_and_nouns(self):
        assert len(held_out()) >= 200

    def test_is_in_no_other_rule(self):
        rest = " ".join(text for rule, text in rule_texts().items() if not rule.startswith("held_"))
        assert held_out().isdisjoint(re.findall(r"[^\W\d_]+", rest.lower()))

    def test_is_in_no_text(self, texts):
        assert held_out().isdisjoint(re.findall(r"[^\W\d_]+", " ".join(texts).lower()))

    def test_is_not_written_when_a_made_up_word_happens_to_be_one(self, tell):
        word = sorted(held_out())[0]
        found = {tell(f"text = {word}|heron", seed=n) for n in range(30)}
        assert found == {"heron"}


class TestTheTexts:
    def test_open_in_many_ways(self, texts):
        counts = Counter(" ".join(text.split()[:3]) for text in texts)
        assert len(counts) > SAMPLE / 3
        assert max(counts.values()) < SAMPLE / 8

    @pytest.mark.parametrize("name", ["lost", "swap", "storm", "concert", "seed", "hiding"])
    def test_tell_every_plot(self, name, sample):
        plain = re.sub(r"\[[^]]*\]|<[^>]*>|\{[^}]*\}", "|", " ".join(rule_texts()[name].split()))
        said = max(re.split(r"[][|.,\"]", plain), key=len).strip()
        assert any(said in text for text in sample), said

    def test_have_no_trace_of_the_grammar(self, texts):
        assert not offenders(r"[\[\]{}|<>^]", [t for t in texts if "<" not in t])

    def test_have_single_spaces_and_paragraphs_one_empty_line_apart(self, texts):
        assert not offenders(r"  |\n\n\n| \n|\n |^\s|\s$", texts)

    def test_have_no_space_before_punctuation(self, sample):
        assert not offenders(r" [.,!?]|\.\.", sample)

    def test_close_every_quotation(self, sample):
        assert not [text for text in sample if text.count('"') % 2]

    def test_end_their_last_sentence(self, sample):
        assert not [text for text in sample if not re.search(r'[.!?]"?$', text)]

    def test_start_every_sentence_with_a_capital(self, sample):
        assert not offenders(r'\. "?[a-z]|\n"?[a-z]|^"?[a-z]', sample)

    def test_have_an_before_a_vowel_and_a_before_a_consonant(self, sample):
        assert not offenders(r"\b[Aa] [aeio]|\b[Aa]n (?!hour)[^aeiouAEIOU]", sample)

    def test_keep_a_windows_length(self, sample):
        assert max(len(text.split()) for text in sample) < 160
