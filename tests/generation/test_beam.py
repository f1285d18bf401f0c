"""Beam search: transformers' beams, on every kind of cache."""

from __future__ import annotations

import itertools

import pytest
import torch

from minigpt import GPT, MinigptError, generate
from minigpt.cache.kinds import LOSSLESS
from minigpt.generation.beam import beam_search
from tests.helpers import random_gpt2


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """transformers' model with random weights, and ours with the same."""
    directory = tmp_path_factory.mktemp("gpt2")
    return random_gpt2(directory, n_layer=2, initializer_range=0.2), GPT.from_pretrained(directory)


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("beams", [1, 3, 5])
@pytest.mark.parametrize("ends", [False, True])
def test_beams_are_transformers(both, beams, length_penalty, ends):
    theirs, ours = both
    prompt = [1, 2, 3]
    stop = generate(ours, prompt, 9).tokens[4] if ends else None
    want = theirs.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, 3), max_new_tokens=12, do_sample=False,
        num_beams=beams, num_return_sequences=beams, length_penalty=length_penalty,
        early_stopping=False, eos_token_id=stop, pad_token_id=0, return_dict_in_generate=True,
        output_scores=True,
    )  # fmt: skip
    got = beam_search(
        ours, prompt, 12, beams, length_penalty, stop_tokens=() if stop is None else [stop]
    )
    texts = [row[3:].tolist() for row in want.sequences]
    texts = [list(itertools.takewhile(lambda t: t != stop, text)) for text in texts]
    assert [beam.tokens for beam in got] == texts
    if beams > 1:
        scores = torch.tensor([beam.score for beam in got])
        assert torch.allclose(scores, want.sequences_scores, atol=1e-4)  # float32 sums


def test_one_beam_is_greedy(exact):
    (beam,) = beam_search(exact, [1, 2, 3], 20, beams=1)
    assert beam.tokens == generate(exact, [1, 2, 3], 20).tokens


@torch.no_grad()
def test_its_log_probability_is_the_models(exact):
    best = beam_search(exact, [1, 2, 3], 8)[0]
    tokens = torch.tensor([[1, 2, 3, *best.tokens]])
    scores = exact(tokens).log_softmax(-1)[0, 2:-1].gather(1, tokens[0, 3:, None])
    assert float(scores.sum()) == pytest.approx(best.log_probability, abs=1e-4)


@torch.no_grad()
def test_a_wide_search_finds_the_likeliest_of_all(make_model):
    model = make_model("exact", vocab_size=6)
    best = beam_search(model, [1], 3, beams=6, length_penalty=0.0)[0]

    def likelihood(text):
        tokens = torch.tensor([[1, *text]])
        return float(model(tokens).log_softmax(-1)[0, :-1].gather(1, tokens[0, 1:, None]).sum())

    every = list(itertools.product(range(6), repeat=3))
    assert likelihood(best.tokens) >= sorted(map(likelihood, every))[-3]


@pytest.mark.parametrize("kind", LOSSLESS)
def test_every_kind_of_cache_gives_the_same_beams(exact, kind):
    want = beam_search(exact, [5, 6, 7], 15)
    assert beam_search(exact, [5, 6, 7], 15, kind=kind) == want


def test_beams_that_share_a_beginning_share_its_pages(exact, monkeypatch):
    pools, make = [], type(exact).new_cache

    def spy(self, *args, **settings):
        cache = make(self, *args, **settings)
        pools.append(cache.pool)
        return cache

    monkeypatch.setattr(type(exact), "new_cache", spy)
    beam_search(exact, list(range(112)), 8, beams=4)
    assert pools[0].nbytes < 2 * 120 * exact.cache_spec.bytes_per_token


def test_the_contexts_end_ends_it(exact):
    beams = beam_search(exact, [1] * 155, 50, beams=2)
    assert [(len(beam.tokens), beam.finish_reason) for beam in beams] == [(6, "context")] * 2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"beams": 0}, "beams is 0, needed a whole number from 1 to 211"),
        ({"beams": 300}, "beams is 300"),
        ({"length_penalty": "long"}, "length_penalty is 'long', needed a number"),
        ({"length_penalty": float("nan")}, "length_penalty is nan"),
        ({"max_new_tokens": -1}, "max_new_tokens is -1"),
    ],
)
def test_bad_input_is_one_sentence(exact, arguments, sentence):
    with pytest.raises(MinigptError, match=sentence):
        beam_search(exact, [1], **arguments)
