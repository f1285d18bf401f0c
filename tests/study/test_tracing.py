"""A trace holds the model's own numbers, and its page holds the trace, whatever the text."""

from __future__ import annotations

import base64
import json
import math
from dataclasses import replace

import pytest
import torch

import minigpt
from minigpt import GPT, MinigptError, Tokenizer
from minigpt.cache.lossy import WindowCache
from minigpt.commands.cli import main
from minigpt.generation.sampling import log_probabilities
from minigpt.numerics.recorder import recording
from minigpt.study import tracing as trace_module
from minigpt.study.attention import read_heads
from minigpt.study.bugs import patient
from minigpt.study.tracing import trace, write_html
from minigpt.tokenizer import byte_tokenizer
from tests.helpers import TOY

IDS = list(b"Hello")


@pytest.fixture
def tokenizer():
    return byte_tokenizer()


@pytest.fixture
def exact(make_model):
    return make_model(numerics="exact", vocab_size=257)


@pytest.fixture
def traced(exact, tokenizer):
    return trace(exact, tokenizer, "Hello", 6, rounds=1)


class TestTokens:
    @pytest.mark.parametrize("settings", [{}, {"temperature": 1.0, "seed": 5, "top_k": 9}])
    def test_are_those_of_generate(self, exact, tokenizer, settings):
        out = minigpt.generate(exact, IDS, 6, **settings)
        assert trace(exact, tokenizer, "Hello", 6, rounds=1, **settings).tokens == IDS + out.tokens

    def test_may_be_given_as_ids(self, exact, tokenizer, traced):
        assert trace(exact, tokenizer, IDS, 6, rounds=1).tokens == traced.tokens

    def test_end_with_the_end_of_text(self, exact, make_model, tokenizer):
        drawn = {"temperature": 1.0, "rounds": 1}
        whole = trace(exact, tokenizer, "Hello", 6, **drawn)
        model = make_model(numerics="exact", vocab_size=257, eos_token_id=whole.tokens[6])
        ended = trace(model, tokenizer, "Hello", 6, **drawn)
        assert ended.tokens == whole.tokens[:7]
        assert (len(ended.steps), ended.finish_reason) == (2, "end_of_text")

    def test_end_with_the_context(self, make_model, tokenizer):
        model = make_model(numerics="exact", vocab_size=257, n_positions=8)
        ended = trace(model, tokenizer, "Hello", 6, rounds=1)
        assert [step.length for step in ended.steps] == [5, 6, 7, 8]
        assert (ended.finish_reason, ended.capacity) == ("context", 8)

    def test_of_an_empty_prompt_start_from_the_end_of_text(self, make_model, tokenizer):
        model = make_model(numerics="exact", vocab_size=257, eos_token_id=256)
        assert trace(model, tokenizer, "", 1, rounds=1).tokens[0] == 256

    def test_have_their_text_also_where_characters_are_cut(self, exact, tokenizer):
        found = trace(exact, tokenizer, "a€", 1, rounds=1)
        assert found.pieces[:4] == ["a", "", "", "€"]
        assert [found.labels[token] for token in found.tokens[:4]] == [
            "a",
            r"\xe2",
            r"\x82",
            r"\xac",
        ]

    def test_beyond_the_tokenizer_are_shown_by_number(self, make_model, tokenizer):
        found = trace(make_model(vocab_size=260), tokenizer, [65, 258], 1, rounds=1)
        assert (found.labels[258], found.pieces[1]) == ("[258]", "[258]")


class TestSteps:
    def test_count_what_is_computed_and_read(self, traced):
        cached = [(step.cached.positions, step.cached.keys) for step in traced.steps[:3]]
        uncached = [(step.uncached.positions, step.uncached.keys) for step in traced.steps[:3]]
        assert cached == [(5, 15), (1, 6), (1, 7)]
        assert uncached == [(5, 15), (6, 21), (7, 28)]

    def test_count_the_multiplications_of_every_product(self, make_model):
        model = make_model(vocab_size=257, n_kv_head=1, n_inner=100)
        with recording(model) as log:
            model.next_logits(torch.tensor([IDS]))
        products = 0
        for call in log.values():
            if call.kind == "linear":
                products += call.output.numel() * call.arguments[1].shape[0]
            if call.kind == "attention":  # 15 keys are read, for scores and for the mix
                products += 2 * 15 * call.output.shape[1] * call.output.shape[3]
        assert model.config.multiplications(5, 15) == products

    def test_have_the_models_probabilities(self, exact, traced):
        for step in traced.steps:
            logits = exact(torch.tensor([traced.tokens[: step.length]]))[0, -1]
            assert step.chosen == log_probabilities(logits, traced.tokens[step.length], 10)

    def test_take_time_in_both_ways(self, traced):
        assert all(step.cached.seconds > 0 < step.uncached.seconds for step in traced.steps)

    def test_are_equal_under_exact_numerics(self, traced):
        assert [(step.equal, step.max_difference) for step in traced.steps] == [(True, 0.0)] * 6

    def test_may_differ_under_fast_numerics(self, make_model, tokenizer, row_counts_matter):
        found = trace(make_model(vocab_size=257), tokenizer, "Hello", 3, rounds=1)
        assert [step.equal for step in found.steps] == [True, False, False]  # the prefill is one
        assert found.steps[1].max_difference > 0
        assert found.numerics == "fast"


class TestAttention:
    def test_is_what_each_head_reads(self, make_model, tokenizer):
        model = make_model(numerics="exact", vocab_size=257, n_kv_head=1)
        found = trace(model, tokenizer, "Hello", 4, rounds=1)
        assert found.attention.shape == (2, 3, 8, 8)
        for layer, heads in enumerate(read_heads(model, found.tokens[:-1])):
            # Added up in float64 there: float32 rounds at about 1e-7.
            assert torch.allclose(found.attention[layer], heads.weights, atol=1e-6)

    def test_adds_up_to_one_and_sees_nothing_later(self, traced):
        assert torch.allclose(traced.attention.sum(-1), torch.ones(2, 3, 10))
        assert torch.equal(traced.attention, traced.attention.tril())

    def test_is_written_in_thousandths_up_to_the_query(self, traced):
        rows = traced.to_dict()["attention"][1][2]
        assert [len(row) for row in rows] == list(range(1, 11))
        want = (1000 * traced.attention[1, 2, 9]).round().tolist()
        assert rows[9] == want


def test_the_cache_is_described_as_it_was(exact, traced):
    assert traced.capacity == 10  # the last token's keys are never needed
    assert traced.bytes_per_token == exact.cache_spec.bytes_per_token
    assert traced.cache_bytes == exact.new_cache(max_length=10).nbytes


def test_a_model_in_training_is_so_afterwards(exact, tokenizer):
    exact.train()
    assert trace(exact, tokenizer, "Hello", 1, rounds=1).steps[0].equal
    assert exact.training


class TestRefusals:
    @pytest.mark.parametrize(
        ("prompt", "settings", "sentence"),
        [
            ("Hello", {"max_new_tokens": 0}, "max_new_tokens is 0, needed a whole number"),
            ("Hello", {"rounds": 0}, "rounds is 0, needed a whole number"),
            ("x" * 161, {}, "161 tokens, but this model's context is 160"),
            ("", {}, "the prompt is empty"),
            ("\ud800", {}, "lone surrogate"),
        ],
    )
    def test_are_a_sentence(self, exact, tokenizer, prompt, settings, sentence):
        with pytest.raises(MinigptError, match=sentence):
            trace(exact, tokenizer, prompt, **settings)

    def test_of_a_cache_that_forgets_name_the_first_token_that_is_missing(self, exact, tokenizer):
        class Window(WindowCache):
            def __init__(self, spec, batch_size, capacity, **_):
                super().__init__(spec, batch_size, capacity, window=6, sinks=2)

        kept = "after 9 tokens this one holds 8: trace fewer tokens"
        with pytest.raises(MinigptError, match=kept):
            trace(patient(exact, Window), tokenizer, "Hello", 9)
        assert len(trace(patient(exact, Window), tokenizer, "Hello", 4, rounds=1).steps) == 4

    def test_of_a_large_page_say_what_fits(self, exact, tokenizer, monkeypatch):
        monkeypatch.setattr(trace_module, "LARGEST_PAGE", 3 * 6 * 8 * 9 // 2)  # of 8 tokens
        assert len(trace(exact, tokenizer, "Hello", 4, rounds=1).steps) == 4
        with pytest.raises(MinigptError, match="9 tokens makes a page .*lower max_new_tokens to 4"):
            trace(exact, tokenizer, "Hello", 5)
        with pytest.raises(MinigptError, match="8 tokens: shorten the prompt of 9 tokens"):
            trace(exact, tokenizer, "Hellooooo", 1)


class TestInside:
    def test_keys_and_values_are_the_caches(self, exact, tokenizer, traced):
        cache = exact.new_cache()
        exact(torch.tensor([traced.tokens[:-1]]), cache=cache)
        for layer in range(2):
            keys, values = cache.layer(layer)  # (1, G, S, D)
            assert torch.equal(traced.inside.keys[layer], keys[0])
            assert torch.equal(traced.inside.values[layer], values[0])

    def test_keys_are_written_as_halves(self, traced):
        raw = bytearray(base64.b64decode(traced.to_dict()["inside"]["keys"]))
        numbers = torch.frombuffer(raw, dtype=torch.float16)
        assert torch.equal(numbers, traced.inside.keys.half().flatten())

    def test_keys_are_left_out_of_a_page_that_would_be_too_large(
        self, exact, tokenizer, monkeypatch
    ):
        room = 2 * 2 * 3 * 10 * 16 * 8 // 3 * 2  # keys and values of 10 positions are half of it
        monkeypatch.setattr(trace_module, "LARGEST_PAGE", room)
        assert trace(exact, tokenizer, "Hello", 6, rounds=1).inside.keys is not None
        inside = trace(exact, tokenizer, "Hello", 7, rounds=1).inside.to_dict()
        assert (inside["keys"], inside["values"]) == (None, None)

    def test_the_last_layer_says_what_the_model_says(self, traced):
        assert len(traced.inside.lens) == 3  # the embedding, and after each layer
        for step in traced.steps:
            said = traced.inside.lens[2][step.length - 1]
            assert [token for token, _ in said] == [token for token, _ in step.chosen.top[:3]]
            for (_, p), (_, log) in zip(said, step.chosen.top, strict=False):
                assert p == pytest.approx(math.exp(log), rel=1e-5)  # float32

    def test_the_embedding_says_what_the_head_reads_there(self, exact, traced):
        tokens = torch.tensor(traced.tokens[:-1])
        stream = exact.wte(tokens) + exact.wpe(torch.arange(len(tokens)))
        want = exact.lm_head(exact.ln_f(stream[None]))[0].argmax(-1).tolist()
        assert [said[0][0] for said in traced.inside.lens[0]] == want

    def test_norms_are_those_of_what_is_added(self, exact, traced):
        tokens = torch.tensor([traced.tokens[:-1]])
        added = []
        hooks = [
            part.register_forward_hook(lambda _, __, output: added.append(output[0].norm(dim=-1)))
            for part in (exact.h[1].attn, exact.h[1].mlp, exact.h[1])
        ]
        exact(tokens)
        for hook in hooks:
            hook.remove()
        assert torch.allclose(traced.inside.norms[1], torch.stack(added, -1), atol=1e-5)


class TestThePage:
    @pytest.fixture
    def content(self, tmp_path):
        """content(trace): what the JSON in its page says."""

        def read(found):
            write_html(found, tmp_path / "trace.html")
            page = (tmp_path / "trace.html").read_text(encoding="utf-8")
            return json.loads(page.split('id="content">')[1].split("</script>")[0])

        return read

    def test_holds_the_trace(self, traced, content):
        assert content(traced) == json.loads(json.dumps(traced.to_dict()))

    def test_holds_any_text(self, traced, content):
        text = "</script><script>alert(1)"
        found = content(replace(traced, pieces=[text] * 11, labels={72: text}))
        assert found["pieces"] == [text] * 11
        assert found["labels"] == {"72": text}

    def test_of_sixty_tokens_is_small(self, tmp_path):
        model, tokenizer = GPT.from_pretrained(TOY), Tokenizer.from_pretrained(TOY)
        write_html(trace(model, tokenizer, "Once upon a time", 57, rounds=1), tmp_path / "t.html")
        assert (tmp_path / "t.html").stat().st_size < 10**6


class TestTheCommand:
    @pytest.fixture
    def run(self, capsys, tmp_path):
        def call(*arguments):
            code = main(["trace", "--model", str(TOY), "--max-new-tokens", "3", *arguments])
            return code, *capsys.readouterr()

        return call

    def test_writes_the_page_and_says_what_it_measured(self, run, tmp_path):
        path = tmp_path / "fox.html"
        code, out, err = run("--prompt", "The fox", "--out", str(path))
        assert (code, out) == (0, f"{path}\n")
        assert "3 steps" in err
        assert "logits equal at 3 of 3" in err
        assert "The prompt" in path.read_text(encoding="utf-8")

    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            (["--prompt", "The fox", "--out", "/nowhere/t.html"], "choose a file in a directory"),
            (["--prompt", "word " * 300], "but this model's context is 256: shorten it"),
            (["--prompt", "a\udcff"], "lone surrogate"),
            (["--prompt", "The fox", "--temperature", "-1"], "temperature is -1.0"),
        ],
    )
    def test_refuses_in_a_sentence(self, run, tmp_path, monkeypatch, arguments, sentence):
        monkeypatch.chdir(tmp_path)
        code, out, err = run(*arguments)
        assert (code, out) == (2, "")
        assert sentence in err
        assert err.count("\n") == 1
        assert list(tmp_path.iterdir()) == []
