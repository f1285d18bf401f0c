"""LoRA: small products are trained, and merged they give the same model."""

from __future__ import annotations

import torch

from minigpt import GPT
from minigpt.training.lora import Adapted, adapt, adapted, merged

NAMES = ("attn.c_attn", "mlp.c_fc")


def trained(model: GPT) -> GPT:
    """As if some steps had been taken: B is no longer zero."""
    adapt(model, NAMES, rank=2, scale=0.5)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, Adapted):
                module.lora_b.normal_()
    return model


def test_an_adapted_model_starts_as_it_was(model, text):
    before = model(text(2, 9))
    adapt(model, NAMES, rank=2, scale=0.5)
    assert torch.equal(model(text(2, 9)), before)


def test_only_the_products_are_trained(model):
    adapt(model, NAMES, rank=2, scale=0.5)
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    assert names == {f"h.{layer}.{name}.lora_{half}" for layer in (0, 1) for name in NAMES
                     for half in "ab"}  # fmt: skip


def test_merged_it_is_a_plain_model_that_computes_the_same(make_model, text):
    model = trained(make_model()).eval()
    plain = make_model()
    plain.load_state_dict(merged(model.state_dict(), 0.5))
    assert not torch.equal(make_model()(text(2, 9)), plain(text(2, 9)))
    # x (W + AB) and xW + xAB round differently.
    torch.testing.assert_close(plain(text(2, 9)), model(text(2, 9)), rtol=1e-4, atol=1e-4)


def test_what_merging_cannot_undo_is_kept_apart(make_model):
    model = trained(make_model())
    tensors = model.state_dict()
    again = trained(make_model())
    again.load_state_dict({**merged(tensors, 0.5), **adapted(tensors)})
    assert all(torch.equal(tensor, tensors[n]) for n, tensor in again.state_dict().items())
