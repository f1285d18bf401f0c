"""The fast set and the packed weights; the exact set is in test_exact.py."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F

from minigpt import MinigptError
from minigpt.config import ACTIVATIONS
from minigpt.numerics.base import ACTIVATION, FastOps, Packed, plain_linear, row_ops


def test_sets_are_found_by_name():
    assert (row_ops("fast").name, row_ops("exact").name) == ("fast", "exact")


def test_an_unknown_set_is_refused():
    with pytest.raises(MinigptError, match="needed 'fast' or 'exact'"):
        row_ops("precise")


@pytest.mark.parametrize("numerics", ["fast", "exact"])
@pytest.mark.parametrize("rows", [1, 2, 7, 130])
@pytest.mark.parametrize("shape", [(40, 30), (600, 500)])
def test_a_product_is_the_product(numerics, rows, shape):
    x, weight, bias = torch.randn(rows, shape[0]), torch.randn(shape), torch.randn(shape[1])
    got = row_ops(numerics).linear(x, weight, bias, Packed())
    want = (x.double() @ weight.double() + bias).float()
    torch.testing.assert_close(got, want, atol=1e-3, rtol=1e-5)  # float32 sums of 600 terms


@pytest.mark.parametrize("numerics", ["fast", "exact"])
@pytest.mark.parametrize("start", [0, 1, 127, 128, 130])
@pytest.mark.parametrize("count", [1, 3, 140])
def test_attention_is_the_textbook_formula(numerics, start, count):
    total = start + count
    q, k, v = torch.randn(2, 4, count, 8), torch.randn(2, 2, total, 8), torch.randn(2, 2, total, 8)
    got = row_ops(numerics).attention(q, k, v, [start] * len(q), 0.3, 0.0)
    keys, values = k.repeat_interleave(2, 1).double(), v.repeat_interleave(2, 1).double()
    scores = 0.3 * q.double() @ keys.transpose(-1, -2)
    later = torch.arange(total)[None] > torch.arange(start, total)[:, None]
    want = scores.masked_fill(later, -torch.inf).softmax(-1) @ values
    torch.testing.assert_close(got, want.float(), atol=1e-5, rtol=1e-5)


def test_fast_attention_does_not_look_into_the_room_behind_the_keys():
    q, k, v = torch.randn(1, 2, 1, 8), torch.randn(1, 2, 20, 8), torch.randn(1, 2, 20, 8)
    k[:, :, 5:], v[:, :, 5:] = 1e9, torch.nan
    assert FastOps().attention(q, k, v, [4] * len(q), 1.0, 0.0).isfinite().all()


@pytest.mark.parametrize("numerics", ["fast", "exact"])
def test_a_norm_is_the_textbook_formula(numerics):
    x, weight, bias = 3 + torch.randn(2, 7, 40), torch.randn(40), torch.randn(40)
    got = row_ops(numerics).layer_norm(x, weight, bias, 1e-2)
    centred = x.double() - x.double().mean(-1, keepdim=True)
    want = centred / (centred.square().mean(-1, keepdim=True) + 1e-2).sqrt() * weight + bias
    torch.testing.assert_close(got, want.float(), atol=1e-5, rtol=1e-5)  # float32 sums of 40 terms


@pytest.mark.parametrize("numerics", ["fast", "exact"])
@pytest.mark.parametrize("shape", [(40, 30), (600, 500)])  # too small to be packed, and not
def test_gradients_flow_through_a_product_even_where_it_is_packed(numerics, shape):
    x, weight, bias = torch.randn(3, shape[0]), torch.randn(shape), torch.randn(shape[1])
    packed, ops = Packed(), row_ops(numerics)
    ops.linear(x, weight, bias, packed)  # inference first
    for tensor in (x, weight, bias):
        tensor.requires_grad_()
    ops.linear(x, weight, bias, packed).sum().backward()
    ones = torch.ones(3, shape[1])
    torch.testing.assert_close(x.grad, ones @ weight.T.detach(), atol=1e-3, rtol=1e-5)
    torch.testing.assert_close(weight.grad, x.T.detach() @ ones, atol=1e-3, rtol=1e-5)
    assert torch.equal(bias.grad, torch.full_like(bias, 3))


def test_every_activation_of_the_config_is_there():
    assert set(ACTIVATION) == set(ACTIVATIONS)


def test_gpt2s_activation_is_the_tanh_form():
    x = torch.linspace(-4, 4, 50)
    inner = (2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)
    torch.testing.assert_close(ACTIVATION["gelu_new"](x), 0.5 * x * (1 + inner.tanh()))
    assert not torch.equal(ACTIVATION["gelu_new"](x), F.gelu(x))


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
