"""Text in, text out."""

from __future__ import annotations

import pytest

from minigpt import GPT, GPTConfig, MinigptError, generate, stream_text
from minigpt.tokenizer import train_bpe
from minigpt.training.stories import stories


@pytest.fixture(scope="module")
def pair():
    """A random model and its tokenizer, whose tokens often end inside a character."""
    import torch

    tokenizer = train_bpe(stories(1, 20), 260)
    torch.manual_seed(0)
    config = GPTConfig(tokenizer.n_vocab, 64, 32, 1, 2, initializer_range=0.4)
    return GPT(config).eval(), tokenizer


def whole(pair, count=40, **settings):
    model, tokenizer = pair
    ids = tokenizer.encode("Once")
    return tokenizer.decode(generate(model, ids, count, **settings).tokens)


@pytest.mark.parametrize("seed", range(5))
def test_the_pieces_make_the_text(pair, seed):
    settings = {"temperature": 1.5, "seed": seed}
    pieces = list(stream_text(*pair, "Once", max_new_tokens=40, **settings))
    assert "".join(pieces) == whole(pair, **settings)
    assert len(pieces) > 5


@pytest.mark.parametrize("at", [1, 5, 12])
def test_it_ends_before_a_stop_string_that_spans_tokens(pair, at):
    text = whole(pair, temperature=1.0)
    stop = text[at : at + 3]
    pieces = stream_text(*pair, "Once", stop=[stop], max_new_tokens=40, temperature=1.0)
    assert "".join(pieces) == text.split(stop)[0]
    assert pieces.result.finish_reason == "stop_string"
    assert len(pieces.result.tokens) < 40


def test_a_stop_string_that_never_comes_changes_nothing(pair):
    text = whole(pair)
    pieces = stream_text(*pair, "Once", stop=[text[-2:] + "never"], max_new_tokens=40)
    assert "".join(pieces) == text
    assert pieces.result.finish_reason == "length"


def test_what_was_held_back_can_be_had_when_the_caller_stops(pair):
    text = whole(pair)
    pieces = stream_text(*pair, "Once", stop=[text + "never"], max_new_tokens=40)
    shown = next(pieces, "")  # all of it could still become the stop string
    assert shown + pieces.rest() == text


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"stop": [""]}, "a stop is '', needed a str of at least one character"),
        ({"temperature": -1}, "temperature is -1"),
        ({"tempreature": 1}, "'tempreature' is not a setting of generation"),
        ({"min_p": 3}, "min_p is 3"),
    ],
)
def test_bad_input_is_refused_in_the_call(pair, arguments, sentence):
    with pytest.raises(MinigptError, match=sentence):
        stream_text(*pair, "Once", **arguments)
