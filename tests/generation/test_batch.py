"""Many texts at once: each is the text it would be alone, to the bit."""

from __future__ import annotations

import pytest
import torch

from minigpt import GPT, MinigptError, generate
from minigpt.generation.batch import generate_batch
from minigpt.generation.sampling import Sampler
from tests.helpers import ending_in

SAMPLING = {"temperature": 0.9, "top_k": 50}


@pytest.fixture
def prompts(text):
    return [text(1, length, seed=length)[0].tolist() for length in (3, 40, 1, 126, 17)]


@pytest.mark.parametrize("sampling", [{}, SAMPLING])
@pytest.mark.parametrize("kind", ["static", "paged", "growing"])
def test_each_rows_text_is_its_own(exact, prompts, kind, sampling):
    got = generate_batch(exact, prompts, 12, seed=5, kind=kind, **sampling)
    for number, (prompt, row) in enumerate(zip(prompts, got, strict=True)):
        assert row.tokens == generate(exact, prompt, 12, seed=5 + number, **sampling).tokens
        assert len(row.tokens) == 12


def test_each_rows_logits_are_its_own_to_the_bit(exact, prompts, monkeypatch):
    seen, choose = {}, Sampler.choose

    def spy(self, logits, generator, history=(), *rest):
        seen.setdefault((generator.initial_seed(), len(history)), []).append(logits.clone())
        return choose(self, logits, generator, history, *rest)

    monkeypatch.setattr(Sampler, "choose", spy)
    generate_batch(exact, prompts, 10, temperature=1.0)
    together = {place: logits for place, (logits,) in seen.items()}
    seen.clear()
    for seed, prompt in enumerate(prompts):
        generate(exact, prompt, 10, temperature=1.0, seed=seed, use_cache=False)
    assert together.keys() == seen.keys()
    assert all(torch.equal(together[place], logits) for place, (logits,) in seen.items())


def test_samples_of_a_prompt_differ_and_each_is_its_seeds(exact, prompts):
    got = generate_batch(exact, prompts[:2], 10, n=3, seed=7, temperature=1.5)
    assert len({tuple(row.tokens) for row in got[:3]}) == 3
    for number, row in enumerate(got):
        want = generate(exact, prompts[number // 3], 10, seed=7 + number, temperature=1.5)
        assert row.tokens == want.tokens


def test_each_rows_log_probabilities_are_its_own_to_the_bit(exact, prompts):
    got = generate_batch(exact, prompts, 5, temperature=1.0, top_log_probabilities=1)
    for seed, (prompt, row) in enumerate(zip(prompts, got, strict=True)):
        alone = generate(exact, prompt, 5, temperature=1.0, seed=seed, top_log_probabilities=1)
        assert row.log_probabilities == alone.log_probabilities


def test_the_token_that_ends_a_text_has_a_log_probability_too(exact, prompts):
    (text,) = generate_batch(exact, prompts[:1], 3, temperature=1.0)
    end = text.tokens[1]
    (cut,) = generate_batch(
        exact, prompts[:1], 3, temperature=1.0, stop_tokens=[end], top_log_probabilities=0
    )
    assert (cut.tokens, cut.ending.token) == (text.tokens[: text.tokens.index(end)], end)
    assert cut.ending.log_probability < 0


def test_each_row_may_have_its_own_seed(exact, prompts):
    got = generate_batch(exact, prompts[:3], 8, seed=[9, 9, 4], temperature=1.0)
    for seed, prompt, row in zip([9, 9, 4], prompts, got, strict=False):
        assert row.tokens == generate(exact, prompt, 8, seed=seed, temperature=1.0).tokens


def test_samples_share_one_prefill(exact, prompts, monkeypatch):
    passes, forward = [], GPT.next_logits

    def counted(self, tokens, cache=None):
        passes.append(tuple(tokens.shape))
        return forward(self, tokens, cache)

    monkeypatch.setattr(GPT, "next_logits", counted)
    generate_batch(exact, [prompts[1]], 3, n=4, temperature=1.0)
    assert passes == [(1, 40), (4, 1), (4, 1)]


def test_a_finished_row_leaves_the_batch(exact, prompts, monkeypatch):
    alone = [generate(exact, prompt, 20).tokens for prompt in prompts]
    only_here = [t for row in alone for t in row[3:] if sum(t in other for other in alone) == 1]
    ending = next(t for t in only_here if not any(t in row[:3] for row in alone))
    model = ending_in(exact, ending)
    widths, forward = [], GPT.next_logits

    def counted(self, tokens, cache=None):
        widths.append(len(tokens))
        return forward(self, tokens, cache)

    monkeypatch.setattr(GPT, "next_logits", counted)
    got = generate_batch(model, prompts, 20)
    steps = widths[len(prompts) :]  # after the prefills
    assert len(steps) == 19
    assert set(steps) == {5, 4}
    assert steps == sorted(steps, reverse=True)
    for prompt, row in zip(prompts, got, strict=True):
        want = generate(model, prompt, 20)
        assert (row.tokens, row.finish_reason) == (want.tokens, want.finish_reason)
    assert [row.finish_reason for row in got].count("end_of_text") == 1


@pytest.mark.parametrize("policy", ["stop", "reprefill"])
def test_rows_that_reach_the_contexts_end(exact, prompts, policy):
    prompts = [prompts[3], prompts[0], [7] * 160]
    got = generate_batch(exact, prompts, 50, policy=policy)
    for prompt, row in zip(prompts, got, strict=True):
        want = generate(exact, prompt, 50, policy=policy)
        assert (row.tokens, row.finish_reason, row.prefills) == (
            want.tokens, want.finish_reason, want.prefills,
        )  # fmt: skip
    assert {row.finish_reason for row in got} == (
        {"context", "length"} if policy == "stop" else {"length"}
    )


def test_tokens_are_told_as_they_come(exact, prompts):
    told: dict[int, list[int]] = {}
    got = generate_batch(
        exact, prompts, 5, on_token=lambda row, token: told.setdefault(row, []).append(token)
    )
    assert told == {number: row.tokens for number, row in enumerate(got)}


def test_no_new_tokens_are_no_work(exact, prompts):
    assert [row.tokens for row in generate_batch(exact, prompts, 0)] == [[]] * len(prompts)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"prompts": []}, "no prompts were given"),
        ({"prompts": None}, "found a NoneType, needed a list"),
        ({"prompts": [1, 2]}, "needed a list of lists of token ids"),
        ({"prompts": [[1], [999]]}, "the prompt holds 999, needed"),
        ({"prompts": [[1]], "n": 0}, "n is 0, needed"),
        ({"prompts": [[1]], "n": 3, "seed": [1, 2]}, "seed has 2 numbers for 3 rows"),
        ({"prompts": [[1]], "kind": "magic"}, "cache kind is 'magic'"),
        ({"prompts": [[1]], "temperature": -1}, "temperature is -1"),
    ],
)
def test_bad_input_is_one_sentence(exact, arguments, sentence):
    with pytest.raises(MinigptError, match=sentence):
        generate_batch(exact, **arguments)
