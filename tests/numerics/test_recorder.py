"""The recorder: it sees every operation, changes none, and leaves the model as it was."""

from __future__ import annotations

import pytest
import torch

from minigpt.numerics.base import row_modules
from minigpt.numerics.copies import pack
from minigpt.numerics.recorder import recording


def test_sees_every_operation_in_order(exact, text):
    with recording(exact) as log:
        exact(text(1, 5))
    first_layer = ["ln_1", "attn.c_attn", "attn", "attn.c_proj", "ln_2", "mlp.c_fc",
                   "mlp.activation", "mlp.c_proj"]  # fmt: skip
    assert list(log)[:8] == [f"h.0.{name}" for name in first_layer]
    assert list(log)[-2:] == ["ln_f", "lm_head"]


def test_changes_no_bits(exact, text):
    want = exact(text(1, 20))
    with recording(exact):
        assert torch.equal(exact(text(1, 20)), want)


@pytest.fixture
def wide(make_model):
    """A model in fast numerics whose MLPs compute product and activation in one call."""
    if pack(torch.zeros(16, 16)) is None:
        pytest.skip("torch has no packed products here")
    return make_model(n_embd=384, n_layer=1)


@torch.inference_mode()
def test_changes_no_bits_where_an_activation_is_part_of_a_product(wide, text):
    want = wide(text(1, 20))
    with recording(wide) as log:
        assert torch.equal(wide(text(1, 20)), want)
    mlp = log["h.0.mlp.activation"]
    assert torch.equal(mlp.output, log["h.0.mlp.c_proj"].arguments[0])
    assert torch.equal(mlp.again(7, 12), mlp.rows()[7:12])
    apart = mlp.ops.activation(log["h.0.mlp.c_fc"].output, wide.config.activation_function)
    torch.testing.assert_close(mlp.output, apart)


@torch.inference_mode()
def test_can_repeat_a_part_of_what_it_saw(exact, text):
    with recording(exact) as log:
        exact(text(1, 20))
    for name in ("h.1.mlp.c_fc", "h.0.attn", "h.1.mlp.activation", "ln_f"):
        assert torch.equal(log[name].again(7, 12), log[name].rows()[7:12])


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_leaves_the_model_as_it_was(exact, text, error):
    before = {name: module.ops for name, module in row_modules(exact)}
    try:
        with recording(exact):
            exact(text(1, 5))
            if error is not None:
                raise error
    except (RuntimeError, KeyboardInterrupt):
        pass
    assert {name: module.ops for name, module in row_modules(exact)} == before


def test_what_is_no_layers_goes_to_the_same_operations(exact, monkeypatch):
    asked = []
    monkeypatch.setattr(type(exact.ops), "log_softmax", lambda ops, x: asked.append(ops) or x)
    with recording(exact):
        exact.ops.log_softmax(torch.ones(2, 3))
    assert asked == [exact.ops]
