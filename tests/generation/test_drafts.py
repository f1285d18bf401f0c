"""Guesses change how soon a text comes, and nothing about the text."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from minigpt import MinigptError, generate
from minigpt.generation.drafts import Lookup, SmallModel

SAMPLING = {"temperature": 0.9, "top_k": 20}


class Fixed:
    """Guesses that were laid out beforehand: for each length of the text, what comes next."""

    def __init__(self, text: list[int], wrong_every: int = 0) -> None:
        self.text, self.wrong_every = text, wrong_every

    def propose(self, tokens, room):
        guesses = self.text[len(tokens) : len(tokens) + room]
        if self.wrong_every:
            guesses = [
                (guess + 1) % 211 if (len(tokens) + n) % self.wrong_every == 0 else guess
                for n, guess in enumerate(guesses)
            ]
        return guesses

    def learn(self, drafted, accepted):
        pass


@pytest.mark.parametrize("sampling", [{}, SAMPLING])
@pytest.mark.parametrize("wrong_every", [0, 1, 2, 3, 7])
def test_the_text_and_every_bit_of_its_logits_are_those_of_plain_uncached_decoding(
    exact, logits_seen, sampling, wrong_every
):
    prompt = [3, 1, 4]
    plain = generate(exact, prompt, 60, use_cache=False, seed=3, **sampling)
    want = torch.stack(logits_seen)
    logits_seen.clear()
    drafter = Fixed(prompt + plain.tokens, wrong_every)
    drafted = generate(exact, prompt, 60, draft=drafter, seed=3, **sampling)
    assert drafted.tokens == plain.tokens
    assert torch.equal(torch.stack(logits_seen), want)
    assert (drafted.accepted == drafted.drafted) == (wrong_every == 0)


def test_right_guesses_save_passes(exact, monkeypatch):
    plain = generate(exact, [1, 2], 33).tokens
    passes, forward = [], type(exact)._logits

    def counted(self, tokens, cache, wanted):
        passes.append(tokens.shape[1])
        return forward(self, tokens, cache, wanted)

    monkeypatch.setattr(type(exact), "_logits", counted)
    result = generate(exact, [1, 2], 33, draft=Fixed([1, 2, *plain]))
    assert passes == [2 + 15, 1 + 15, 1]
    assert (result.drafted, result.accepted) == (30, 30)


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("numerics", ["exact", "fast"])
def test_looking_up_gives_the_plain_text(make_model, use_cache, numerics):
    model = make_model(numerics)
    prompt = [5, 6, 7, 8, 9] * 4
    plain = generate(model, prompt, 100)
    drafted = generate(model, prompt, 100, draft="lookup", use_cache=use_cache)
    assert drafted.tokens == plain.tokens
    assert drafted.drafted > 0


@pytest.mark.parametrize("sampling", [{}, SAMPLING])
def test_a_smaller_model_guesses_and_the_larger_one_decides(make_model, sampling):
    model, small = make_model("exact"), make_model("fast", n_layer=1)
    plain = generate(model, [1, 2, 3], 60, seed=1, **sampling)
    drafted = generate(model, [1, 2, 3], 60, seed=1, draft=small, **sampling)
    assert drafted.tokens == plain.tokens
    assert drafted.drafted > 0


def test_a_model_that_guesses_for_itself_is_always_right(exact):
    result = generate(exact, [1, 2, 3], 50, draft=exact)
    assert result.tokens == generate(exact, [1, 2, 3], 50).tokens
    assert result.accepted == result.drafted > 30


def test_the_small_models_cache_keeps_what_was_accepted(exact):
    drafter = SmallModel(exact)
    drafter.propose([1, 2, 3], 4)
    drafter.propose([1, 2, 3, 9], 4)
    assert drafter._cache.tokens[0][:4] == [1, 2, 3, 9]


def test_a_text_that_ends_inside_its_guesses_ends_there(exact):
    plain = generate(exact, [1, 2], 30).tokens
    stop = plain[10]
    end = plain.index(stop)
    result = generate(exact, [1, 2], 30, draft=Fixed([1, 2, *plain]), stop_tokens=[stop])
    assert result.tokens == plain[:end]
    assert result.finish_reason == "end_of_text"


@pytest.mark.parametrize("policy", ["stop", "reprefill"])
def test_the_contexts_end_is_the_same(exact, policy):
    prompt = [1, 2, 3] * 40
    plain = generate(exact, prompt, 100, policy=policy)
    drafted = generate(exact, prompt, 100, policy=policy, draft="lookup")
    assert drafted.tokens == plain.tokens
    assert drafted.finish_reason == plain.finish_reason


def test_the_cache_holds_no_guess_that_failed(exact):
    cache = exact.new_cache()
    result = generate(exact, [1, 2, 3], 20, cache=cache, draft=Fixed([0] * 200, wrong_every=1))
    assert cache.tokens == [[1, 2, 3, *result.tokens][: len(cache)]]
    assert len(cache) == 22


def test_samples_with_drafts_have_the_distribution_without(make_model):
    """By construction the ids are the same; this is the check that would catch a biased scheme."""
    model = make_model(vocab_size=7, initializer_range=0.02)
    counts = [Counter(), Counter()]
    for seed in range(400):
        for count, draft in zip(counts, (None, Fixed([2] * 50)), strict=True):
            count.update(
                [tuple(generate(model, [1], 2, seed=seed, temperature=1.0, draft=draft).tokens)]
            )
    assert counts[0] == counts[1]
    assert len(counts[0]) > 20


class TestLookup:
    def test_it_proposes_what_followed_the_last_time(self):
        assert Lookup().propose([1, 2, 3, 9, 8, 7, 1, 2, 3], 3) == [9, 8, 7]

    def test_the_longest_ending_wins(self):
        tokens = [1, 2, 3, 4, 50, 3, 4, 60, 2, 3, 4]
        assert Lookup().propose(tokens, 1) == [50]

    def test_of_equal_endings_the_latest_wins(self):
        assert Lookup().propose([1, 2, 50, 1, 2, 60, 1, 2], 1) == [60]

    def test_it_has_no_idea_about_a_new_ending(self):
        assert Lookup().propose([1, 2, 3, 4], 5) == []

    def test_one_token_in_common_is_not_enough(self):
        assert Lookup().propose([4, 5, 6, 4], 5) == []

    def test_a_loop_goes_on_looping(self):
        assert Lookup().propose([7, 1, 2, 3, 1, 2, 3, 1, 2], 4) == [3, 1, 2, 3]

    def test_never_more_than_there_is_room_for(self):
        assert len(Lookup().propose([1, 2] * 20, 3)) == 3

    def test_success_makes_it_bolder_and_failure_makes_it_pause(self):
        lookup, tokens = Lookup(), [1, 2] * 20
        lookup.learn(4, 4)
        assert len(lookup.propose(tokens, 15)) == 8
        lookup.learn(8, 0)
        assert lookup.propose(tokens, 15) == []
        assert lookup.propose(tokens, 15) != []
        lookup.learn(2, 0)
        assert [bool(lookup.propose(tokens, 15)) for _ in range(3)] == [False, False, True]


@pytest.mark.parametrize(
    ("draft", "sentence"),
    [
        ("magic", "draft is 'magic', needed 'lookup', a smaller model, or a Drafter"),
        (3, "draft is 3, needed"),
    ],
)
def test_what_cannot_draft_is_refused(exact, draft, sentence):
    with pytest.raises(MinigptError, match=sentence):
        generate(exact, [1], 5, draft=draft)


def test_a_draft_model_needs_the_same_vocabulary(make_model, exact):
    with pytest.raises(MinigptError, match="vocabulary of 90 tokens and the model one of 211"):
        generate(exact, [1], 5, draft=make_model(vocab_size=90))


def test_a_small_model_that_has_learned_since_guesses_with_what_it_knows_now(exact, make_model):
    small = make_model(n_layer=1)
    drafter, prompt = SmallModel(small), [3, 1, 4]
    drafter.propose(prompt, 4)
    with torch.no_grad():
        small.h[0].mlp.c_fc.weight.mul_(3)
    guesses = drafter.propose(prompt, 4)
    assert guesses == SmallModel(small).propose(prompt, 4) == generate(small, prompt, 4).tokens
