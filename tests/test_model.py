"""The model: shapes, initialisation, heads, caches, errors (against transformers: test_weights)."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from minigpt import GPT, GPTConfig, MinigptError
from minigpt.model import Block


def test_logits_are_given_for_every_position(model, text):
    assert model(text(2, 7)).shape == (2, 7, 211)


def test_next_logits_are_the_last_row_of_forward(make_model, text):
    model = make_model(numerics="exact")
    tokens = text(3, 20)
    assert torch.equal(model.next_logits(tokens), model(tokens)[:, -1])


def test_a_position_never_sees_a_later_token(exact, text):
    tokens = text(1, 30)
    changed = tokens.clone()
    changed[0, 20:] = 0
    assert torch.equal(exact(tokens)[:, :20], exact(changed)[:, :20])


def test_a_position_sees_every_earlier_token(model, text):
    tokens = text(1, 30)
    for t in range(29):
        changed = tokens.clone()
        changed[0, t] = (changed[0, t] + 1) % 211
        assert not torch.equal(model(tokens)[0, -1], model(changed)[0, -1])


@pytest.mark.parametrize("numerics", ["fast", "exact"])
def test_cached_logits_one_by_one_agree_with_uncached(make_model, text, numerics):
    model, tokens = make_model(numerics=numerics), text(2, 40)
    cache = model.new_cache(batch_size=2)
    steps = [model(tokens[:, t : t + 1], cache=cache) for t in range(40)]
    torch.testing.assert_close(torch.cat(steps, 1), model(tokens), atol=1e-4, rtol=0)


@pytest.mark.parametrize("cuts", [[1, 39], [39, 1], [7, 1, 1, 20, 11], [40]])
def test_cached_logits_in_chunks_agree_with_uncached(model, text, cuts):
    tokens, cache = text(2, 40), model.new_cache(batch_size=2)
    chunks = [model(chunk, cache=cache) for chunk in tokens.split(cuts, dim=1)]
    torch.testing.assert_close(torch.cat(chunks, 1), model(tokens), atol=1e-4, rtol=0)


@pytest.mark.parametrize("numerics", ["fast", "exact"])
@pytest.mark.parametrize("n_kv_head", [1, 2])
def test_grouped_heads_are_full_heads_with_repeated_keys_and_values(
    make_model, text, n_kv_head, numerics
):
    grouped = make_model(numerics=numerics, n_embd=64, n_head=4, n_kv_head=n_kv_head)
    full = make_model(numerics=numerics, n_embd=64, n_head=4)
    state = grouped.state_dict()
    for name in [name for name in state if "c_attn" in name]:
        q, k, v = state[name].split([64, 16 * n_kv_head, 16 * n_kv_head], dim=-1)
        repeated = [x.unflatten(-1, (n_kv_head, 16)).repeat_interleave(4 // n_kv_head, -2)
                    .flatten(-2) for x in (k, v)]  # fmt: skip
        state[name] = torch.cat([q, *repeated], -1)
    full.load_state_dict(state)
    tokens = text(2, 30)
    torch.testing.assert_close(grouped(tokens), full(tokens), atol=1e-4, rtol=0)


def test_grouped_heads_shrink_the_cache_by_their_ratio(make_model):
    full = make_model(n_embd=64, n_head=4).new_cache()
    grouped = make_model(n_embd=64, n_head=4, n_kv_head=1).new_cache()
    assert full.nbytes == 4 * grouped.nbytes


def test_initial_weights_have_gpt2s_spread():
    model = GPT(GPTConfig(vocab_size=500, n_positions=64, n_embd=256, n_layer=8, n_head=4))
    assert model.wte.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.h[3].mlp.c_fc.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.h[3].mlp.c_proj.weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)
    assert model.h[3].attn.c_proj.weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)


def test_an_untrained_model_knows_nothing(text):
    model = GPT(GPTConfig(vocab_size=211, n_positions=64, n_embd=48, n_layer=2, n_head=3)).eval()
    tokens = text(4, 60)
    loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(211), rel=0.02)


def test_the_124m_preset_has_124_million_parameters():
    with torch.device("meta"):
        model = GPT(GPTConfig.preset("gpt2"))
    assert sum(p.numel() for p in model.parameters()) == 124_439_808


def test_dropout_works_in_training_only(make_model, text):
    model, tokens = make_model(attn_pdrop=0.5, resid_pdrop=0.0, embd_pdrop=0.0), text(1, 20)
    assert torch.equal(model(tokens), model(tokens))
    model.train()
    assert not torch.equal(model(tokens), model(tokens))


@pytest.mark.parametrize("numerics", ["fast", "exact"])
def test_gradients_are_those_of_the_plain_formula(make_model, text, numerics):
    tokens = text(2, 33)
    reference, model = make_model().double(), make_model(numerics=numerics)
    for m in (reference, model):
        F.cross_entropy(m(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()).backward()
    for (name, want), got in zip(reference.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(got.grad.double(), want.grad, atol=1e-5, rtol=1e-3, msg=name)


def test_a_weight_changed_in_place_is_noticed_after_inference(make_model, text):
    model, tokens = make_model(), text(1, 10)
    with torch.inference_mode():
        model(tokens)  # packs the weights
        with torch.no_grad():
            model.h[0].mlp.c_proj.weight.zero_()
            model.h[0].mlp.c_proj.bias.zero_()
        changed = model(tokens)
    fresh = make_model()
    fresh.load_state_dict(model.state_dict())
    torch.testing.assert_close(changed, fresh(tokens), atol=1e-5, rtol=0)


@pytest.mark.parametrize("change", ["half", "load", "replace"])
def test_a_weight_replaced_is_noticed_after_inference(make_model, text, change):
    model, tokens = make_model(), text(1, 10)
    other = make_model(initializer_range=0.05)
    with torch.inference_mode():
        model(tokens)
    if change == "half":
        model, other = model.bfloat16(), make_model().bfloat16()
    elif change == "load":
        model.load_state_dict(other.state_dict())
    else:
        for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
            mine.data = theirs.data.clone()
    with torch.inference_mode():
        assert torch.equal(model(tokens), other(tokens))


@pytest.mark.parametrize("settings", [{"fused": True}, {"foreach": True}, {"foreach": False}])
def test_a_weight_that_an_optimizer_changed_is_noticed(make_model, text, settings):
    model, tokens = make_model(numerics="exact", n_embd=96), text(1, 20)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, **settings)
    for _ in range(2):
        with torch.inference_mode():
            model(tokens)  # packs the weights
        model(tokens).square().mean().backward()
        with torch.inference_mode():
            model(tokens)
        optimizer.step()
    fresh = make_model(numerics="exact", n_embd=96)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(model(tokens), fresh(tokens))


def test_a_copied_model_is_independent(exact, text):
    tokens = text(1, 10)
    before = exact(tokens)
    twin = copy.deepcopy(exact)
    with torch.no_grad():
        twin.wte.weight.add_(1)
    assert torch.equal(exact(tokens), before)
    assert not torch.equal(twin(tokens), before)


def test_a_cached_pass_records_no_gradients(model, text):
    assert not model(text(1, 5), cache=model.new_cache()).requires_grad


@pytest.mark.parametrize(
    ("tokens", "sentence"),
    [
        (torch.zeros(1, 5), "tokens are torch.float32, needed a \\(B, T\\) tensor of int64"),
        ([[1, 2]], "tokens are list, needed"),
        (torch.zeros(5, dtype=torch.long), "shape \\(5,\\), needed \\(B, T\\)"),
        (torch.zeros(1, 0, dtype=torch.long), "at least one row and one token"),
        (torch.full((1, 3), 211), "token 211 is outside the vocabulary, needed ids from 0 to 210"),
        (torch.full((1, 3), -1), "token -1 is outside the vocabulary"),
        (torch.zeros(1, 161, dtype=torch.long), "161 tokens do not fit the context of 160"),
    ],
)
def test_tokens_that_do_not_fit_are_refused_with_one_sentence(model, tokens, sentence):
    with pytest.raises(MinigptError, match=sentence):
        model(tokens)


def test_an_unknown_numerics_is_refused(model):
    with pytest.raises(MinigptError, match="numerics is 'quick', needed 'fast' or 'exact'"):
        model.numerics = "quick"


def test_by_default_evaluation_is_exact_and_training_is_fast():
    model = GPT(GPTConfig(vocab_size=11, n_positions=8, n_embd=8, n_layer=1, n_head=1))
    assert model.train().numerics == "fast"
    assert model.eval().numerics == "exact"
    assert model.h[0].attn.c_attn.ops.name == "exact"


@pytest.mark.parametrize("numerics", ["fast", "exact"])
def test_chosen_numerics_stay(make_model, numerics):
    model = make_model()
    model.numerics = numerics
    assert model.train().numerics == numerics
    assert model.eval().numerics == numerics


@pytest.mark.parametrize("numerics", ["fast", "exact"])
def test_a_block_that_is_added_computes_as_the_others_do(make_model, text, numerics):
    model, tokens = make_model(numerics), text(1, 12)
    before, three = model(tokens), make_model(numerics, n_layer=3)
    for own, other in zip(model.h, three.h, strict=False):
        own.load_state_dict(other.state_dict())
    for part in ("wte", "wpe", "ln_f"):
        getattr(model, part).load_state_dict(getattr(three, part).state_dict())
    block = Block(model.config, 2).eval()
    block.load_state_dict(three.h[2].state_dict())
    model.h.append(block)
    cache = model.new_cache()
    cached = torch.cat([model(part, cache=cache) for part in tokens.split(5, 1)], 1)
    assert torch.equal(model(tokens), three(tokens))
    assert not torch.equal(model(tokens), before)
    torch.testing.assert_close(
        cached, three(tokens), atol=0 if numerics == "exact" else 1e-4, rtol=0
    )
    with pytest.raises(MinigptError, match=r"h\.2"):  # not in the configuration
        model.save_pretrained("nowhere")


def test_a_model_without_its_last_block_is_one_of_fewer_layers(make_model, text):
    model, tokens = make_model("exact"), text(1, 12)
    del model.h[1]
    cache = model.new_cache()
    cached = torch.cat([model(part, cache=cache) for part in tokens.split(5, 1)], 1)
    assert torch.equal(cached, model(tokens))
