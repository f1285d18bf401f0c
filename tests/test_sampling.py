"""Choosing a token: each filter beside transformers' own, then the draws, then what is refused."""

from __future__ import annotations

import pytest
import torch
from transformers.generation import (
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from minigpt import MinigptError
from minigpt.sampling import Sampler, keep_top_k, keep_top_p, scale_temperature


@pytest.fixture
def logits():
    """(64, 1000): rows from nearly flat to nearly certain."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(64, 1000, generator=generator) * torch.linspace(0.1, 8, 64)[:, None]


def draws(sampler, logits, count, seed=0):
    """How often each token is chosen in `count` draws: (V,)."""
    generator = torch.Generator().manual_seed(seed)
    chosen = [sampler.choose(logits, generator) for _ in range(count)]
    return torch.bincount(torch.tensor(chosen), minlength=len(logits))


@pytest.mark.parametrize("temperature", [0.1, 0.8, 1.0, 3.0])
def test_temperature_is_transformers(logits, temperature):
    want = TemperatureLogitsWarper(temperature)(None, logits)
    assert torch.equal(scale_temperature(logits, temperature), want)


@pytest.mark.parametrize("k", [1, 2, 50, 999, 1000])
def test_top_k_is_transformers(logits, k):
    assert torch.equal(keep_top_k(logits, k), TopKLogitsWarper(k)(None, logits))


def test_top_k_keeps_what_ties_with_the_last_one_as_transformers_does():
    tied = torch.tensor([[3.0, 1.0, 2.0, 2.0, 2.0, 0.0]])
    assert torch.equal(keep_top_k(tied, 2), TopKLogitsWarper(2)(None, tied))
    assert keep_top_k(tied, 2).isfinite().sum() == 4


@pytest.mark.parametrize("p", [0.01, 0.3, 0.5, 0.9, 0.99])
def test_top_p_is_transformers(logits, p):
    assert torch.equal(keep_top_p(logits, p), TopPLogitsWarper(p)(None, logits))


def test_top_p_keeps_the_fewest_that_reach_it():
    logits = torch.tensor([0.15, 0.5, 0.05, 0.3]).log()
    for p, kept in ((0.45, [1]), (0.55, [1, 3]), (0.85, [0, 1, 3]), (0.96, [0, 1, 2, 3])):
        assert keep_top_p(logits, p).isfinite().nonzero().flatten().tolist() == kept


def test_the_likeliest_token_survives_any_top_p():
    assert keep_top_p(torch.tensor([1.0, 3.0, 2.0]), 1e-320).tolist() == [-torch.inf, 3, -torch.inf]


def test_the_filters_apply_in_transformers_order(logits):
    row = logits[20]
    warped = row[None]
    for warper in (TemperatureLogitsWarper(0.7), TopKLogitsWarper(40), TopPLogitsWarper(0.8)):
        warped = warper(None, warped)
    counts = draws(Sampler(0.7, top_k=40, top_p=0.8), row, 4000)
    assert warped.isfinite().sum() > 5
    assert torch.equal(counts > 0, warped[0].softmax(-1) > 1e-3)


def test_no_filter_touches_its_input(logits):
    before = logits.clone()
    scale_temperature(logits, 0.5), keep_top_k(logits, 3), keep_top_p(logits, 0.3)
    Sampler(0.5, 3, 0.3).choose(logits[0], torch.Generator())
    assert torch.equal(logits, before)


def test_greedy_takes_the_likeliest_token_and_draws_nothing(logits):
    generator = torch.Generator().manual_seed(3)
    state = generator.get_state()
    chosen = [Sampler(0.0, top_k=5, top_p=0.1).choose(row, generator) for row in logits]
    assert chosen == logits.argmax(-1).tolist()
    assert torch.equal(generator.get_state(), state)


def test_greedy_takes_the_first_of_equals():
    assert Sampler().choose(torch.tensor([1.0, 2.0, 2.0]), torch.Generator()) == 1


@pytest.mark.parametrize("sampler", [Sampler(1.0, top_k=1), Sampler(1.0, top_p=1e-9)])
def test_one_candidate_leaves_no_choice(logits, sampler):
    assert draws(sampler, logits[0], 20)[logits[0].argmax()] == 20


def test_the_same_seed_draws_the_same_tokens_and_another_one_others(logits):
    def drawn(seed):
        generator = torch.Generator().manual_seed(seed)
        return [Sampler(1.0).choose(row, generator) for row in logits[:20]]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_draws_leave_torchs_own_random_numbers_alone(logits):
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    Sampler(1.0).choose(logits[0], torch.Generator())
    assert torch.equal(torch.rand(3), want)


@pytest.mark.parametrize(
    ("settings", "temperature"), [({}, 1.0), ({}, 0.6), ({"top_k": 6}, 1.5), ({"top_p": 0.8}, 1.0)]
)
def test_tokens_are_drawn_as_often_as_they_are_likely(settings, temperature):
    logits = torch.linspace(-2, 1.5, 12)
    warped = logits[None] / temperature
    if "top_k" in settings:
        warped = TopKLogitsWarper(settings["top_k"])(None, warped)
    if "top_p" in settings:
        warped = TopPLogitsWarper(settings["top_p"])(None, warped)
    likely = warped[0].softmax(-1)

    counts = draws(Sampler(temperature, **settings), logits, 6000)

    expected, possible = 6000 * likely, likely > 0
    assert not counts[~possible].any()
    distance = ((counts - expected) ** 2 / expected)[possible].sum().item()
    # Chi-squared with n - 1 degrees of freedom has mean n - 1 and variance 2 (n - 1); 4 standard
    # deviations above. Half a step of temperature or one token too many is far beyond it.
    freedom = int(possible.sum()) - 1
    assert distance < freedom + 4 * (2 * freedom) ** 0.5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_drawn_in_float32(logits, dtype):
    row = logits[0].to(dtype)  # whose probabilities of 1/1000 would not add up in these dtypes
    sampler = Sampler(0.9, top_p=0.7)
    assert torch.equal(draws(sampler, row, 300), draws(sampler, row.float(), 300))


@pytest.mark.parametrize("temperature", [1e-30, 1e-45, 1e-50, 5e-324])
def test_a_tiny_temperature_is_as_good_as_greedy(logits, temperature):
    assert draws(Sampler(temperature), logits[3], 5)[logits[3].argmax()] == 5


def test_a_huge_temperature_makes_all_tokens_alike_but_not_those_ruled_out():
    logits = torch.tensor([0.0, 5.0, -torch.inf, 2.0])
    counts = draws(Sampler(1e300), logits, 600)
    assert counts[2] == 0
    assert counts[[0, 1, 3]].min() > 150


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"temperature": -0.1}, "temperature is -0.1, needed 0"),
        ({"temperature": float("nan")}, "temperature is nan, needed 0"),
        ({"temperature": float("inf")}, "temperature is inf, needed 0"),
        ({"temperature": "1"}, "temperature is '1', needed 0"),
        ({"temperature": True}, "temperature is True, needed 0"),
        ({"top_k": 0}, "top_k is 0, needed a whole number of at least 1"),
        ({"top_k": 2.0}, "top_k is 2.0, needed a whole number"),
        ({"top_k": True}, "top_k is True, needed a whole number"),
        ({"top_p": 0}, "top_p is 0, needed a probability in \\(0, 1\\]"),
        ({"top_p": 1.01}, "top_p is 1.01, needed a probability"),
        ({"top_p": float("nan")}, "top_p is nan, needed a probability"),
        ({"top_p": "all"}, "top_p is 'all', needed a probability"),
    ],
)
def test_a_setting_out_of_range_is_refused(settings, sentence):
    with pytest.raises(MinigptError, match=sentence):
        Sampler(**settings)


def test_more_candidates_than_tokens_are_refused():
    Sampler(top_k=10).check(vocab_size=10)
    with pytest.raises(MinigptError, match="top_k is 11, but the vocabulary has 10 tokens"):
        Sampler(top_k=11).check(vocab_size=10)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    ("values", "found"),
    [
        ([0.0, torch.nan, 1.0], "nan"),
        ([torch.nan] * 3, "nan"),
        ([-torch.inf] * 3, "-inf"),
        ([0.0, torch.inf, 1.0], "inf"),
    ],
)
def test_logits_that_say_nothing_are_refused(values, found, temperature):
    with pytest.raises(MinigptError, match=f"logits hold {found}: .*damaged.*try dtype float32"):
        Sampler(temperature).choose(torch.tensor(values), torch.Generator())


def test_a_token_that_is_ruled_out_is_never_drawn():
    logits = torch.tensor([0.0, -torch.inf, 0.0])
    assert draws(Sampler(1.0), logits, 200)[1] == 0
