"""Every kind of cache: length, room, surgery, errors; and nothing half-written, ever."""

from __future__ import annotations

import pytest
import torch

from minigpt import KVCache, MinigptError
from minigpt.cache.kinds import KINDS, LOSSLESS


@pytest.fixture(params=LOSSLESS)
def kind(request):
    return request.param


@pytest.fixture
def filled(exact, text, kind):
    """A cache of 20 positions, and the tokens in it."""
    tokens, cache = text(1, 20), exact.new_cache(kind=kind)
    exact(tokens, cache=cache)
    return cache, tokens


def contents(cache):
    """All keys and values held, by layer."""
    return [tensor.clone() for i in range(len(cache.layers)) for tensor in cache.layer(i)]


def same(some, others):
    return all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


def test_length_counts_the_positions_held(exact, text, kind):
    cache = exact.new_cache(kind=kind)
    assert len(cache) == 0
    exact(text(1, 5), cache=cache)
    exact(text(1, 1), cache=cache)
    assert len(cache) == 6


def test_a_cache_is_true_even_when_it_is_empty(exact, kind):
    assert exact.new_cache(kind=kind)


def test_capacity_is_the_context_unless_asked_otherwise(exact):
    assert exact.new_cache().capacity == 160
    assert exact.new_cache(max_length=10).capacity == 10


def test_it_has_the_models_dtype(make_model):
    model = make_model(dtype=torch.bfloat16)
    assert model.new_cache().layer(0)[0].dtype == torch.bfloat16


def test_a_layers_keys_and_values_can_be_looked_at(filled):
    cache, _ = filled
    keys, values = cache.layer(1)
    assert keys.shape == values.shape == (1, 3, 20, 16)
    assert keys.abs().sum() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_caches_layer_is_empty(exact, kind):
    keys, values = exact.new_cache(2, kind=kind).layer(1)
    assert keys.shape == values.shape == (2, 3, 0, 16)


def test_every_kind_holds_the_same_keys_and_values(exact, text):
    caches = [exact.new_cache(2, kind=kind) for kind in LOSSLESS]
    for cache in caches:
        exact(text(2, 40), cache=cache)
        cache.truncate([40, 21])
    assert contents(caches[0])[0][1, :, 20].any()
    assert not contents(caches[0])[0][1, :, 21:].any()
    assert all(same(contents(caches[0]), contents(cache)) for cache in caches[1:])


def test_it_remembers_its_tokens(filled, exact, text):
    cache, tokens = filled
    cache.truncate(15)
    assert cache.fork().tokens == [tokens[0, :15].tolist()]


def test_its_repr_says_what_it_holds_and_costs(exact, text):
    cache = exact.new_cache()
    exact(text(1, 20), cache=cache)
    text = repr(cache)
    for part in ("20 of 160 positions", "2 layers", "3 heads", "16 channels", "float32",
                 "768 bytes per token", "122,880 bytes allocated"):  # fmt: skip
        assert part in text


def test_appending_one_layer_by_hand_does_not_move_the_length(exact):
    cache = exact.new_cache()
    k = torch.randn(1, 3, 4, 16)
    keys, _, before = cache.layers[0].append(k, k)
    assert torch.equal(keys[:, :, :4], k)
    assert list(before) == [0]
    assert len(cache) == 0


def test_truncate_then_other_tokens_equals_uncached(exact, filled, text):
    cache, tokens = filled
    cache.truncate(12)
    other = text(1, 8, seed=9)
    logits = exact(other, cache=cache)
    assert torch.equal(logits, exact(torch.cat([tokens[:, :12], other], 1))[:, 12:])


def test_reset_makes_it_as_good_as_new(exact, filled, text):
    cache, _ = filled
    cache.reset()
    other = text(1, 30, seed=9)
    assert len(cache) == 0
    assert torch.equal(exact(other, cache=cache), exact(other))


@pytest.mark.parametrize("length", [21, -1, 1.5, True, "3"])
def test_truncating_outside_what_it_holds_is_refused(filled, length):
    cache, _ = filled
    with pytest.raises(MinigptError, match="this cache holds 20 positions, needed .* 0 to 20"):
        cache.truncate(length)
    assert len(cache) == 20


def test_a_fork_does_not_see_what_its_parent_learns_later(exact, filled, text):
    parent, tokens = filled
    child = parent.fork()
    exact(text(1, 5, seed=1), cache=parent)
    other = text(1, 5, seed=2)
    want = exact(torch.cat([tokens, other], 1))[:, 20:]
    assert torch.equal(exact(other, cache=child), want)
    assert (len(parent), len(child)) == (25, 25)


def test_numbers_left_behind_by_a_broken_text_do_not_leak(exact, text):
    cache, tokens = exact.new_cache(), text(1, 20)
    exact(tokens[:, :10], cache=cache)
    cache.layers[0].append(*[torch.full((1, 3, 9, 16), torch.nan)] * 2)
    with pytest.raises(RuntimeError), cache.extend(exact.cache_spec, 1, 9):
        raise RuntimeError
    assert torch.equal(exact(tokens[:, 10:], cache=cache), exact(tokens)[:, 10:])


class TestNothingIsWrittenWhen:
    def refused(self, model, cache, tokens, sentence):
        before, length = contents(cache), len(cache)
        with pytest.raises(MinigptError, match=sentence):
            model(tokens, cache=cache)
        assert len(cache) == length
        assert same(contents(cache), before)

    def test_there_is_no_room(self, exact, text, kind):
        cache = exact.new_cache(max_length=24, kind=kind)
        exact(text(1, 20), cache=cache)
        self.refused(exact, cache, text(1, 5), "holds 20 of 24 positions and cannot take 5 more")

    def test_the_batch_has_other_rows(self, exact, filled, text):
        self.refused(exact, filled[0], text(2, 1), "holds 1 row and was given 2")

    @pytest.mark.parametrize(
        "change", [{"n_layer": 3}, {"n_head": 6}, {"n_kv_head": 1}, {"dtype": torch.float16}]
    )
    def test_the_cache_is_another_models(self, make_model, filled, text, change):
        other = make_model(**change)
        self.refused(other, filled[0], text(1, 1), "made for another model, dtype or device")

    def test_the_tokens_are_wrong(self, exact, filled):
        self.refused(exact, filled[0], torch.full((1, 2), 999), "token 999 is outside")

    @pytest.mark.parametrize("layer", [0, 1])
    @pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
    def test_the_pass_is_interrupted_between_layers(self, exact, filled, text, layer, error):
        cache, tokens = filled
        before = contents(cache)
        more = text(1, 6, seed=3)

        def interrupt(*_):
            raise error

        hook = exact.h[layer].mlp.register_forward_hook(interrupt)
        with pytest.raises(error):
            exact(more, cache=cache)
        hook.remove()
        assert len(cache) == 20
        assert same(contents(cache), before)
        want = exact(torch.cat([tokens, more], 1))[:, 20:]
        assert torch.equal(exact(more, cache=cache), want)

    def test_the_pass_is_interrupted_at_the_logits(self, exact, filled, text):
        cache, _ = filled

        def interrupt(*_):
            raise KeyboardInterrupt

        hook = exact.lm_head.register_forward_pre_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            exact(text(1, 6), cache=cache)
        hook.remove()
        assert len(cache) == 20


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"batch_size": 0}, "batch_size is 0, needed a whole number of at least 1"),
        ({"max_length": 0}, "max_length is 0, needed"),
        ({"max_length": 161}, "max_length is 161, but this model has 160 positions"),
        ({"max_length": 2.5}, "max_length is 2.5, needed"),
        ({"kind": "magic"}, "cache kind is 'magic', needed one of static, growing, paged"),
        ({"kind": "paged", "page": 24}, "page is 24, needed a divisor or a multiple of 64"),
        ({"kind": "window", "window": 0}, "window is 0, needed"),
        ({"kind": "window", "sinks": -1}, "sinks is -1, needed"),
        ({"kind": "static", "window": 3}, "a static cache has no setting 'window'"),
        ({"kind": "window", "page": 3}, "has no setting 'page': it has window, sinks"),
        ({"batch_size": 10**12}, "needs 122,880,000,000,000,000 bytes"),
        ({"batch_size": 10**7}, "needs 1,228,800,000,000 bytes, which cpu does not have"),
    ],
)
def test_a_cache_that_makes_no_sense_is_refused(exact, arguments, sentence):
    with pytest.raises(MinigptError, match=sentence):
        exact.new_cache(**arguments)


@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_made_in_inference_mode_works_outside_of_it_and_the_other_way_round(
    exact, text, kind
):
    tokens = text(1, 10)
    with torch.inference_mode():
        inside = exact.new_cache(kind=kind)
        exact(tokens[:, :5], cache=inside)
    outside = inside.fork()
    got = exact(tokens[:, 5:], cache=inside)
    with torch.inference_mode():
        assert torch.equal(exact(tokens[:, 5:], cache=outside), got)
    assert isinstance(inside, KVCache)
