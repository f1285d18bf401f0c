"""Choosing a token: each function beside transformers' own, all of them together, then the draws,
then log-probabilities, then what is refused, then the functions that take the settings."""

from __future__ import annotations

import inspect
import math
from collections import Counter
from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation import (
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from minigpt import (
    GPT,
    GPTConfig,
    MinigptError,
    generate,
    generate_batch,
    stream,
    stream_text,
)
from minigpt.generation.sampling import (
    Sampler,
    TokenLogProb,
    add_bias,
    ban,
    count_tokens,
    force,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    log_probabilities,
    penalize_frequency,
    penalize_presence,
    penalize_repetition,
    scale_temperature,
)
from minigpt.study.tracing import trace
from minigpt.tokenizer import byte_tokenizer

HISTORY = [3, 7, 7, 7, 0, 999, 3]


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


@pytest.mark.parametrize("p", [0.0, 0.05, 0.5, 1.0])
def test_min_p_is_transformers(logits, p):
    assert torch.equal(keep_min_p(logits, p), MinPLogitsWarper(p)(None, logits))


def test_min_p_keeps_what_is_likely_enough_beside_the_likeliest():
    logits = torch.tensor([0.15, 0.5, 0.05, 0.3]).log()
    for p, kept in ((0.05, [0, 1, 2, 3]), (0.2, [0, 1, 3]), (0.5, [1, 3]), (0.7, [1])):
        assert keep_min_p(logits, p).isfinite().nonzero().flatten().tolist() == kept


@pytest.mark.parametrize("penalty", [0.5, 1.2, 30.0])
def test_the_repetition_penalty_is_transformers(logits, penalty):
    counts = count_tokens(HISTORY, 1000)
    history = torch.tensor([HISTORY]).expand(64, -1)
    want = RepetitionPenaltyLogitsProcessor(penalty)(history, logits)
    assert torch.equal(penalize_repetition(logits, counts, penalty), want)


def test_a_logit_bias_is_transformers(logits):
    bias = {0: 1.5, 999: -4.25, 17: 100.0}
    want = SequenceBiasLogitsProcessor({(token,): value for token, value in bias.items()})
    assert torch.equal(add_bias(logits, bias), want(None, logits))


def test_banned_tokens_are_transformers_bad_words(logits):
    want = NoBadWordsLogitsProcessor([[4], [998]])
    assert torch.equal(add_bias(logits, ban([4, 998])), want(None, logits))


def test_no_bias_changes_nothing(logits):
    assert torch.equal(add_bias(logits, {}), logits)


def test_only_forced_tokens_are_left_and_keep_their_logits():
    logits = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    biased = add_bias(logits, force([0, 2]) | ban([1]) | {3: 50.0})
    assert biased.tolist() == [[1.0, -torch.inf, 3.0, -torch.inf]]


def test_presence_is_subtracted_once_and_frequency_each_time():
    logits, counts = torch.zeros(5), count_tokens([1, 3, 3, 3], 5)
    assert penalize_presence(logits, counts, 0.5).tolist() == [0, -0.5, 0, -0.5, 0]
    assert penalize_frequency(logits, counts, 0.5).tolist() == [0, -0.5, 0, -1.5, 0]


def test_each_row_can_have_its_own_history():
    logits = torch.tensor([[2.0, -2.0], [2.0, -2.0]])
    counts = torch.stack([count_tokens([0], 2), count_tokens([1, 1], 2)])
    assert penalize_repetition(logits, counts, 2.0).tolist() == [[1, -2], [2, -4]]
    assert penalize_frequency(logits, counts, 1.0).tolist() == [[1, -2], [2, -4]]


@given(
    seed=st.integers(0, 2**32),
    spread=st.floats(0.5, 5),
    history=st.lists(st.integers(0, 29), max_size=40),
    bias=st.dictionaries(st.integers(0, 29), st.just(-math.inf) | st.floats(-9, 9), max_size=9),
    repetition=st.floats(0.3, 3),
    presence=st.floats(-2, 2),
    frequency=st.floats(-2, 2),
    temperature=st.floats(0.2, 3),
    top_k=st.none() | st.integers(1, 30),
    top_p=st.none() | st.floats(0.05, 0.99),
    min_p=st.none() | st.floats(0.01, 0.9),
)
@settings(deadline=None)  # the first example pays for what torch sets up
def test_all_settings_together_are_transformers_in_its_order(
    seed, spread, history, bias, repetition, presence, frequency, temperature, top_k, top_p, min_p
):
    logits = torch.randn(30, generator=torch.Generator().manual_seed(seed)) * spread
    wanted, past = logits[None], torch.tensor([history], dtype=torch.int64)
    if bias:
        wanted = SequenceBiasLogitsProcessor({(t,): b for t, b in bias.items()})(past, wanted)
    wanted = RepetitionPenaltyLogitsProcessor(repetition)(past, wanted)
    counts = torch.bincount(past[0], minlength=30)  # these two penalties transformers has not
    wanted = wanted - presence * (counts > 0) - frequency * counts
    likeliest = int(wanted.argmax())
    wanted = TemperatureLogitsWarper(temperature)(past, wanted - wanted.max())
    for warper, value in (
        (TopKLogitsWarper, top_k), (TopPLogitsWarper, top_p), (MinPLogitsWarper, min_p)
    ):  # fmt: skip
        wanted = wanted if value is None else warper(value)(past, wanted)

    rules = {"repetition_penalty": repetition, "presence_penalty": presence,
             "frequency_penalty": frequency, "logit_bias": bias}  # fmt: skip
    sampler = Sampler(temperature, top_k, top_p, min_p, **rules)
    assert torch.equal(sampler.distribution(logits, history), wanted[0].softmax(-1))
    assert Sampler(0.0, **rules).choose(logits, torch.Generator(), history) == likeliest


@pytest.mark.parametrize(
    "sampler",
    [Sampler(0.7), Sampler(1.3, 40), Sampler(0.9, None, 0.8), Sampler(0.7, top_k=40, top_p=0.8),
     Sampler(0.7, 40, 0.8, 0.1, 1.2, 0.5, 0.1, ban([5]))],
)  # fmt: skip
def test_a_token_is_one_draw_from_the_distribution(logits, sampler):
    ours, torchs = (torch.Generator().manual_seed(7) for _ in range(2))
    for row in logits:
        likely = sampler.distribution(row, HISTORY)
        drawn = torch.multinomial(likely, 1, generator=torchs)
        assert sampler.choose(row, ours, HISTORY) == drawn


def test_the_distribution_of_temperature_alone_is_the_softmax(logits):
    row = logits[5]
    assert torch.equal(Sampler(0.5).distribution(row), ((row - row.max()) / 0.5).softmax(-1))


def test_the_greedy_distribution_is_certain(logits):
    likely = Sampler().distribution(logits[0])
    assert likely[logits[0].argmax()] == 1
    assert likely.sum() == 1


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_banned_token_is_never_chosen_and_a_forced_one_always(temperature):
    logits = torch.tensor([9.0, 1.0, 0.0])
    banned = Sampler(temperature, logit_bias=ban([0]))
    forced = Sampler(temperature, logit_bias=force([2]))
    assert draws(banned, logits, 50)[0] == 0
    assert draws(forced, logits, 50)[2] == 50


def test_without_a_history_penalties_change_nothing(logits):
    sampler = Sampler(1.0, repetition_penalty=2.0, presence_penalty=1.0, frequency_penalty=1.0)
    assert torch.equal(sampler.distribution(logits[0]), Sampler(1.0).distribution(logits[0]))


def test_a_history_may_be_a_tensor(logits):
    sampler = Sampler(1.0, frequency_penalty=1.0)
    want = sampler.distribution(logits[0], HISTORY)
    assert torch.equal(sampler.distribution(logits[0], torch.tensor(HISTORY)), want)


def test_a_bias_that_changes_later_is_not_the_samplers():
    bias = ban([0])
    sampler = Sampler(logit_bias=bias)
    bias.clear()
    assert sampler.choose(torch.tensor([2.0, 1.0]), torch.Generator()) == 1


def test_no_function_touches_its_input(logits):
    before, counts = logits.clone(), count_tokens(HISTORY, 1000)
    scale_temperature(logits, 0.5), keep_top_k(logits, 3), keep_top_p(logits, 0.3)
    keep_min_p(logits, 0.3), add_bias(logits, {3: 1.0}), add_bias(logits, force([3]))
    for penalize in (penalize_repetition, penalize_presence, penalize_frequency):
        penalize(logits, counts, 1.5)
    Sampler(0.5, 3, 0.3, 0.1, 1.5, 1.0, 1.0, ban([1])).choose(logits[0], torch.Generator(), HISTORY)
    log_probabilities(logits[0], 3, top_n=5)
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
        ({"min_p": -0.1}, "min_p is -0.1, needed a fraction in \\[0, 1\\]"),
        ({"min_p": 1.01}, "min_p is 1.01, needed a fraction"),
        ({"min_p": float("nan")}, "min_p is nan, needed a fraction"),
        ({"min_p": True}, "min_p is True, needed a fraction"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0, needed a positive number"),
        ({"repetition_penalty": -1.2}, "repetition_penalty is -1.2, needed a positive"),
        ({"repetition_penalty": float("inf")}, "repetition_penalty is inf, needed a positive"),
        ({"repetition_penalty": None}, "repetition_penalty is None, needed a positive"),
        ({"presence_penalty": 2.1}, "presence_penalty is 2.1, needed a number in \\[-2, 2\\]"),
        ({"presence_penalty": float("nan")}, "presence_penalty is nan, needed a number"),
        ({"frequency_penalty": -2.1}, "frequency_penalty is -2.1, needed a number in"),
        ({"frequency_penalty": "1"}, "frequency_penalty is '1', needed a number in"),
        ({"logit_bias": [5]}, "logit_bias is a list, needed a dict"),
        ({"logit_bias": {"the": 1.0}}, "logit_bias has 'the': 1.0, needed a token's id"),
        ({"logit_bias": {5: float("nan")}}, "logit_bias has 5: nan, needed a token's id and a num"),
        ({"logit_bias": {5: None}}, "logit_bias has 5: None, needed a token's id and a number"),
    ],
)
def test_a_setting_out_of_range_is_refused(settings, sentence):
    with pytest.raises(MinigptError, match=sentence):
        Sampler(**settings)


def test_more_candidates_than_tokens_are_refused():
    Sampler(top_k=10).check(vocab_size=10)
    with pytest.raises(MinigptError, match="top_k is 11, but the vocabulary has 10 tokens"):
        Sampler(top_k=11).check(vocab_size=10)


@pytest.mark.parametrize("token", [10, -1])
def test_a_bias_beyond_the_vocabulary_is_refused(token):
    Sampler(logit_bias={0: 1.0, 9: 1.0}).check(vocab_size=10)
    with pytest.raises(MinigptError, match=f"token {token}, but the vocabulary has 10 tokens"):
        Sampler(logit_bias={token: 1.0}).check(vocab_size=10)


def test_banning_every_token_is_refused_before_anything_is_computed():
    Sampler(logit_bias=ban(range(9))).check(vocab_size=10)
    with pytest.raises(MinigptError, match="logit_bias bans all 10 tokens"):
        Sampler(logit_bias=ban(range(10))).check(vocab_size=10)


@pytest.mark.parametrize("sampler", [Sampler(1.0, top_k=4), Sampler(logit_bias={3: 1.0})])
def test_a_choice_among_other_tokens_than_the_settings_know_is_refused(sampler):
    with pytest.raises(MinigptError, match="but the vocabulary has 3 tokens"):
        sampler.choose(torch.zeros(3), torch.Generator())


@pytest.mark.parametrize(
    ("settings", "left"),
    [
        ({"logit_bias": ban([0, 2])}, "-inf"),  # the model itself rules out token 1
        ({"logit_bias": force([1])}, "-inf"),
        ({"repetition_penalty": 1e-45}, "inf"),
    ],
)
def test_settings_that_leave_no_choice_are_refused(settings, left):
    logits = torch.tensor([1.0, -torch.inf, 2.0])
    with pytest.raises(MinigptError, match=f"leave no token to choose, the best logit is {left}:"):
        Sampler(**settings).choose(logits, torch.Generator(), history=[0])


@pytest.mark.parametrize("history", [[3], [-1], [1.0], ["a"], [True], [[1]], 1, None])
def test_a_history_of_anything_but_tokens_is_refused(history):
    with pytest.raises(MinigptError, match="history holds something else.*from 0 to 2$"):
        Sampler(presence_penalty=1.0).choose(torch.zeros(3), torch.Generator(), history)


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


# --- runs, ends and a function of one's own ---


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_a_run_is_not_repeated_as_in_transformers(logits, size):
    processors = pytest.importorskip("transformers.generation.logits_process")
    theirs = processors.NoRepeatNGramLogitsProcessor(size)
    draw = torch.Generator().manual_seed(0)
    for length in range(30):
        history = torch.randint(3, (length,), generator=draw)
        want = theirs(history[None], logits[:1].clone())[0].softmax(-1)
        found = Sampler(1.0, no_repeat_ngram_size=size).distribution(logits[0], history)
        assert torch.equal(found, want)


def test_transformers_processors_are_functions_of_ones_own(logits):
    processors = pytest.importorskip("transformers.generation.logits_process")
    several = processors.LogitsProcessorList(
        [processors.TypicalLogitsWarper(0.9), processors.SuppressTokensLogitsProcessor([1, 2])]
    )
    history = [4, 5]
    want = several(torch.tensor([history]), logits[:1].clone())[0]
    found = Sampler(logits_processor=several, temperature=1.0).distribution(logits[0], history)
    assert torch.equal(found, want.softmax(-1))


def test_a_function_of_ones_own_may_change_what_it_is_given_and_nothing_else(logits):
    def ruin(text, scores):
        text.zero_()
        return scores.zero_()

    before, history = logits.clone(), [4, 5]
    assert Sampler(logits_processor=ruin).choose(logits[0], torch.Generator(), history) == 0
    assert torch.equal(logits, before)
    assert history == [4, 5]


@pytest.mark.parametrize("made", [None, 3.0, torch.zeros(3), torch.zeros(2, 3)])
def test_a_function_of_ones_own_that_gives_no_logits_is_refused(made):
    sampler = Sampler(logits_processor=lambda text, scores: made)
    with pytest.raises(MinigptError, match=r"logits_processor gave .+, needed .+ \(1, 3\)"):
        sampler.choose(torch.zeros(3), torch.Generator())


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size is -1, needed a whole number"),
        ({"min_new_tokens": 1.5}, "min_new_tokens is 1.5, needed a whole number"),
        ({"logits_processor": 3}, "logits_processor is 3, needed a function"),
    ],
)
def test_settings_of_another_kind_are_refused(settings, told):
    with pytest.raises(MinigptError, match=told):
        Sampler(**settings)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A model that soon ends its texts and repeats itself, and the same in transformers."""
    transformers = pytest.importorskip("transformers")
    directory = tmp_path_factory.mktemp("pair")
    torch.manual_seed(5)
    model = GPT(GPTConfig(30, 64, 32, 2, 2, eos_token_id=None, initializer_range=0.4)).eval()
    often = Counter(t for i in range(30) for t in generate(model, [i, 3, i], 20).tokens)
    model.config = replace(model.config, eos_token_id=often.most_common(2)[1][0])
    model.save_pretrained(directory)
    theirs = transformers.GPT2LMHeadModel.from_pretrained(str(directory))
    return model, theirs.eval()


def theirs_of(theirs, ids, **settings):
    end = theirs.config.eos_token_id
    made = theirs.generate(torch.tensor([ids]), do_sample=False, pad_token_id=end, **settings)
    tokens = made[0, len(ids) :].tolist()
    return tokens[: tokens.index(end)] if end in tokens else tokens


@pytest.mark.parametrize(
    "settings",
    [
        {"no_repeat_ngram_size": 2},
        {"no_repeat_ngram_size": 1, "repetition_penalty": 1.3},
        {"min_new_tokens": 12},
        {"min_new_tokens": 5, "no_repeat_ngram_size": 3},
    ],
)
def test_texts_are_those_of_transformers(pair, settings):
    model, theirs = pair
    changed = 0
    for first in range(0, 30, 2):
        ids = [first, 3, first]
        want = theirs_of(theirs, ids, max_new_tokens=20, **settings)
        found = generate(model, ids, 20, **settings).tokens
        assert found == want
        assert generate(model, ids, 20, **settings, use_cache=False).tokens == found
        assert generate(model, ids, 20, **settings, draft="lookup").tokens == found
        changed += found != generate(model, ids, 20).tokens
    assert changed > 3  # or the settings were not put to the test


def test_a_function_of_ones_own_is_called_once_for_each_token_also_with_drafts(pair):
    def seen_by(**how):
        seen = []

        def note(text, scores):
            seen.append((text.tolist(), scores.tolist()))
            return -scores

        made = generate(pair[0], [1, 2, 1, 2], 20, logits_processor=note, stop_tokens=(), **how)
        return seen, made.tokens

    seen, tokens = seen_by()
    assert [text for [text], _ in seen] == [[1, 2, 1, 2, *tokens[:n]] for n in range(20)]
    assert seen_by(use_cache=False) == seen_by(draft="lookup") == (seen, tokens)


# --- log-probabilities ---


def test_a_log_probability_is_the_log_softmax(logits):
    for row in logits:
        want = row.log_softmax(-1)
        assert log_probabilities(row, 17).log_probability == want[17].item()


def test_the_top_is_in_order_and_has_its_log_probabilities(logits):
    row = logits[9]
    values, tokens = row.log_softmax(-1).topk(20)
    found = log_probabilities(row, 4, top_n=20)
    assert found.top == tuple(zip(tokens.tolist(), values.tolist(), strict=True))
    assert found.token == 4


def test_of_equally_likely_tokens_the_first_comes_first():
    logits = torch.tensor([0.0, 2.0, 1.0, 2.0, 1.0, 1.0])
    tokens = [token for token, _ in log_probabilities(logits, 0, top_n=4).top]
    assert tokens == [1, 3, 2, 4]


def test_half_precision_has_float32_log_probabilities(logits):
    row = logits[0].bfloat16()
    assert log_probabilities(row, 3, 5) == log_probabilities(row.float(), 3, 5)


def test_without_a_top_there_is_only_the_token():
    assert log_probabilities(torch.zeros(1), 0) == TokenLogProb(0, 0.0, ())


@pytest.mark.parametrize(
    ("token", "top_n", "sentence"),
    [
        (3, 0, "token is 3, needed a whole number from 0 to 2"),
        (-1, 0, "token is -1, needed"),
        (True, 0, "token is True, needed"),
        (0, 4, "top_n is 4, needed a whole number from 0 to 3"),
        (0, -1, "top_n is -1, needed"),
        (0, None, "top_n is None, needed"),
    ],
)
def test_log_probabilities_of_what_is_not_there_are_refused(token, top_n, sentence):
    with pytest.raises(MinigptError, match=sentence):
        log_probabilities(torch.zeros(3), token, top_n)


def test_log_probabilities_of_damaged_logits_are_refused():
    with pytest.raises(MinigptError, match="logits hold nan"):
        log_probabilities(torch.tensor([0.0, torch.nan]), 0)


# --- the functions that take these settings ---

EVERY_SETTING = {
    "temperature": 0.9, "top_k": 7, "top_p": 0.8, "min_p": 0.01, "repetition_penalty": 1.5,
    "presence_penalty": 0.25, "frequency_penalty": 0.5, "logit_bias": {3: 1.0},
    "no_repeat_ngram_size": 2, "min_new_tokens": 1, "logits_processor": lambda text, logits: logits,
}  # fmt: skip
CALLS = {
    generate: lambda *given, **how: generate(*given, **how),
    stream: lambda *given, **how: list(stream(*given, **how)),
    generate_batch: lambda model, ids, **how: generate_batch(model, [ids], **how),
    stream_text: lambda model, ids, **how: list(stream_text(model, byte_tokenizer(), ids, **how)),
    trace: lambda model, ids, **how: trace(model, byte_tokenizer(), ids, rounds=1, **how),
}


@pytest.mark.parametrize("function", CALLS)
def test_every_function_names_the_settings_of_a_sampler_and_no_others(function):
    arguments = inspect.signature(function).parameters
    settings = [f.name for f in fields(Sampler)]
    first = list(arguments).index("temperature")
    assert list(arguments)[first : first + len(settings)] == settings
    assert [arguments[name].default for name in settings] == [f.default for f in fields(Sampler)]
    assert [arguments[name].annotation for name in settings] == [f.type for f in fields(Sampler)]
    assert all(a.kind is a.POSITIONAL_OR_KEYWORD for a in arguments.values())


@pytest.mark.parametrize("function", CALLS)
def test_every_setting_reaches_the_sampler(function, monkeypatch):
    used = []
    choose = Sampler.choose

    def spy(self, *arguments):
        used.append(self)
        return choose(self, *arguments)

    monkeypatch.setattr(Sampler, "choose", spy)
    model = GPT(GPTConfig.preset("nano")).eval()
    CALLS[function](model, [1, 2], max_new_tokens=1, **EVERY_SETTING)
    assert used == [Sampler(**EVERY_SETTING)]
    assert EVERY_SETTING.keys() == {f.name for f in fields(Sampler)}
