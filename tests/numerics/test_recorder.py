"""The recorder: it sees every operation, changes none, and leaves the model as it was."""

from __future__ import annotations

import pytest
import torch

from minigpt.numerics.base import row_modules
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
