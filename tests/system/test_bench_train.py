"""The measurement of a training step: what is compared is the same work."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from minigpt.bench.contest import Contest
from minigpt.bench.train_section import measure_train, plain_loop, step_times
from minigpt.tokenizer import byte_tokenizer
from minigpt.training.data import Corpus
from minigpt.training.recipes import preset
from minigpt.training.sources import Text, starting_model

TINY = replace(preset("laptop"), n_layer=1, n_head=2, n_embd=16, n_positions=8, batch_size=2)


def test_both_loops_take_as_many_steps():
    pytest.importorskip("transformers")
    times = step_times(TINY, 3)
    assert list(times) == ["minigpt", "plain loop over transformers"]
    assert [len(seconds) for seconds in times.values()] == [3, 3]


def test_our_loop_is_measured_alone_without_transformers(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    assert list(step_times(TINY, 2)) == ["minigpt"]


def test_the_section_has_the_ratio_of_both_beside_their_times(make_model, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "minigpt.bench.train_section.step_times", lambda *_: {"a": [2.0], "b": [4.0]}
    )
    rows = {r.name: r for r in measure_train(Contest(make_model(), tmp_path, quick=True)).rows}
    assert len(rows) == 2 * 2 * 3  # recipes, precisions; two times and their ratio
    assert rows["laptop, bfloat16: a"].samples == [2000.0]
    assert rows["laptop, bfloat16: of its time"].samples == [0.5]


def test_the_reference_has_our_number_of_parameters(monkeypatch):
    pytest.importorskip("transformers")
    counted = []

    def count(parameters, **_):
        counted.append(sum(p.numel() for p in parameters))

    monkeypatch.setattr(torch.optim, "AdamW", count)
    source = Text(Corpus(byte_tokenizer(), [], [], 1), 8, 1)
    plain_loop(TINY, source)
    assert counted == [sum(p.numel() for p in starting_model(TINY, source).parameters())]
