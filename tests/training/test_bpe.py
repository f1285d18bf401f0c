"""Learning byte pairs: GPT-2's order of ids, the same from the same texts, and plain refusals."""

from __future__ import annotations

import random
import sys

import pytest

from minigpt import MinigptError, Tokenizer
from minigpt.training.bpe import LONGEST, train_bpe
from minigpt.training.grammar import stories


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return list(stories(seed=0, count=200))


@pytest.fixture(scope="module")
def toy(texts) -> Tokenizer:
    return train_bpe(texts, vocab_size=512)


def test_training_gives_the_size_asked_for(toy):
    assert toy.n_vocab == 512


def test_training_is_deterministic(toy, texts):
    again = train_bpe(iter(texts), vocab_size=512)
    assert [again.decode_bytes([i]) for i in range(512)] == [
        toy.decode_bytes([i]) for i in range(512)
    ]


def test_bytes_come_first_and_special_tokens_last(toy):
    assert all(len(toy.decode_bytes([i])) == 1 for i in range(256))
    assert toy.eot_token == 511


def test_training_makes_text_shorter(toy, texts):
    assert sum(len(toy.encode(text)) for text in texts) < sum(map(len, texts)) / 2


def test_no_token_reaches_across_words(toy):
    inner_spaces = [toy.decode_bytes([i]).lstrip().count(b" ") for i in range(512)]
    assert max(inner_spaces) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("one text", 300), "texts is one str"),
        ((["a"], 256), "needed a whole number from 257 to"),
        ((["a"], 300, ("a",)), "cannot be a special token"),
        ((["a"], 300, ("",)), "cannot be a special token"),
        ((["a", "b\udfff"], 300), "position 1"),
        (([b"a"], 300), "needed a str"),
    ],
)
def test_training_refuses_what_it_cannot_use(arguments, message):
    with pytest.raises(MinigptError, match=message):
        train_bpe(*arguments)


def test_without_the_library_training_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MinigptError, match=r"minigpt\[train\]"):
        train_bpe(["a"], 300)


def test_a_text_without_a_white_space_is_learned_in_pieces():
    rng = random.Random(0)
    text = "".join(rng.choices("ACGT", k=200_000))  # in one piece it takes minutes
    learned = train_bpe([text], 600)
    assert learned.n_vocab == 600
    ids = learned.encode(text[:20_000])
    assert learned.decode(ids) == text[:20_000]
    assert len(ids) < 20_000 / 3.5


@pytest.mark.parametrize(("length", "whole"), [(LONGEST, True), (LONGEST + 1, False)])
def test_only_words_longer_than_the_limit_are_cut(length, whole):
    learned = train_bpe(["a" * length + " "] * 9, 256 + length + 1)
    longest = max(len(learned.decode_bytes([i])) for i in range(learned.n_vocab - 1))
    assert longest == LONGEST
    assert (len(learned.encode("a" * length)) == 1) == whole
