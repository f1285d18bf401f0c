"""Numbers with their nouns, and the nearest word to a mistyped one."""

from __future__ import annotations

from minigpt.support.wording import counted, meant


def test_one_is_singular():
    assert counted(1, "token") == "1 token"
    assert counted(0, "token") == "0 tokens"
    assert counted(2048, "token") == "2,048 tokens"
    assert counted(2, "guess", "guesses") == "2 guesses"


def test_a_mistyped_word_is_answered_with_the_nearest_known_one():
    assert meant("sede", ["seed", "stop"]) == ", did you mean 'seed'?"
    assert meant("zzz", ["seed", "stop"]) == ""
