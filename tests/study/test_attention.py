"""Heads read from outside: their keys are the cache's, their weights those that were used."""

from __future__ import annotations

import pytest
import torch

from minigpt import MinigptError
from minigpt.study.attention import read_head, read_heads


@pytest.fixture
def ids(text):
    return text(1, 30)[0].tolist()


def test_keys_and_values_are_those_of_the_cache(exact, ids):
    cache = exact.new_cache()
    exact(torch.tensor([ids]), cache=cache)
    for layer, heads in enumerate(read_heads(exact, ids)):
        keys, values = cache.layer(layer)
        assert torch.equal(heads.keys, keys[0])
        assert torch.equal(heads.values, values[0])
        assert heads.positions == list(range(30))


def test_weights_are_those_that_made_the_heads_output(make_model, ids):
    model = make_model(numerics="exact", n_kv_head=1, scale_attn_by_inverse_layer_idx=True)
    seen = []
    hook = model.h[1].attn.c_proj.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    (heads,) = read_heads(model, ids, [1])
    hook.remove()
    want = seen[-1][0].unflatten(-1, (3, 16)).transpose(0, 1)  # (H, T, D)
    # Added up in another order than in attention: float32 rounds at about 1e-7.
    assert torch.allclose(heads.weights @ heads.values, want, atol=1e-5)


def test_nothing_is_looked_at_that_comes_later(exact, ids):
    weights = read_heads(exact, ids)[0].weights
    assert torch.equal(weights, weights.tril())
    assert torch.allclose(weights.sum(-1), torch.ones(3, 30))


def test_of_a_cache_that_forgets_there_is_what_is_left(exact, ids):
    cache = exact.new_cache(kind="window", window=8, sinks=2)
    exact(torch.tensor([ids]), cache=cache)
    heads = read_heads(cache)[0]
    assert heads.positions == [0, 1, *range(22, 30)]
    assert torch.equal(heads.keys, cache.layer(0)[0][0])
    assert heads.weights.shape == (3, 30, 10)
    assert torch.allclose(heads.weights.sum(-1), torch.ones(3, 30))
    everything = read_heads(exact, ids)[0].weights[:, :, heads.positions]
    share = everything / everything.sum(-1, keepdim=True)  # of what is left, to each as before
    assert torch.allclose(heads.weights, share, atol=1e-6)


def test_all_heads_come_from_one_pass(exact, ids, monkeypatch):
    passes, forward = [], exact.forward
    monkeypatch.setattr(exact, "forward", lambda *args: passes.append(1) or forward(*args))
    assert len(read_heads(exact, ids)) == 2
    assert len(passes) == 1


def test_one_head_has_the_keys_of_its_group(make_model, ids):
    model = make_model(n_head=4, n_kv_head=2)
    (heads,) = read_heads(model, ids, [1])
    for head in range(4):
        keys, values, weights, positions = read_head(model, ids, 1, head)
        assert torch.equal(keys, heads.keys[head // 2])
        assert torch.equal(values, heads.values[head // 2])
        assert torch.equal(weights, heads.weights[head])
        assert positions == heads.positions


@pytest.mark.parametrize(
    ("place", "sentence"),
    [
        ((2, 0), "layer is 2, needed a whole number from 0 to 1"),
        ((0, -1), "head is -1, needed a whole number from 0 to 2"),
    ],
)
def test_a_head_must_be_there(exact, ids, place, sentence):
    with pytest.raises(MinigptError, match=sentence):
        read_head(exact, ids, *place)


def test_a_cache_that_does_not_know_its_tokens_cannot_be_read(exact):
    cache = exact.new_cache()
    cache._tokens = None
    with pytest.raises(MinigptError, match="does not know its model or tokens"):
        read_heads(cache)
