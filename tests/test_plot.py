"""Pictures of caches: what is drawn is what is there, and the file is a picture."""

from __future__ import annotations

import sys

import pytest
import torch

pytest.importorskip("matplotlib")

from minigpt import MinigptError
from minigpt.cache_kinds import KINDS
from minigpt.plot import cache_growth, cache_heatmap, head_state, memory_by_kind, speed_up


class TestGrowth:
    def test_ends_at_the_bytes_of_a_full_cache(self):
        left, right = cache_growth().axes
        ends = [line.get_ydata()[-1] for line in left.lines]
        assert ends == pytest.approx([1024 * kB / 1000 for kB in (73.728, 196.608, 368.64, 614.4)])
        assert [line.get_ydata()[-1] for line in right.lines] == pytest.approx(
            [75.497472, 75.497472 / 4, 75.497472 / 12]
        )

    def test_shows_every_line_to_its_end(self):
        for axes in cache_growth().axes:
            assert axes.get_ylim()[0] == 0
            assert axes.get_ylim()[1] >= max(line.get_ydata()[-1] for line in axes.lines)

    def test_groups_the_heads_of_the_model_given(self, make_model):
        model = make_model(n_head=6)
        _, right = cache_growth(config=model.config).axes
        assert [line.get_label().split(":")[0] for line in right.lines] == [
            "6 of 6 heads",
            "1 of 6 heads",
        ]

    def test_has_labels_with_units(self):
        for axes in (*cache_growth().axes, *memory_by_kind().axes):
            assert axes.get_title()
            assert axes.get_xlabel() in ("length (tokens)", "kind of cache")
            assert "MB" in axes.get_ylabel()


def test_memory_by_kind_draws_a_bar_for_each_kind_and_dtype(model, text):
    axes = memory_by_kind(config=model.config, length=40).axes[0]
    heights = [bar.get_height() for bars in axes.containers for bar in bars]
    want = []
    for dtype in (torch.float32, torch.bfloat16):
        for kind in KINDS:
            cache = model.to(dtype).new_cache(kind=kind)
            model(text(1, 40), cache=cache)
            want.append(cache.nbytes / 1e6)
    assert heights == pytest.approx(want)


class TestSpeedUp:
    def test_draws_the_seconds_given_and_their_ratio(self):
        left, right = speed_up([10, 100, 500], [0.1, 1.0, 5.0], [0.2, 4.0, 100.0]).axes
        assert [list(line.get_ydata()) for line in left.lines] == [[0.1, 1, 5], [0.2, 4, 100]]
        assert [text.get_text() for text in left.get_legend().texts] == [
            "with the cache",
            "without",
        ]
        assert list(right.lines[0].get_ydata()) == pytest.approx([2, 4, 20])
        assert [text.get_text() for text in right.texts] == ["2.0 ×", "4.0 ×", "20.0 ×"]
        for axes in (left, right):
            assert list(axes.lines[0].get_xdata()) == [10, 100, 500]

    def test_shows_where_a_cache_would_cost_time(self):
        _, right = speed_up([1], [2.0], [1.0]).axes
        assert set(right.lines[1].get_ydata()) == {1}
        assert right.get_ylim()[0] == 0
        assert right.get_ylim()[1] > 1

    def test_has_labels_with_units(self):
        left, right = speed_up([1, 2], [1.0, 1.0], [1.0, 2.0]).axes
        assert left.get_ylabel() == "time for all new tokens (s)"
        assert right.get_ylabel() == "time without / time with the cache"
        assert {left.get_xlabel(), right.get_xlabel()} == {"new tokens"}

    @pytest.mark.parametrize(
        ("measured", "sentence"),
        [
            (
                ([1, 2], [1.0], [1.0, 2.0]),
                "2 lengths were given with 1 cached and 2 uncached times",
            ),
            (([], [], []), "needed one of each for every length"),
            (([2, 1], [1.0, 1.0], [1.0, 1.0]), r"the lengths are \[2, 1\]"),
            (([1], [0.0], [1.0]), "one of the times is 0.0 seconds"),
        ],
    )
    def test_needs_a_time_for_every_length(self, measured, sentence):
        with pytest.raises(MinigptError, match=sentence):
            speed_up(*measured)


class TestOneHead:
    @pytest.fixture
    def ids(self, text):
        return text(1, 30)[0].tolist()

    def test_keys_and_values_are_those_of_the_cache(self, exact, ids):
        cache = exact.new_cache()
        exact(torch.tensor([ids]), cache=cache)
        keys, values, _, positions = head_state(exact, ids, layer=1, head=2)
        assert torch.equal(keys, cache.layer(1)[0][0, 2])
        assert torch.equal(values, cache.layer(1)[1][0, 2])
        assert positions == list(range(30))

    def test_attention_weights_are_those_that_made_the_heads_output(self, make_model, ids):
        model = make_model(numerics="exact", n_kv_head=1, scale_attn_by_inverse_layer_idx=True)
        seen = []
        hook = model.h[1].attn.c_proj.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
        for head in range(3):
            _, values, weights, _ = head_state(model, ids, layer=1, head=head)
            want = seen[-1][0].unflatten(-1, (3, 16))[:, head]
            # Added up in another order than in attention: float32 rounds at about 1e-7.
            assert torch.allclose(weights @ values, want, atol=1e-5)
        hook.remove()

    def test_looks_at_nothing_that_comes_later(self, exact, ids):
        weights = head_state(exact, ids)[2]
        assert torch.equal(weights, weights.tril())
        assert torch.allclose(weights.sum(-1), torch.ones(30))

    def test_of_a_lossy_cache_is_what_is_left(self, exact, ids):
        cache = exact.new_cache(kind="window", window=8, sinks=2)
        exact(torch.tensor([ids]), cache=cache)
        keys, _, weights, positions = head_state(cache, head=1)
        assert positions == [0, 1, *range(22, 30)]
        assert torch.equal(keys, cache.layer(0)[0][0, 1])
        assert weights.shape == (30, 10)
        assert torch.allclose(weights.sum(-1), torch.ones(30))

    @pytest.mark.parametrize(
        ("changes", "sentence"),
        [
            ({"layer": 2}, "layer is 2, needed 0 to 1"),
            ({"head": -1}, "head is -1, needed 0 to 2"),
            ({"labels": ["a"]}, "1 labels were given for 30 tokens"),
        ],
    )
    def test_must_be_there(self, exact, ids, changes, sentence):
        with pytest.raises(MinigptError, match=sentence):
            cache_heatmap(exact, ids, **changes)

    def test_of_a_cache_that_does_not_know_its_tokens_cannot_be_shown(self, exact):
        cache = exact.new_cache()
        cache._tokens = None
        with pytest.raises(MinigptError, match="does not know its model or tokens"):
            cache_heatmap(cache)


class TestTheFile:
    @pytest.mark.parametrize(("suffix", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
    def test_is_a_picture_of_the_kind_that_its_name_says(self, exact, tmp_path, suffix, start):
        path = tmp_path / f"heat.{suffix}"
        cache_heatmap(exact, [3, 1, 4], path=path, labels=["a", "b", "<c>"])
        assert path.read_bytes().startswith(start)

    def test_has_one_of_two_suffixes(self, tmp_path):
        with pytest.raises(MinigptError, match=r"does not end in \.png or \.svg"):
            cache_growth(tmp_path / "growth.pdf")

    def test_needs_a_place(self, tmp_path):
        with pytest.raises(MinigptError, match="could not be written to .*nowhere"):
            memory_by_kind(tmp_path / "nowhere" / "kinds.png")

    def test_needs_matplotlib(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
        with pytest.raises(MinigptError, match=r"pip install minigpt\[plots\]"):
            cache_growth()
