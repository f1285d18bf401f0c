"""A model from a checkpoint and back: what would be lost on the way is refused."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from minigpt import GPT
from minigpt.support.errors import MinigptError


def test_a_head_untied_behind_the_configurations_back_is_not_dropped(model, tmp_path):
    model.lm_head.weight = nn.Parameter(model.wte.weight + 1)
    with pytest.raises(MinigptError, match="no longer the token embedding"):
        model.save_pretrained(tmp_path / "lost")
    assert not (tmp_path / "lost").exists()

    model.config = dataclasses.replace(model.config, tie_word_embeddings=False)
    model.save_pretrained(tmp_path / "kept")
    again = GPT.from_pretrained(tmp_path / "kept")
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)


def test_a_tied_head_with_a_tensor_of_its_own_and_the_same_numbers_is_saved(model, tmp_path):
    model.lm_head.weight = nn.Parameter(model.wte.weight.detach().clone())
    model.save_pretrained(tmp_path / "tied")
    again = GPT.from_pretrained(tmp_path / "tied")
    assert again.lm_head.weight is again.wte.weight
