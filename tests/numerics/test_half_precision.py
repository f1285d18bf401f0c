"""Attention for training in half precision: the same function as the fused kernel's."""

from __future__ import annotations

import pytest
import torch

from minigpt.numerics.base import attend
from minigpt.numerics.fast import FastOps
from minigpt.numerics.half_precision import TrainingOps

STARTS = (0, 0)  # of both rows


def heads(G: int = 4, T: int = 9, dtype: torch.dtype = torch.bfloat16):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, n, T, 8) for n in (4, G, G))
    return [part.to(dtype).requires_grad_() for part in (q, k, v)]


def gradients(attention, parts):
    y = attention(*parts, STARTS, 0.3, 0.0)
    return [y, *torch.autograd.grad(y.float().square().sum(), parts)]


@pytest.mark.parametrize("G", [4, 2, 1])
def test_values_and_gradients_are_those_of_the_formula_in_float32(G):
    want = gradients(attend, [p.detach().float().requires_grad_() for p in heads(G)])
    for found, wanted in zip(gradients(TrainingOps().attention, heads(G)), want, strict=True):
        # bfloat16 keeps 8 bits, and four roundings follow one another.
        torch.testing.assert_close(found.float(), wanted, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("G", [4, 2, 1])
def test_the_fused_kernel_has_the_gradients_of_the_formula_too(G):
    fused, plain = (
        gradients(attention, heads(G, dtype=torch.float32))
        for attention in (FastOps().attention, attend)
    )
    for found, wanted in zip(fused, plain, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_no_query_sees_a_later_key():
    q, k, v = heads()
    before = TrainingOps().attention(q, k, v, STARTS, 0.3, 0.0)
    with torch.no_grad():
        k[:, :, 5:], v[:, :, 5:] = 7, 7
    after = TrainingOps().attention(q, k, v, STARTS, 0.3, 0.0)
    assert torch.equal(after[:, :, :5], before[:, :, :5])
    assert not torch.equal(after[:, :, 5:], before[:, :, 5:])


def test_weights_are_dropped_in_training():
    parts = heads()
    kept, dropped = (TrainingOps().attention(*parts, STARTS, 0.3, p) for p in (0.0, 0.5))
    assert not torch.equal(kept, dropped)


def test_in_float32_it_is_the_fused_kernel():
    parts = heads(dtype=torch.float32)
    ours, fused = (ops.attention(*parts, STARTS, 0.3, 0.0) for ops in (TrainingOps(), FastOps()))
    assert torch.equal(ours, fused)
