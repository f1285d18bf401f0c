"""Playing: turns over one cache, back and forth, and a program that survives its user."""

from __future__ import annotations

import io
import sys

import pytest
import torch

from minigpt import GPT, GPTConfig, MinigptError, generate
from minigpt.commands.cli import main
from minigpt.commands.session import Session
from minigpt.generation.sampling import Sampler
from minigpt.training.bpe import train_bpe
from minigpt.training.grammar import stories


@pytest.fixture(scope="module")
def pair():
    tokenizer = train_bpe(stories(1, 20), 300)
    torch.manual_seed(0)
    config = GPTConfig(tokenizer.n_vocab, 96, 32, 2, 2, initializer_range=0.3)
    return GPT(config).eval(), tokenizer


@pytest.fixture
def session(pair):
    return Session(*pair, max_new_tokens=8, temperature=0.9)


def play(session, *lines):
    return ["".join(session.turn(line)) for line in lines]


def test_a_turn_is_the_models_continuation_of_the_whole_text(pair, session):
    model, tokenizer = pair
    first, second = play(session, "Once", " there")
    ids = tokenizer.encode("Once")
    text = generate(model, ids, 8, temperature=0.9, seed=0).tokens
    assert first == tokenizer.decode(text)
    ids += text + tokenizer.encode(" there")
    text = generate(model, ids, 8, temperature=0.9, seed=1, use_cache=False).tokens
    assert second == tokenizer.decode(text)
    assert session.tokens == ids + text


def test_special_tokens_are_entered_only_where_they_are_allowed(pair):
    _, tokenizer = pair
    plain, special = (Session(*pair, special=allowed, max_new_tokens=0) for allowed in (0, 1))
    play(plain, "a<|endoftext|>b")
    play(special, "a<|endoftext|>b")
    assert tokenizer.eot_token not in plain.tokens
    assert special.tokens == tokenizer.encode("a<|endoftext|>b", allow_special=True)


def test_a_padded_model_writes_only_what_its_tokenizer_has_text_for(pair):
    torch.manual_seed(0)
    model = GPT(GPTConfig(400, 96, 32, 2, 2, initializer_range=0.3)).eval()
    with torch.no_grad():
        model.wte.weight[300:] *= 4  # the rows that pad it are what it likes best
    session = Session(model, pair[1], max_new_tokens=20, temperature=2.0)
    play(session, "Once", " there")
    assert max(session.tokens) < 300 and len(session.tokens) > 40
    assert max(generate(model, pair[1].encode("Once"), 20).tokens) >= 300


def test_only_new_tokens_are_computed(session):
    play(session, "Once upon a time", " there")
    held = len(session.tokens) - 1
    play(session, " was")
    new = len(session.tokenizer.encode(" was"))
    assert session.note.startswith(
        f"{new + 1} of {held + 1 + new} tokens of the text computed, {held} from the cache, 8 "
    )


def test_rewinding_takes_the_turn_back_and_the_same_turn_comes_again(session):
    play(session, "Once")
    text, cached = session.text, len(session.cache)
    (again,) = play(session, " there was")
    session.rewind()
    assert session.text == text
    assert len(session.cache) <= cached + 1
    assert play(session, " there was") == [again]


def test_branches_go_on_apart(session):
    play(session, "Once")
    session.branch("here")
    (one,) = play(session, " a fox")
    session.go("here")
    (other,) = play(session, " a bear")
    session.go("here")
    assert play(session, " a fox") == [one]
    assert one != other


def test_compare_finds_the_same_bits(session):
    play(session, "Once upon", " a")
    assert session.compare().endswith("logits equal: yes, bit for bit")


def test_compare_would_tell_a_difference(session):
    play(session, "Once upon", " a")
    session.cache.pool.data += 1e-3
    assert "logits equal: no, by up to" in session.compare()


def test_a_text_longer_than_the_context_goes_on_and_says_so(session):
    for _ in range(14):
        play(session, " and then")
    assert len(session.tokens) > 96
    assert session.note.endswith("the older part is out of the model's sight")


def test_stopping_a_turn_keeps_what_was_written(session):
    pieces = session.turn("Once")
    shown = next(pieces) + next(pieces)
    pieces.close()
    assert session.text == "Once" + shown
    play(session, "")
    assert session.text.startswith("Once" + shown)


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("/cache", "] KVCache(paged: "),
        ("/text", "Once"),
        ("/set", "temperature = 0.9"),
        ("/set temperature 0.5", "temperature = 0.5"),
        ("/set top_k none", "top_k = none"),
        ("/go", "no branches yet"),
        ("/help", "take back the last N turns"),
        ("/rewind", "0 tokens left"),
        ("/undo", "0 tokens left"),
        ("/branches", "no branches yet"),
        ("/compare", "logits equal: yes"),
    ],
)
def test_commands_say_what_they_did(session, line, shown):
    play(session, "Once")
    assert shown in session.command(line)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("/x", "'/x' is no command: /help lists them"),
        ("/", "'/' is no command"),
        ("/cache now", "'/cache now' was typed, needed /cache"),
        ("/branch", "'/branch' was typed, needed /branch NAME"),
        ("/comapre", "'/comapre' is no command, did you mean '/compare'"),
        ("/rewind 3", "cannot rewind 3 turns: there were 1"),
        ("/rewind x", "/rewind takes a number of turns, found 'x'"),
        ("/go there", "there is no branch 'there'"),
        ("/set heat 3", "there is no setting 'heat', needed one of temperature"),
        ("/set temperature hot", "temperature is 'hot', needed a float, or none"),
        ("/set temperature -1", "temperature is -1.0, needed 0"),
        ("/set draft magic", "draft is 'magic', needed"),
        ("/set max_new_tokens -1", "max_new_tokens is -1, needed"),
    ],
)
def test_a_mistake_is_one_sentence_and_changes_nothing(session, line, sentence):
    play(session, "Once")
    before = (list(session.tokens), dict(session.settings), len(session.cache))
    with pytest.raises(MinigptError, match=sentence):
        session.command(line)
    assert (session.tokens, session.settings, len(session.cache)) == before


class TestTheCommand:
    @pytest.fixture
    def run(self, pair, tmp_path, monkeypatch, capsys):
        for part in pair:
            part.save_pretrained(tmp_path)

        def call(*lines):
            monkeypatch.setattr(sys, "stdin", io.StringIO("".join(line + "\n" for line in lines)))
            arguments = ["--max-new-tokens", "5", "--temperature", "0"]
            code = main(["play", "--model", str(tmp_path), *arguments])
            return code, *capsys.readouterr()

        return call

    def test_plays_what_standard_input_says(self, run, pair):
        model, tokenizer = pair
        code, out, err = run("Once", "/nope", "/rewind")
        ids = tokenizer.encode("Once")
        text = tokenizer.decode(ids + generate(model, ids, 5).tokens)
        assert code == 0
        assert out == f"{text}\n0 tokens left\n"
        assert "tokens of the text computed" in err
        assert "minigpt: '/nope' is no command" in err

    def test_ctrl_c_stops_the_model_and_not_the_program(self, run, monkeypatch):
        choose, calls = Sampler.choose, iter(range(100))

        def interrupted(self, *arguments):
            if next(calls) == 2:
                raise KeyboardInterrupt
            return choose(self, *arguments)

        monkeypatch.setattr(Sampler, "choose", interrupted)
        code, out, err = run("Once", "/text")
        first, text = out.splitlines()
        assert code == 0
        assert " (stopped)" in err
        assert text == first != "Once"

    def test_quit_leaves(self, run):
        assert run("/quit", "Once")[:2] == (0, "")
