"""Packed weights: made once, never copied, and done without where there are none."""

from __future__ import annotations

import copy
import pickle

import torch

from minigpt.numerics.base import plain_linear
from minigpt.numerics.copies import Copies
from minigpt.numerics.fast import FastOps


def test_a_packed_weight_is_made_once():
    copies, weight = Copies(), torch.randn(32, 48)
    assert copies.packed(weight) is copies.packed(weight)


def test_a_packed_weight_is_neither_copied_nor_pickled():
    copies, weight = Copies(), torch.randn(32, 48)
    copies.packed(weight)
    for twin in (copy.deepcopy(copies), pickle.loads(pickle.dumps(copies))):
        assert not twin._made


def test_where_nothing_can_be_packed_the_plain_product_serves(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    x, weight = torch.randn(3, 600), torch.randn(600, 500)
    assert Copies().packed(weight) is None
    got = FastOps().linear(x, weight, None, Copies())
    assert torch.equal(got, plain_linear(x, weight, None))
