"""The task without answers to imitate: what a name is, and what it is worth."""

from __future__ import annotations

import random

import pytest

from minigpt.training.naming import any_name, is_name, suits


@pytest.mark.parametrize("text", ["", "kota", "kotalini", "okatil", "kotalx", "ktaoli"])
def test_a_name_is_three_syllables_of_a_consonant_and_a_vowel(text):
    assert is_name("kotali")
    assert not is_name(text)


def test_a_name_is_worth_the_part_of_the_letters_that_it_has():
    assert [suits(q, "kotali") for q in ("kot=", "ali=", "kon=", "mue=")] == [1, 1, 2 / 3, 0]


def test_what_is_no_name_is_worth_nothing_whatever_its_letters():
    assert suits("kot=", "kot") == suits("kot=", "kotaliko") == 0


def test_what_there_is_to_imitate_are_names_that_seldom_suit():
    rng = random.Random(0)
    worth = [suits(*any_name(rng)) for _ in range(1000)]
    assert min(worth) == 0  # it is a name all the same
    assert all(is_name(any_name(rng)[1]) for _ in range(100))
    assert sum(one == 1 for one in worth) < 100
