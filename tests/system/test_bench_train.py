"""The measurement of a training step: what is compared is the same work."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from minigpt.bench.contest import Contest
from minigpt.bench.plain_gpt import PlainGPT
from minigpt.bench.train_section import measure_train, nano_loop, plain_loop, step_times
from minigpt.tokenizer import byte_tokenizer
from minigpt.training.data import Corpus
from minigpt.training.recipes import preset
from minigpt.training.sources import Text, starting_model

TINY = replace(preset("laptop"), n_layer=1, n_head=2, n_embd=16, n_positions=8, batch_size=2)


def test_all_loops_take_as_many_steps():
    pytest.importorskip("transformers")
    times = step_times(TINY, 3)
    assert list(times) == ["minigpt", "nanoGPT's loop", "plain loop over transformers"]
    assert [len(seconds) for seconds in times.values()] == [3, 3, 3]


def test_transformers_need_not_be_there(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    assert list(step_times(TINY, 2)) == ["minigpt", "nanoGPT's loop"]


def test_the_section_has_the_ratio_of_both_beside_their_times(make_model, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "minigpt.bench.train_section.step_times", lambda *_: {"a": [2.0], "b": [4.0], "c": [8.0]}
    )
    rows = {r.name: r for r in measure_train(Contest(make_model(), tmp_path, quick=True)).rows}
    assert len(rows) == 2 * 2 * 5  # recipes, precisions; three times and two ratios
    assert rows["laptop, bfloat16: a"].samples == [2000.0]
    assert rows["laptop, bfloat16: of the time of b"].samples == [0.5]
    assert rows["laptop, bfloat16: of the time of c"].samples == [0.25]


def test_nanogpts_model_is_ours_without_biases():
    source = Text(Corpus(byte_tokenizer(), [], [], 1), 8, 1)
    ours, shape = starting_model(TINY, source), TINY.shape(257, None)
    biases = sum(p.numel() for name, p in ours.named_parameters() if name.endswith("bias"))
    theirs = PlainGPT(shape, bias=False)
    assert sum(p.numel() for p in theirs.parameters()) == (
        sum(p.numel() for p in ours.parameters()) - biases
    )


def test_nanogpts_loop_learns(monkeypatch):
    tokens = np.arange(500, dtype=np.uint16) % 7
    config = replace(TINY, batch_size=8, learning_rate=1e-2)
    losses = []
    forward = PlainGPT.forward

    def kept(self, *arguments):
        losses.append(forward(self, *arguments))
        return losses[-1]

    monkeypatch.setattr(PlainGPT, "forward", kept)
    step = nano_loop(config, Text(Corpus(byte_tokenizer(), tokens, tokens, 1), 8, 1))
    for _ in range(60):
        step()
    assert losses[-1] < 0.5 < losses[0]


def test_the_reference_has_our_number_of_parameters(monkeypatch):
    pytest.importorskip("transformers")
    counted = []

    def count(parameters, **_):
        counted.append(sum(p.numel() for p in parameters))

    monkeypatch.setattr(torch.optim, "AdamW", count)
    source = Text(Corpus(byte_tokenizer(), [], [], 1), 8, 1)
    plain_loop(TINY, source)
    assert counted == [sum(p.numel() for p in starting_model(TINY, source).parameters())]
