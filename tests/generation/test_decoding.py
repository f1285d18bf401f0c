"""Generation: transformers' greedy text, the same text with and without the cache, and the edges
of the context."""

from __future__ import annotations

import pytest
import torch

from minigpt import GPT, Generation, MinigptError, generate, stream
from tests.helpers import ending_in, random_gpt2

SAMPLING = {"temperature": 0.8, "top_k": 60, "top_p": 0.9}


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """transformers' model with random weights, and the directory it wrote them to."""
    directory = tmp_path_factory.mktemp("gpt2")
    return random_gpt2(directory, n_layer=3, initializer_range=0.3), directory


@pytest.mark.parametrize("numerics", ["exact", "fast"])
@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("prompt", [[1, 2, 3], [96], list(range(40))])
def test_greedy_tokens_are_transformers(both, prompt, use_cache, numerics):
    theirs, directory = both
    given = torch.tensor([prompt])
    settings = {"max_new_tokens": 80, "do_sample": False, "pad_token_id": 0}
    want = theirs.generate(given, attention_mask=torch.ones_like(given), **settings)[0].tolist()
    ours = GPT.from_pretrained(directory, numerics=numerics)
    assert prompt + generate(ours, prompt, 80, use_cache=use_cache).tokens == want
    assert len(set(want[len(prompt) :])) > 3  # not one token again and again


class TestWithAndWithoutTheCache:
    """Exact numerics: the same ids and the same bits of every logit, for hundreds of tokens."""

    def equal(self, model, logits_seen, prompt, count, **settings):
        cached = generate(model, prompt, count, **settings).tokens
        with_cache = torch.stack(logits_seen)
        logits_seen.clear()
        uncached = generate(model, prompt, count, use_cache=False, **settings).tokens
        assert cached == uncached
        assert len(cached) == count
        assert len(set(cached)) > 3  # not one token again and again
        assert torch.equal(with_cache, torch.stack(logits_seen))

    def test_greedy(self, make_model, logits_seen):
        model = make_model(numerics="exact", n_positions=512)
        self.equal(model, logits_seen, [10], 400)

    @pytest.mark.parametrize("seed", [0, 1, 2])
    def test_sampled(self, make_model, logits_seen, seed):
        model = make_model(numerics="exact", n_positions=512)
        self.equal(model, logits_seen, [3, 1, 4], 320, seed=seed, **SAMPLING)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_sampled_in_half_precision_with_one_key_head(self, make_model, logits_seen, dtype):
        model = make_model(numerics="exact", n_positions=320, dtype=dtype, n_kv_head=1)
        self.equal(model, logits_seen, [3, 1, 4], 300, seed=4, **SAMPLING)

    @pytest.mark.parametrize("settings", [{}, {"seed": 5, **SAMPLING}])
    def test_beyond_the_context_under_reprefill(self, make_model, logits_seen, settings):
        model = make_model(numerics="exact", n_positions=64)
        self.equal(model, logits_seen, [3, 1, 4], 150, policy="reprefill", **settings)


def test_the_same_seed_gives_the_same_text_and_another_one_another(exact):
    texts = [generate(exact, [5], 40, seed=seed, **SAMPLING).tokens for seed in (1, 1, 2)]
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]


def test_stream_yields_what_generate_returns(exact):
    want = generate(exact, [5, 6], 30, seed=3, **SAMPLING).tokens
    assert list(stream(exact, [5, 6], 30, seed=3, **SAMPLING)) == want


def test_every_token_is_reported_as_it_comes(exact):
    seen = []
    result = generate(exact, [5], 12, on_token=seen.append)
    assert seen == result.tokens


def test_the_prompt_is_left_as_it_was(exact):
    prompt = [5, 6]
    result = generate(exact, prompt, 9)
    assert prompt == [5, 6]
    assert result.prompt == [5, 6]


class TestTheEnd:
    def test_of_the_length_asked_for(self, exact):
        result = generate(exact, [1], 7)
        assert (len(result.tokens), result.finish_reason) == (7, "length")

    @pytest.mark.parametrize("use_cache", [True, False])
    def test_of_the_text_is_before_the_end_of_text_token(self, exact, use_cache):
        free = generate(exact, [1], 30).tokens
        end = free[12]
        result = generate(ending_in(exact, end), [1], 30, use_cache=use_cache)
        assert result.tokens == free[: free.index(end)]
        assert result.finish_reason == "end_of_text"

    def test_can_be_any_token_named(self, exact):
        free = generate(exact, [1], 30).tokens
        result = generate(exact, [1], 30, stop_tokens=[free[9], free[12]])
        assert result.tokens == free[: min(free.index(free[9]), free.index(free[12]))]

    def test_can_be_ignored(self, exact):
        free = generate(exact, [1], 30).tokens
        assert generate(ending_in(exact, free[12]), [1], 30, stop_tokens=[]).tokens == free

    @pytest.mark.parametrize("use_cache", [True, False])
    def test_of_the_context_stops_after_the_last_position_has_spoken(self, exact, use_cache):
        result = generate(exact, list(range(150)), 100, use_cache=use_cache)
        assert len(result.tokens) == 160 - 150 + 1
        assert result.finish_reason == "context"

    def test_of_length_and_context_together_is_of_the_length(self, exact):
        assert generate(exact, list(range(150)), 11).finish_reason == "length"

    @pytest.mark.parametrize("use_cache", [True, False])
    def test_of_the_context_is_no_end_under_reprefill(self, exact, use_cache):
        result = generate(
            exact, list(range(150)), 200, use_cache=use_cache, policy="reprefill", **SAMPLING
        )
        assert (len(result.tokens), result.finish_reason) == (200, "length")

    def test_reprefill_goes_on_from_the_newer_half_of_what_it_saw(self, exact):
        prompt = list(range(150))
        text = prompt + generate(exact, prompt, 12, policy="reprefill").tokens
        assert text[161] == generate(exact, text[161 - 80 : 161], 1).tokens[0]

    def test_reprefill_works_in_a_context_of_one_position(self, make_model):
        model = make_model(n_positions=1)
        assert len(generate(model, [1], 5, policy="reprefill").tokens) == 5

    @pytest.mark.parametrize("use_cache", [True, False])
    def test_no_tokens_asked_for_are_no_tokens(self, exact, use_cache):
        result = generate(exact, [1, 2], 0, use_cache=use_cache)
        assert (result.tokens, result.finish_reason) == ([], "length")
        assert result.tokens_per_second == 0


def test_an_empty_prompt_starts_from_the_end_of_text_token(exact):
    model = ending_in(exact, 7)
    result = generate(model, [], 10)
    assert result.tokens == generate(model, [7], 10).tokens
    assert result.prompt == []


def test_the_timings_and_bytes_are_of_this_run(exact):
    cached, uncached = (generate(exact, [1], 10, use_cache=use) for use in (True, False))
    assert cached.prefill_seconds > 0
    assert cached.tokens_per_second == pytest.approx(9 / cached.decode_seconds)
    assert cached.cache_bytes == exact.new_cache(max_length=64).nbytes  # whole key blocks
    assert uncached.cache_bytes == 0


def test_one_token_has_no_decoding_speed():
    assert Generation([1], [2], prefill_seconds=1.0).tokens_per_second == 0


class TestTheModelAfterwards:
    def modes(self, model):
        return {name: module.training for name, module in model.named_modules()}

    @pytest.fixture
    def training(self, make_model):
        """In training mode, but for one layer."""
        model = make_model().train()
        model.h[1].eval()
        return model

    def test_is_in_the_mode_it_was_in(self, training):
        before = self.modes(training)
        generate(training, [1], 5)
        assert self.modes(training) == before

    @pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
    def test_is_so_when_the_listener_raises(self, training, error):
        def fail(token):
            raise error

        before = self.modes(training)
        with pytest.raises(error):
            generate(training, [1], 5, on_token=fail)
        assert self.modes(training) == before
        assert not torch.is_inference_mode_enabled()

    def test_is_so_when_the_model_raises(self, training):
        def fail(*_):
            raise KeyboardInterrupt

        before = self.modes(training)
        training.h[1].register_forward_hook(fail)
        with pytest.raises(KeyboardInterrupt):
            generate(training, [1], 5)
        assert self.modes(training) == before

    def test_is_so_between_two_tokens_of_a_stream(self, training):
        before = self.modes(training)
        tokens = stream(training, [1], 5)
        for _ in range(2):
            next(tokens)
            assert self.modes(training) == before
            assert not torch.is_inference_mode_enabled()
            assert torch.is_grad_enabled()

    def test_was_evaluated_without_dropout(self, make_model):
        model = make_model(resid_pdrop=0.5, embd_pdrop=0.5)
        want = generate(model, [1], 20).tokens
        assert generate(model.train(), [1], 20).tokens == want

    def test_can_be_trained_while_it_streams(self, make_model, text):
        model = make_model().train()
        for _ in stream(model, [1], 3):
            model(text(1, 8)).sum().backward()
        assert model.wte.weight.grad.abs().sum() > 0


REFUSED = [
    ({"ids": [1, 211]}, "the prompt holds 211, needed whole numbers from 0 to 210"),
    ({"ids": [-1]}, "the prompt holds -1, needed"),
    ({"ids": [1.0]}, "the prompt holds 1.0, needed"),
    ({"ids": [True]}, "the prompt holds True, needed"),
    ({"ids": "text"}, "the prompt holds 't', needed whole numbers"),
    ({"ids": None}, "the prompt is None, needed a list of token ids"),
    ({"ids": []}, "the prompt is empty and this model has no end-of-text token"),
    ({"ids": [0] * 161}, "the prompt has 161 tokens, but this model's context is 160: shorten it"),
    ({"max_new_tokens": -1}, "max_new_tokens is -1, needed a whole number of at least 0"),
    ({"max_new_tokens": 2.0}, "max_new_tokens is 2.0, needed"),
    ({"max_new_tokens": True}, "max_new_tokens is True, needed"),
    ({"temperature": -1}, "temperature is -1, needed"),
    ({"top_k": 212}, "top_k is 212, but the vocabulary has 211 tokens"),
    ({"top_p": 0.0}, "top_p is 0.0, needed"),
    ({"seed": 0.5}, "seed is 0.5, needed a whole number"),
    ({"seed": -1}, "seed is -1, needed a whole number from 0"),
    ({"seed": 2**63}, "seed is 9223372036854775808, needed"),
    ({"policy": "slide"}, "policy is 'slide', needed one of stop, reprefill"),
    ({"stop_tokens": [211]}, "stop_tokens holds 211, needed whole numbers from 0 to 210"),
    ({"stop_tokens": 3}, "stop_tokens is 3, needed a list of token ids"),
]


@pytest.mark.parametrize("run", [generate, stream])
@pytest.mark.parametrize(("arguments", "sentence"), REFUSED)
def test_what_makes_no_sense_is_refused_in_the_call_before_any_work(
    monkeypatch, model, run, arguments, sentence
):
    monkeypatch.setattr(GPT, "new_cache", lambda *_, **__: pytest.fail("made a cache"))
    monkeypatch.setattr(GPT, "next_logits", lambda *_, **__: pytest.fail("ran the model"))
    with pytest.raises(MinigptError, match=sentence):
        run(model, **{"ids": [1], **arguments})


def test_a_model_that_gives_nan_says_so_instead_of_choosing(exact):
    with torch.no_grad():
        exact.ln_f.bias[0] = torch.nan
    with pytest.raises(MinigptError, match="logits hold nan: its weights are damaged"):
        generate(exact, [1], 3)


class TestACacheOfOnesOwn:
    """What it holds already is not computed again, and the text is the same."""

    def test_the_beginning_that_it_holds_is_reused(self, exact, monkeypatch):
        prompt, cache = list(range(40)), exact.new_cache()
        exact(torch.tensor([prompt[:30]]), cache=cache)
        passes, forward = [], GPT.next_logits
        monkeypatch.setattr(
            GPT, "next_logits",
            lambda self, x, cache=None: passes.append(x.shape[1]) or forward(self, x, cache),
        )  # fmt: skip
        result = generate(exact, prompt, 3, cache=cache)
        assert passes == [10, 1, 1]
        assert result.reused == 30
        assert result.tokens == generate(exact, prompt, 3, use_cache=False).tokens

    def test_a_beginning_that_differs_is_forgotten(self, exact):
        cache = exact.new_cache()
        exact(torch.tensor([[5, 6, 7, 8, 9]]), cache=cache)
        result = generate(exact, [5, 6, 1, 2], 10, cache=cache)
        assert result.reused == 2
        assert result.tokens == generate(exact, [5, 6, 1, 2], 10, use_cache=False).tokens

    def test_afterwards_it_holds_prompt_and_text_but_the_last_token(self, exact):
        cache = exact.new_cache()
        result = generate(exact, [1, 2, 3], 10, cache=cache)
        assert cache.tokens == [[1, 2, 3, *result.tokens[:-1]]]

    @pytest.mark.parametrize("kind", ["paged", "growing"])
    def test_any_kind_will_do(self, exact, kind):
        got = generate(exact, [1, 2, 3], 20, cache=exact.new_cache(kind=kind))
        assert got.tokens == generate(exact, [1, 2, 3], 20).tokens

    def test_its_room_is_the_contexts_end(self, exact):
        result = generate(exact, [1, 2, 3], 20, cache=exact.new_cache(max_length=8))
        assert (len(result.tokens), result.finish_reason) == (6, "context")

    @pytest.mark.parametrize(
        ("cache", "sentence"),
        [
            (lambda m: m.new_cache(2), "this cache has 2 rows, needed one row"),
            (lambda m: m.new_cache(max_length=2), "3 tokens, but the cache has room for 2"),
            (lambda m: "a cache", "cache is a str, needed one from model.new_cache"),
        ],
    )
    def test_one_that_does_not_fit_is_refused(self, exact, cache, sentence):
        with pytest.raises(MinigptError, match=sentence):
            generate(exact, [1, 2, 3], 5, cache=cache(exact))

    def test_another_models_is_refused(self, exact, make_model):
        with pytest.raises(MinigptError, match="made for another model"):
            generate(exact, [1], 5, cache=make_model(n_layer=3).new_cache())

    def test_not_using_it_is_refused(self, exact):
        with pytest.raises(MinigptError, match="a cache was given and use_cache is False"):
            generate(exact, [1], 5, cache=exact.new_cache(), use_cache=False)


class TestLogProbabilities:
    def test_are_the_models_for_each_token(self, exact):
        result = generate(exact, [1, 2], 6, temperature=2.0, top_log_probabilities=3)
        with torch.no_grad():
            want = exact(torch.tensor([[1, 2, *result.tokens]]))[0, 1:-1].log_softmax(-1)
        for token, row, got in zip(result.tokens, want, result.log_probabilities, strict=True):
            assert got.token == token
            assert got.log_probability == float(row[token])
            assert [t for t, _ in got.top] == row.topk(3).indices.tolist()

    def test_are_not_kept_unasked(self, exact):
        assert generate(exact, [1], 3).log_probabilities == []

    def test_more_than_the_vocabulary_is_refused(self, exact):
        with pytest.raises(MinigptError, match="top_log_probabilities is 212, needed"):
            generate(exact, [1], 3, top_log_probabilities=212)


def test_penalties_are_about_the_whole_text(exact):
    """Also the part that the model no longer sees."""
    prompt = [7] * 10
    free = generate(exact, prompt, 200, policy="reprefill").tokens
    never = generate(
        exact, prompt, 200, policy="reprefill", frequency_penalty=2.0, presence_penalty=2.0
    ).tokens
    assert len(set(never)) > len(set(free))
    assert 7 not in generate(exact, prompt, 60, logit_bias={7: -float("inf")}).tokens


@pytest.mark.parametrize(
    ("weight", "place"),
    [
        ("h.1.mlp.c_fc.weight", "layer 1.mlp.c_fc"),
        ("h.0.ln_1.bias", "layer 0.ln_1"),
        ("wpe.weight", "wpe, the embeddings"),
        ("ln_f.weight", "ln_f"),
    ],
)
def test_logits_that_are_no_numbers_name_the_layer_that_made_them(exact, weight, place):
    with torch.no_grad():
        exact.get_parameter(weight).view(-1)[0] = torch.nan
    with pytest.raises(MinigptError, match=rf"the model's logits hold nan.*\(first in {place}\)"):
        generate(exact, [1, 2, 3], 5)
