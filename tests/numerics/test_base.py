"""The formula of attention, and what both sets of operations must do."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from minigpt import MinigptError
from minigpt.config import ACTIVATIONS
from minigpt.numerics import row_ops
from minigpt.numerics.base import ACTIVATION, attend, attention_weights, whole_blocks
from minigpt.numerics.copies import Copies
from minigpt.numerics.fast import FastOps


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
    got = row_ops(numerics).linear(x, weight, bias, Copies())
    want = (x.double() @ weight.double() + bias).float()
    torch.testing.assert_close(got, want, atol=1e-3, rtol=1e-5)  # float32 sums of 600 terms


def heads(B: int, count: int, total: int):
    """Queries (B, 4, count, 8), keys and values (B, 2, total, 8)."""
    return torch.randn(B, 4, count, 8), torch.randn(B, 2, total, 8), torch.randn(B, 2, total, 8)


class TestAttend:
    """The formula, against which every quicker way is tested, is itself that of the paper."""

    STARTS = (3, 0)  # two rows, the second shorter

    def test_is_the_mean_of_the_values_weighted_by_the_softmax_of_the_scores(self):
        q, k, v = heads(2, 2, 5)
        got = attend(q, k, v, self.STARTS, 0.3)
        for b, h, t in itertools.product(range(2), range(4), range(2)):
            seen = self.STARTS[b] + t + 1  # keys up to the query's own position
            group = h // 2  # heads 0 and 1 share the first key/value head, 2 and 3 the second
            powers = [math.exp(0.3 * float(q[b, h, t] @ k[b, group, s])) for s in range(seen)]
            mean = sum(p * v[b, group, s] for s, p in enumerate(powers)) / sum(powers)
            torch.testing.assert_close(got[b, h, t], mean)

    def test_weights_sum_to_one_and_the_future_has_none(self):
        q, k, _ = heads(2, 2, 5)
        weights = attention_weights(q, k, self.STARTS, 0.3)
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 2))
        assert (weights[0, :, 0, 4:] == 0).all() and (weights[0, :, 0, :4] > 0).all()
        assert (weights[1, :, 1, 2:] == 0).all() and (weights[1, :, 1, :2] > 0).all()

    def test_drops_weights_when_asked_to(self):
        q, k, v = heads(1, 5, 5)
        torch.manual_seed(0)
        assert not torch.equal(attend(q, k, v, [0], 0.3, 0.5), attend(q, k, v, [0], 0.3))


@pytest.mark.parametrize("numerics", ["fast", "exact"])
@pytest.mark.parametrize("start", [0, 1, 63, 64, 127, 128, 130])
@pytest.mark.parametrize("count", [1, 3, 140])
def test_attention_is_the_formula(numerics, start, count):
    q, k, v = heads(2, count, start + count)
    got = row_ops(numerics).attention(q, k, v, [start] * 2, 0.3, 0.0)
    want = attend(q.double(), k.double(), v.double(), [start] * 2, 0.3)
    torch.testing.assert_close(got, want.float(), atol=1e-5, rtol=1e-5)  # float32 sums


@pytest.mark.parametrize("numerics", ["fast", "exact"])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("starts", [(5, 0, 3), (130, 127, 128), (131, 2, 140), (63, 64, 65)])
def test_attention_of_rows_of_different_lengths_is_the_formula(numerics, count, starts):
    q, k, v = heads(3, count, max(starts) + count)
    got = row_ops(numerics).attention(q, k, v, starts, 0.3, 0.0)
    want = attend(q.double(), k.double(), v.double(), starts, 0.3)
    torch.testing.assert_close(got, want.float(), atol=1e-5, rtol=1e-5)  # float32 sums


def test_whole_blocks_are_the_next_multiple():
    assert [whole_blocks(n) for n in (1, 63, 64, 65)] == [64, 64, 64, 128]


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


def test_exact_log_probabilities_of_many_rows_are_those_of_each_alone():
    logits = 5 * torch.randn(37, 211, requires_grad=True)
    alone = [row.log_softmax(-1) for row in logits.detach()]
    assert torch.equal(row_ops("exact").log_softmax(logits).detach(), torch.stack(alone))


@pytest.mark.parametrize("numerics", ["fast", "exact"])
@pytest.mark.parametrize("shape", [(40, 30), (600, 500)])  # too small to be packed, and not
def test_gradients_flow_through_a_product_even_where_it_is_packed(numerics, shape):
    x, weight, bias = torch.randn(3, shape[0]), torch.randn(shape), torch.randn(shape[1])
    copies, ops = Copies(), row_ops(numerics)
    ops.linear(x, weight, bias, copies)  # inference first
    for tensor in (x, weight, bias):
        tensor.requires_grad_()
    ops.linear(x, weight, bias, copies).sum().backward()
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


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
@pytest.mark.parametrize("numerics", ["fast", "exact"])
@pytest.mark.parametrize("starts", [(0, 0), (5, 5), (5, 2)])
def test_what_is_no_number_reaches_no_earlier_query(numerics, number, starts):
    q, k, v = heads(2, 9, 128)
    want = attend(q, k, v, starts, 0.3)
    k[1, :, starts[1] + 6] = number  # the seventh of the new ones, in the second row
    v[1, :, starts[1] + 6] = number
    with torch.no_grad():
        got = row_ops(numerics).attention(q, k, v, starts, 0.3, 0.0)
    torch.testing.assert_close(got[0], want[0])
    torch.testing.assert_close(got[1, :, :6], want[1, :, :6])
    assert not got[1, :, 6:].isfinite().any()


@pytest.mark.parametrize("numerics", ["fast", "exact"])
@pytest.mark.parametrize("T", [6, 100, 300])
def test_nor_does_the_second_one_where_the_first_one_weighs_nothing(numerics, T):
    q, k, v = heads(1, T, T)
    q[..., 0] = q[..., 0].abs()
    k[:, :, 1, 0], k[:, :, T - 2, 0] = -torch.inf, torch.inf
    want = attend(q[:, :, : T - 2], k[:, :, : T - 2], v[:, :, : T - 2], [0], 0.3)
    assert want.isfinite().all()
    with torch.no_grad():
        got = row_ops(numerics).attention(q, k, v, [0], 0.3, 0.0)
    torch.testing.assert_close(got[:, :, : T - 2], want)
    assert not got[:, :, T - 2 :].isfinite().any()


@pytest.mark.parametrize("numerics", ["fast", "exact"])
def test_sums_that_overflow_are_no_missing_numbers(numerics):
    q, k, v = heads(1, 128, 128)
    v[:] = 1e36
    with torch.no_grad():
        got = row_ops(numerics).attention(0 * q, k, v, [0], 0.3, 0.0)
    torch.testing.assert_close(got, torch.full_like(got, 1e36))
