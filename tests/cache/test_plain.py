"""The plain caches: where the new keys go, what attention is handed, what it costs."""

from __future__ import annotations

import pytest
import torch

from minigpt.numerics.base import KEY_BLOCK


def appended(model, kind, counts, starts=(0,)):
    """What layer 1 is handed back for the last of several appends, and all that went in."""
    cache = model.new_cache(len(starts), kind=kind)
    given = []
    for count in counts:
        k, v = torch.randn(2, len(starts), 3, count, 16)
        with cache.extend(cache.spec, len(starts), count):
            cache.append(0, k, v)
            keys, values, before = cache.append(1, k, v)
            before = list(before)
        given.append((k, v))
    return keys, values, before, given


@pytest.mark.parametrize("kind", ["static", "growing"])
def test_attention_is_handed_the_old_keys_and_then_the_new_ones(exact, kind):
    keys, values, before, given = appended(exact, kind, (5, 1, 3))
    assert before == [6]
    assert torch.equal(keys[:, :, :9], torch.cat([k for k, _ in given], 2))
    assert torch.equal(values[:, :, :9], torch.cat([v for _, v in given], 2))


def test_a_static_cache_hands_out_whole_blocks_of_keys_and_zeros_beyond_the_last(exact):
    for count in (5, KEY_BLOCK, KEY_BLOCK + 1):
        keys, values, *_ = appended(exact, "static", (count,))
        assert keys.shape[2] == values.shape[2] == KEY_BLOCK * (1 + (count > KEY_BLOCK))
        assert not keys[:, :, count:].any()


@pytest.mark.parametrize("kind", ["static", "growing"])
def test_rows_of_different_lengths_are_written_each_behind_its_own_last(exact, kind):
    cache = exact.new_cache(2, kind=kind)
    new = torch.randn(2, 3, 7, 16)
    with cache.extend(cache.spec, 2, 7):
        for layer in cache.layers:
            layer.append(new, new)
    cache.truncate([7, 4])
    more = torch.randn(2, 3, 2, 16)
    with cache.extend(cache.spec, 2, 2):
        keys, _, before = cache.append(0, more, more)
        assert list(before) == [7, 4]
        assert torch.equal(keys[0, :, :9], torch.cat([new[0], more[0]], 1))
        assert torch.equal(keys[1, :, :6], torch.cat([new[1, :, :4], more[1]], 1))
        assert not keys[1, :, 6:].any()
        cache.append(1, more, more)


def test_a_static_cache_allocates_nothing_after_it_is_made(exact, text):
    cache = exact.new_cache()
    memory, nbytes = cache._data.data_ptr(), cache.nbytes
    for count in (20, 1, 100):
        exact(text(1, count), cache=cache)
        assert (cache._data.data_ptr(), cache.nbytes) == (memory, nbytes)


def test_a_growing_cache_takes_what_it_holds(exact, text):
    cache = exact.new_cache(kind="growing")
    assert cache.nbytes == 0
    exact(text(1, 20), cache=cache)
    assert cache.nbytes == 20 * cache.bytes_per_token() == 20 * 2 * 2 * 3 * 16 * 4


def test_nbytes_is_two_times_layers_heads_width_positions_rows_and_itemsize(exact):
    assert exact.new_cache(batch_size=3, max_length=10).nbytes == 2 * 2 * 3 * 16 * 10 * 3 * 4


def test_a_static_caches_layer_is_a_view(exact, text):
    cache = exact.new_cache()
    keys, values = cache.layer(1)
    assert keys.untyped_storage().data_ptr() == cache._data.untyped_storage().data_ptr()
    assert values.untyped_storage().data_ptr() == cache._data.untyped_storage().data_ptr()
