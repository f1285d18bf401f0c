"""The pair of attention layers, with the cache and without, as `minigpt bench` measures it."""

from __future__ import annotations

import pytest
import torch

from minigpt.bench.attention_section import first_gain, measure_attention, sum_steps, time_steps
from minigpt.bench.contest import Contest


def test_a_text_takes_the_sum_of_its_steps():
    # step n takes n seconds, timed at some lengths only: n steps take n (n + 1) / 2
    assert sum_steps({n: [float(n)] for n in (1, 4, 10)}) == {1: [1.0], 4: [10.0], 10: [55.0]}


def test_the_gain_begins_where_all_longer_texts_gain():
    sums = {
        "with": {n: [1.0] for n in (1, 10, 50, 100)},
        "without": {1: [2.0], 10: [1.0], 50: [1.2], 100: [5.0]},
    }
    assert first_gain(sums) == 50
    sums["without"][100] = [1.0]
    assert first_gain(sums) is None


def test_steps_are_timed_at_each_length_and_in_each_round():
    steps = time_steps((1, 5, 9), rounds=2, heads=2, width=4, dtype=torch.bfloat16)
    assert {name: sorted(by_length) for name, by_length in steps.items()} == {
        "with": [1, 5, 9], "without": [1, 5, 9],
    }  # fmt: skip
    assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in steps["with"].values())


def test_the_section_has_a_row_with_and_without_for_each_length(model, tmp_path, monkeypatch):
    steps = {"with": {1: [1.0], 10: [1.0]}, "without": {1: [1.0], 10: [10.0]}}
    monkeypatch.setattr("minigpt.bench.attention_section.time_steps", lambda *_: steps)
    monkeypatch.setattr("minigpt.bench.attention_section.LENGTHS", (1, 10))
    section = measure_attention(Contest(model, tmp_path, rounds=3))
    assert [row.name for row in section.rows] == [
        "1 token with the cache", "1 token without",
        "10 tokens with the cache", "10 tokens without",
    ]  # fmt: skip
    assert section.rows[2].extra["speed-up"] == pytest.approx(5.5)
    assert section.rows[2].extra["cache bytes"] == 2 * 10 * 32 * 128 * 4
    assert "from 10 tokens on" in section.notes[0]
