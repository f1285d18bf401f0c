"""Fast operations that do two things at once, or one in pieces, give what each alone would."""

from __future__ import annotations

import pytest
import torch
from torch.nn.modules.module import register_module_forward_hook

from minigpt.model import Linear
from minigpt.numerics import fast, row_ops
from minigpt.numerics.base import ACTIVATION, attend, set_ops
from minigpt.numerics.copies import COPY_FROM, Packed, pack
from minigpt.training import lora

FEW_ULP = 2e-6  # a fused kernel computes tanh and erf with polynomials of its own

needs_packed = pytest.mark.skipif(
    pack(torch.zeros(16, 16)) is None, reason="torch has no packed products here"
)


@pytest.fixture
def layer():
    torch.manual_seed(0)
    linear = Linear(256, COPY_FROM // 256)
    torch.nn.init.normal_(linear.weight, std=0.1)
    torch.nn.init.normal_(linear.bias)
    set_ops(linear, row_ops("fast"))
    return linear


@pytest.fixture
def fused(monkeypatch):
    """The activations that were computed together with a product."""
    seen: list[str] = []
    honest = Packed.activated

    def spy(self, x, bias, name):
        seen.append(name)
        return honest(self, x, bias, name)

    monkeypatch.setattr(Packed, "activated", spy)
    return seen


@needs_packed
@pytest.mark.parametrize("name", Packed.THEN)
@pytest.mark.parametrize("rows", [2, 37])
@torch.inference_mode()
def test_a_product_and_its_activation_at_once_are_one_after_the_other(layer, fused, name, rows):
    x = torch.randn(1, rows, 256)
    got = layer.ops.activated(layer, x, name)
    assert fused == [name]
    torch.testing.assert_close(got, ACTIVATION[name](layer(x)), rtol=FEW_ULP, atol=FEW_ULP)


@pytest.mark.parametrize("name", ACTIVATION)
@torch.inference_mode()
def test_what_is_no_number_stays_none(layer, name):
    x = torch.randn(1, 5, 256)
    x[0, 2, 7] = torch.nan
    assert layer.ops.activated(layer, x, name).isnan().all(-1).tolist() == [[0, 0, 1, 0, 0]]


@torch.no_grad()
def test_autocast_may_begin_at_any_time(layer):
    x = torch.randn(1, 5, 256)
    want = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = layer(x.bfloat16())
    assert (got - want).abs().max() < 0.05 * want.abs().max()  # bfloat16 has 8 bits


@needs_packed
@torch.inference_mode()
def test_whoever_listens_to_the_layer_hears_the_product(layer, fused):
    heard, x = [], torch.randn(1, 5, 256)
    want = layer(x)
    layer.register_forward_hook(lambda module, inputs, output: heard.append(output))
    layer.ops.activated(layer, x, "gelu_new")
    assert torch.equal(heard[0], want)
    assert not fused


class Doubled(Linear):
    def forward(self, x):
        return 2 * super().forward(x)


@needs_packed
@pytest.mark.parametrize(
    "change", ["a subclass", "an adapter", "a method", "a global hook", "other operations"]
)
@torch.inference_mode()
def test_a_layer_that_does_more_is_asked_itself(layer, fused, change, request):
    ops, x = layer.ops, torch.randn(1, 5, 256)
    if change == "a subclass":
        layer.__class__ = Doubled
    elif change == "an adapter":
        layer = lora.Adapted(layer, rank=2, scale=1.0)
        layer.lora_b.normal_()
    elif change == "a method":
        layer.forward = lambda x: x
    elif change == "a global hook":
        request.addfinalizer(
            register_module_forward_hook(lambda module, inputs, output: 2 * output).remove
        )
    else:
        set_ops(layer, row_ops("exact"))
    got = ops.activated(layer, x, "gelu_new")
    assert torch.equal(got, ACTIVATION["gelu_new"](layer(x)))
    assert not fused


@pytest.mark.parametrize("T", [fast.PIECEWISE.start, 300, fast.PIECEWISE.stop - 1])
@pytest.mark.parametrize("kv_heads", [4, 1])
def test_attention_in_pieces_is_attention(monkeypatch, T, kv_heads):
    torch.manual_seed(T)
    q, (k, v) = torch.randn(2, 4, T, 8), torch.randn(2, 2, kv_heads, T + 30, 8)
    pieces, honest = [], fast._in_pieces
    monkeypatch.setattr(fast, "_in_pieces", lambda *a: pieces.append(1) or honest(*a))
    got = row_ops("fast").attention(q, k, v, [0, 0], 0.3, 0.0)
    want = attend(q, k[:, :, :T], v[:, :, :T], [0, 0], 0.3)
    assert pieces
    torch.testing.assert_close(got, want)
