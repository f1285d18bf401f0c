"""Caches that give up accuracy: how much memory they take, and how wrong they are."""

from __future__ import annotations

import pytest
import torch

from minigpt.cache.lossy import quantize


def decoded(model, tokens, prompt, **kind):
    """Logits of a text, its first part prefilled at once, the rest decoded one by one."""
    cache = model.new_cache(len(tokens), **kind)
    logits = [model(tokens[:, :prompt], cache=cache)]
    for t in range(prompt, tokens.shape[1]):
        logits.append(model(tokens[:, t : t + 1], cache=cache))
    return torch.cat(logits, 1), cache


def interrupted_pass(model, cache, tokens):
    def interrupt(*_):
        raise KeyboardInterrupt

    hook = model.h[1].register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        model(tokens, cache=cache)
    hook.remove()


class TestQuantized:
    def test_a_number_comes_back_within_half_a_step_of_its_scale(self):
        x = torch.randn(5, 64, generator=torch.Generator().manual_seed(0))
        numbers, scale = quantize(x, -1)
        assert numbers.dtype == torch.int8
        assert ((numbers * scale - x).abs() <= scale / 2 * 1.001).all()

    def test_zeros_stay_zeros(self):
        numbers, scale = quantize(torch.zeros(2, 3), -1)
        assert torch.equal(numbers * scale, torch.zeros(2, 3))

    def test_logits_are_near_and_not_equal(self, exact, text):
        tokens = text(2, 100)
        got, _ = decoded(exact, tokens, 50, kind="quantized")
        want = exact(tokens)
        assert not torch.equal(got, want)
        assert (got - want).abs().mean() < 0.02 * want.std()

    def test_it_takes_about_a_quarter_of_the_memory(self, make_model):
        model = make_model(n_embd=192)  # heads of 64, as in GPT-2
        whole, quarter = model.new_cache(), model.new_cache(kind="quantized")
        assert quarter.nbytes < 0.40 * whole.nbytes  # 160 positions, of which 32 keys stay as is
        assert quarter.bytes_per_token() < 0.28 * whole.bytes_per_token()

    def test_keys_of_the_unfinished_block_are_kept_as_they_are(self, exact, text):
        quantized, static = exact.new_cache(kind="quantized"), exact.new_cache()
        for cache in (quantized, static):
            exact(text(1, 40), cache=cache)
        (keys, _), (want, _) = quantized.layer(0), static.layer(0)
        assert torch.equal(keys[:, :, 32:], want[:, :, 32:])
        assert not torch.equal(keys[:, :, :32], want[:, :, :32])

    @pytest.mark.parametrize("length", [40, 33, 32, 20])
    def test_truncating_keeps_what_was_held(self, exact, text, length):
        cache = exact.new_cache(kind="quantized")
        exact(text(1, 50), cache=cache)
        keys, values = [x.clone() for x in cache.layer(1)]
        cache.truncate(length)
        assert torch.equal(cache.layer(1)[0], keys[:, :, :length])
        assert torch.equal(cache.layer(1)[1], values[:, :, :length])

    def test_a_failed_pass_leaves_it_as_it_was(self, exact, text):
        cache = exact.new_cache(kind="quantized")
        exact(text(1, 30), cache=cache)
        before = [x.clone() for x in cache.layer(0)]
        interrupted_pass(exact, cache, text(1, 20))
        assert all(torch.equal(a, b) for a, b in zip(before, cache.layer(0), strict=True))

    def test_rows_of_different_lengths(self, exact, text):
        tokens = text(2, 60)
        both, lengths = exact.new_cache(2, kind="quantized"), [60, 35]
        exact(tokens, cache=both)
        both.truncate(lengths)
        got = exact(text(2, 1, seed=5), cache=both)
        for row, length in enumerate(lengths):
            alone = exact.new_cache(kind="quantized")
            exact(tokens[row : row + 1], cache=alone)
            alone.truncate(length)
            want = exact(text(2, 1, seed=5)[row : row + 1], cache=alone)
            assert torch.equal(got[row], want[0])


class TestWindow:
    def test_a_text_inside_the_window_loses_nothing(self, exact, text):
        tokens = text(2, 60)
        got, _ = decoded(exact, tokens, 20, kind="window", window=56)
        assert torch.equal(got, exact(tokens))

    def test_memory_does_not_grow_with_the_text(self, exact, text):
        _, cache = decoded(exact, text(1, 150), 5, kind="window", window=10, sinks=2)
        assert cache.nbytes == 12 * 768
        assert cache.layer(0)[0].shape == (1, 3, 12, 16)

    def test_it_holds_the_first_positions_and_the_last(self, exact, text):
        _, cache = decoded(exact, text(1, 50), 30, kind="window", window=5, sinks=2)
        assert cache.positions == [[0, 1, 45, 46, 47, 48, 49]]
        assert cache.lengths == [50]

    def test_a_step_equals_attention_over_the_positions_held(self, exact, text):
        tokens = text(1, 41)
        cache, full = exact.new_cache(kind="window", window=6, sinks=3), exact.new_cache()
        for one in (cache, full):
            exact(tokens[:, :40], cache=one)
        held = cache.positions[0]
        assert torch.equal(cache.layer(0)[0], full.layer(0)[0][:, :, held])

    def test_truncating_keeps_what_is_left_of_the_window(self, exact, text):
        _, cache = decoded(exact, text(1, 50), 30, kind="window", window=5, sinks=2)
        cache.truncate(47)
        assert cache.positions == [[0, 1, 45, 46]]
        assert cache.lengths == [47]

    def test_rows_of_different_lengths(self, exact, text):
        tokens, lengths = text(2, 60), [60, 7]
        caches = []
        for row, length in enumerate(lengths):
            caches.append(exact.new_cache(kind="window", window=20))
            exact(tokens[row : row + 1, :length], cache=caches[-1])
        both = caches[0].concat(caches)
        for seed in range(20):
            new = text(2, 1, seed=seed)
            got = exact(new, cache=both)
            alone = [exact(new[r : r + 1], cache=cache) for r, cache in enumerate(caches)]
            assert torch.equal(got, torch.cat(alone))

    def test_a_failed_pass_leaves_it_as_it_was(self, exact, text):
        cache = exact.new_cache(kind="window", window=20)
        exact(text(1, 30), cache=cache)
        before = [x.clone() for x in cache.layer(0)]
        interrupted_pass(exact, cache, text(1, 20))
        assert all(torch.equal(a, b) for a, b in zip(before, cache.layer(0), strict=True))
        assert cache.positions == [[0, 1, 2, 3, *range(10, 30)]]
