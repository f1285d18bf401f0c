"""Text in, text out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigpt import GPT, GPTConfig, MinigptError, Tokenizer, generate, stream_text
from minigpt.generation.text import StreamDecoder
from minigpt.training.bpe import train_bpe
from minigpt.training.grammar import stories
from tests.helpers import SCRIPTS


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
        ({"min_p": 3}, "min_p is 3"),
    ],
)
def test_bad_input_is_refused_in_the_call(pair, arguments, sentence):
    with pytest.raises(MinigptError, match=sentence):
        stream_text(*pair, "Once", **arguments)


# --- text from tokens ---


@pytest.fixture(scope="module")
def toy() -> Tokenizer:
    return train_bpe(stories(seed=0, count=200), vocab_size=512)


@pytest.mark.parametrize("text", SCRIPTS)
def test_a_stream_is_the_text(toy, text):
    stream = StreamDecoder(toy)
    assert "".join(stream.push(token) for token in toy.encode(text)) + stream.flush() == text


def test_a_stream_never_splits_a_character(toy):
    stream = StreamDecoder(toy)
    pieces = [stream.push(token) for token in toy.encode("🙂é")]
    assert [piece for piece in pieces if piece] == ["🙂", "é"]
    assert len(pieces) > 2


@given(data=st.data())
def test_a_stream_of_any_tokens_is_what_decode_gives(toy, data):
    tokens = data.draw(st.lists(st.integers(0, toy.n_vocab - 1)))
    stream = StreamDecoder(toy)
    assert "".join(map(stream.push, tokens)) + stream.flush() == toy.decode(tokens)


@pytest.fixture(scope="module")
def bytewise() -> Tokenizer:
    """The finest vocabulary there is: every byte its own token, and its own id."""
    return Tokenizer({bytes([byte]): byte for byte in range(256)}, {})


@pytest.mark.parametrize(
    "text", ["👩‍👩‍👧‍👦 🏳️‍🌈 🇻🇳", "Tiếng Việt có dấu: ế ữ ộ", "빠른 갈색 여우", "한글"]
)
def test_byte_by_byte_each_character_comes_whole_with_its_last_byte(bytewise, text):
    stream = StreamDecoder(bytewise)
    pieces = [stream.push(byte) for byte in text.encode()]
    assert [piece for piece in pieces if piece] == list(text)
    assert [piece != "" for piece in pieces] == [
        last for c in text for last in [False] * (len(c.encode()) - 1) + [True]
    ]


@given(text=st.text())
def test_pieces_of_a_text_are_the_text_and_leave_nothing_for_the_end(toy, bytewise, text):
    for tokenizer in (toy, bytewise):
        stream = StreamDecoder(tokenizer)
        assert "".join(stream.push(token) for token in tokenizer.encode(text)) == text
        assert stream.flush() == ""


@given(content=st.binary())
def test_a_stream_of_any_bytes_is_what_decode_gives(bytewise, content):
    stream = StreamDecoder(bytewise)
    assert "".join(map(stream.push, content)) + stream.flush() == bytewise.decode(list(content))


def test_flush_gives_up_on_half_a_character(toy):
    stream = StreamDecoder(toy)
    stream.push(toy.encode("é")[0])
    assert stream.flush() == "\ufffd"


def test_after_flush_a_stream_starts_afresh(toy):
    stream = StreamDecoder(toy)
    stream.push(toy.encode("é")[0])
    stream.flush()
    assert stream.push(toy.encode("a")[0]) == "a"
