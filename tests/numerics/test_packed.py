"""Packed weights: made once, never copied, and done without where there are none."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from minigpt.numerics.base import plain_linear
from minigpt.numerics.fast import FastOps
from minigpt.numerics.packed import Packed


def test_a_packed_weight_is_made_once():
    packed, weight = Packed(), torch.randn(32, 48)
    assert packed.kernel(weight) is packed.kernel(weight)


def test_a_packed_weight_is_neither_copied_nor_pickled():
    packed, weight = Packed(), torch.randn(32, 48)
    packed.kernel(weight)
    for twin in (copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
        assert twin._kernel is None


def test_where_nothing_can_be_packed_the_plain_product_serves(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    x, weight = torch.randn(3, 600), torch.randn(600, 500)
    assert Packed().kernel(weight) is None
    got = FastOps().linear(x, weight, None, Packed())
    assert torch.equal(got, plain_linear(x, weight, None))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_follows_a_weight_that_was_made_in_inference_mode(mode):
    with torch.inference_mode():
        packed, weight = Packed(), torch.randn(600, 500)
        packed.kernel(weight)
        weight.mul_(3)
    with mode():
        x = torch.randn(3, 600)
        kernel = packed.kernel(weight)
        assert kernel is not None
        assert torch.allclose(kernel(x, None), x @ weight, atol=1e-3)  # sums in another order


def test_it_is_not_made_anew_when_another_model_learns():
    packed, weight = Packed(), torch.randn(600, 500)
    kernel = packed.kernel(weight)
    other = torch.nn.Linear(3, 3)
    other(torch.ones(3)).sum().backward()
    torch.optim.AdamW(other.parameters(), fused=True).step()
    assert packed.kernel(weight) is kernel
