"""How good a model is, and how sure one may be of it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from minigpt import GPT, GPTConfig
from minigpt.tokenizer import byte_tokenizer
from minigpt.training.data import Corpus
from minigpt.training.losses import assess
from minigpt.training.measurement import measure_model, share_interval
from minigpt.training.sources import SHOWN, Problems, Text
from minigpt.training.tasks import TASKS


def knowing_nothing(vocab_size: int, context: int) -> GPT:
    """A model that gives each token the same probability."""
    model = GPT(GPTConfig(vocab_size, context, 16, 1, 2))
    with torch.no_grad():
        model.wte.weight.zero_()
    return model.eval()


@pytest.fixture
def text() -> Text:
    tokens = np.random.default_rng(0).integers(7, size=8 * 50 + 1).astype(np.uint16)
    return Text(Corpus(byte_tokenizer(), tokens, tokens, 2 * len(tokens)), 8, seed=1)


@pytest.fixture
def model() -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(257, 8, 16, 1, 2, initializer_range=0.5)).eval()


def test_the_error_is_that_of_a_mean_over_windows(model, text):
    [(inputs, targets)] = text.held_out()
    scores = model(inputs).log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    means = -scores.double().mean(1)  # of each window; all of one length
    found = assess(model, text.held_out())
    assert found.windows == 50
    assert found.loss == pytest.approx(means.mean().item(), rel=1e-6)
    assert found.error == pytest.approx(means.std().item() / math.sqrt(50), rel=1e-5)


def test_four_times_the_windows_halve_the_error(model):
    tokens = np.random.default_rng(0).integers(7, size=8 * 800 + 1).astype(np.uint16)
    errors = []
    for count in (200, 800):
        part = tokens[: 8 * count + 1]
        errors.append(assess(model, Text(Corpus(byte_tokenizer(), part, part, 1), 8, 1).held_out()))
    assert errors[0].error / errors[1].error == pytest.approx(2, rel=0.2)


def test_one_window_has_no_error(model, text):
    assert math.isnan(assess(model, text.held_out(1)).error)


def test_the_interval_holds_what_all_of_the_text_gives_most_of_the_time(model, text):
    true = assess(model, text.held_out()).loss
    [(inputs, targets)] = text.held_out()
    hits = 0
    for seed in range(40):
        drawn = torch.randint(50, (20,), generator=torch.Generator().manual_seed(seed))
        found = assess(model, [(inputs[drawn], targets[drawn])])
        hits += abs(found.loss - true) < 1.96 * found.error
    assert hits >= 34  # 38 of 40 are to be expected


def test_text_is_told_in_nats_perplexity_and_bits_per_byte(text):
    told = str(measure_model(knowing_nothing(257, 8), text))
    assert (
        f"held-out loss      {math.log(257):.4f} ± 0.0000 nats per token, over 50 windows" in told
    )
    assert "perplexity         257.00 (257.00, 257.00)" in told
    assert f"bits per byte      {math.log2(257) / 2:.4f} ± 0.0000" in told
    assert "exactly right" not in told


def test_a_task_is_told_in_problems_answered_exactly():
    task = TASKS["copying"]
    found = measure_model(knowing_nothing(task.tokenizer.n_vocab, task.context), Problems(task, 1))
    assert (found.accuracy, found.problems) == (0.0, 1000)
    assert "exactly right      0.00% of 1,000 unseen problems (0.00%, 0.38%)" in str(found)
    assert "bits per byte" not in str(found)


def test_what_is_right_in_one_pass_is_what_is_answered_greedily():
    task = TASKS["brackets"]
    model, source = GPT(task.config()).eval(), Problems(task, 1)
    y, end = task.tokenizer.encode("y")[0], task.tokenizer.eot_token
    with torch.no_grad():  # answers "y" to whatever is asked, and ends
        for parameter in (*model.h.parameters(), model.wte.weight, model.wpe.weight):
            parameter.zero_()
        for position, token, channel in ((task.lengths[0] - 1, y, 0), (task.lengths[0], end, 1)):
            model.wte.weight[token, channel] = 1.0
            model.wpe.weight[position, channel] = 10.0
    right = assess(model, source.held_out()).right
    assert 0.4 < right < 0.6  # as many as are balanced
    assert right == task.accuracy(model, count=1000, seed=SHOWN)


@pytest.mark.parametrize(
    ("share", "count", "low", "high"),
    [(1.0, 1000, 0.99617, 1.0), (0.5, 100, 0.40383, 0.59617), (0.0, 10, 0.0, 0.27753)],
)
def test_a_shares_interval_is_wilsons(share, count, low, high):
    assert share_interval(share, count) == pytest.approx((low, high), abs=1e-5)
