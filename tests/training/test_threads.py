"""How many threads a small model gets."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from minigpt import GPT, GPTConfig
from minigpt.tokenizer import byte_tokenizer
from minigpt.training.data import Corpus
from minigpt.training.recipes import TrainConfig
from minigpt.training.sources import Text
from minigpt.training.threads import fewest, times_by_threads


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [({1: 1.0, 2: 0.95}, 1), ({1: 1.0, 2: 0.6}, 2), ({1: 1.0, 2: 5.0, 4: 0.5}, 4),
     ({1: 1.0, 2: 0.5, 4: 0.48}, 2), ({1: 1.0}, 1)],
)  # fmt: skip
def test_more_are_taken_where_they_save_a_tenth_of_the_time(seconds, expected):
    assert fewest(seconds) == expected


def test_trying_them_out_changes_nothing():
    torch.manual_seed(0)
    model = GPT(GPTConfig(257, 8, 16, 1, 2, resid_pdrop=0.5)).eval()
    tokens = np.arange(100, dtype=np.uint16) % 7
    source = Text(Corpus(byte_tokenizer(), tokens, tokens, 100), 8, seed=1)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        times = times_by_threads(model, source, TrainConfig(batch_size=4, n_positions=8))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    assert list(times) == [1, 2, 3]
    assert all(seconds > 0 for seconds in times.values())
    assert torch.equal(torch.get_rng_state(), before)
    assert not model.training
    assert all(p.grad is None for p in model.parameters())
