"""What a run came to: losses beside what counting would do, per byte, and the work done."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from minigpt import GPT, GPTConfig
from minigpt.tokenizer import byte_tokenizer
from minigpt.training.data import Corpus
from minigpt.training.recipes import TrainConfig
from minigpt.training.sources import Text
from minigpt.training.state import State
from minigpt.training.summary import Summary, baselines, flops, peak_flops, summarise

CPU = torch.device("cpu")


def test_baselines_by_hand():
    unigram, bigram = baselines(np.array([0, 0, 1, 0]), np.array([0, 0, 1]), 2)
    # Counts plus one: 4 and 2 of 6; after a 0: 2 and 2 of 4. Held out: 0 after 0, 1 after 0.
    assert unigram == pytest.approx(-(math.log(4 / 6) + math.log(2 / 6)) / 2)
    assert bigram == pytest.approx(-2 * math.log(2 / 4) / 2)


def test_a_bigram_is_the_token_given_the_one_before_and_not_the_other_way_round():
    training = np.array([0, 1, 0, 2] * 1000)  # after 0 one of two; after 1 and 2 always 0
    _, bigram = baselines(training, np.array([1, 0, 2, 0]), 3)
    assert bigram == pytest.approx(math.log(2) / 3, abs=0.01)


def test_pairs_of_a_large_vocabulary_are_not_counted():
    assert baselines(np.array([0, 1]), np.array([0, 1]), 50257)[1] is None


def test_flops_are_six_for_each_weight_of_a_product_and_attention_besides():
    config = GPTConfig(vocab_size=11, n_positions=8, n_embd=4, n_layer=2, n_head=2)
    named = [(n, p) for n, p in GPT(config).named_parameters() if n != "wpe.weight"]
    weights = sum(p.numel() for _, p in named if p.ndim == 2)
    assert flops(config, 8) == 6 * weights + 6 * 2 * (2 * 4 * 8)


def test_the_peak_of_a_processor_is_not_known():
    assert peak_flops(CPU, "float32") is None


@pytest.fixture
def summary(tmp_path) -> Summary:
    """Of a model that gives each of 257 tokens the same probability."""
    model = GPT(GPTConfig(257, 8, 16, 1, 2))
    with torch.no_grad():
        model.wte.weight.zero_()
    model.save_pretrained(tmp_path)
    training = np.arange(500, dtype=np.uint16) % 7
    source = Text(Corpus(byte_tokenizer(), training, training[:100], 200), 8, seed=1)
    config = TrainConfig(batch_size=4, n_positions=8)
    return summarise(tmp_path, source, config, State(10, best_step=5, seconds=2.0), CPU)


def test_the_loss_is_told_per_token_per_byte_and_as_perplexity(summary):
    assert summary.loss == pytest.approx(math.log(257), rel=1e-6)
    assert summary.perplexity == pytest.approx(257, rel=1e-5)
    assert summary.bits_per_byte == pytest.approx(math.log2(257) / 2, rel=1e-6)  # 2 bytes a token


def test_the_speed_is_tokens_over_the_seconds_of_training(summary):
    assert summary.tokens_per_second == 10 * 4 * 8 / 2


def test_what_is_not_known_is_not_told(summary):
    assert "utilisation" not in str(summary)
    assert "exactly right" not in str(summary)
    assert "utilisation        12.3%" in str(replace(summary, utilisation=0.123))
    assert "exactly right      99.50%" in str(replace(summary, accuracy=0.995))
