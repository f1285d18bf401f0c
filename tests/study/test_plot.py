"""Pictures: what is drawn is what is there, and the file is a picture."""

from __future__ import annotations

import sys

import pytest
import torch

pytest.importorskip("matplotlib")

from minigpt import MinigptError, beam_search
from minigpt.bench.measure import Row, Section, Table
from minigpt.cache.kinds import KINDS
from minigpt.commands.cli import main
from minigpt.generation.beam import Beam
from minigpt.generation.sampling import Sampler
from minigpt.study import plot
from minigpt.study.plot import (
    attention_maps,
    beam_tree,
    cache_growth,
    cache_heatmap,
    cells,
    draft_race,
    head_state,
    memory_by_kind,
    next_token,
    speed_up,
)


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


class TestAttentionMaps:
    @pytest.fixture
    def ids(self, text):
        return text(1, 12)[0].tolist()

    def test_show_the_weights_of_every_head_of_the_layer(self, exact, ids):
        panels = attention_maps(exact, ids, layer=1).axes[:3]
        for head, axes in enumerate(panels):
            assert axes.get_title() == f"head {head}"
            drawn = axes.images[0].get_array().filled(0.0)
            weights = head_state(exact, ids, 1, head)[2]
            # Drawn as square roots, which rounds once; squaring them rounds again.
            assert drawn**2 == pytest.approx(weights.numpy(), abs=1e-6)

    def test_leave_the_future_empty(self, exact, ids):
        drawn = attention_maps(exact, ids).axes[0].images[0].get_array()
        assert torch.equal(torch.tensor(drawn.mask), torch.ones(12, 12).triu(1).bool())

    def test_of_many_heads_come_in_rows_of_six(self, make_model, ids):
        axes = attention_maps(make_model(n_head=8), ids).axes
        assert [ax.get_title() for ax in axes[:8]] == [f"head {n}" for n in range(8)]
        assert axes[0].get_gridspec().get_geometry() == (2, 6)
        assert not any(ax.axison for ax in axes[8:12])

    def test_write_labels_as_they_are(self, exact, tmp_path):
        attention_maps(exact, [3, 1], path=tmp_path / "maps.svg", labels=["$\\no{$", "b"])

    def test_need_a_label_for_each_token(self, exact):
        with pytest.raises(MinigptError, match="1 labels were given for 2 tokens"):
            attention_maps(exact, [3, 1], labels=["a"])

    def test_need_a_layer_that_is_there(self, exact):
        with pytest.raises(MinigptError, match="layer is 2, needed 0 to 1"):
            attention_maps(exact, [3, 1], layer=2)


class TestNextToken:
    logits = torch.tensor([0.0, 3.0, 1.0, 2.0])
    plain = Sampler(temperature=1.0).distribution(logits)
    top_2 = Sampler(temperature=1.0, top_k=2).distribution(logits)

    def test_draws_the_likeliest_tokens_and_the_rest_together(self):
        axes = next_token({"plain": self.plain}, str, count=2).axes[0]
        assert [label.get_text() for label in axes.get_yticklabels()] == ["1", "3", "all others"]
        drawn = [bar.get_width() for bar in axes.patches]
        want = [self.plain[1], self.plain[3], self.plain[0] + self.plain[2]]
        assert drawn == pytest.approx([float(p) for p in want])

    def test_every_panel_shows_the_tokens_of_the_first_on_one_scale(self):
        left, right = next_token({"top 2": self.top_2, "plain": self.plain}, str, count=3).axes
        assert [bar.get_width() for bar in right.patches][:2] == pytest.approx(
            [float(self.plain[1]), float(self.plain[3])]
        )
        assert left.get_xlim() == right.get_xlim()
        assert right.get_title() == "plain"

    def test_crosses_out_what_is_ruled_out(self):
        axes = next_token({"plain": self.plain, "top 2": self.top_2}, str, count=4).axes[1]
        assert [text.get_text() for text in axes.texts] == ["0.73", "0.27", "×", "×", "×"]

    def test_of_few_tokens_shows_them_all(self):
        assert len(next_token({"plain": self.plain}, str, count=12).axes[0].patches) == 5

    def test_needs_a_distribution(self):
        with pytest.raises(MinigptError, match="no distributions were given"):
            next_token({}, str)


class TestBeamTree:
    def test_has_every_text_that_was_kept_and_the_best_one_thick(self, exact, text):
        ids = text(1, 5)[0].tolist()
        steps = [beam_search(exact, ids, n, beams=3) for n in (1, 2, 3)]
        axes = beam_tree(steps, str).axes[0]
        kept = {tuple(beam.tokens) for beams in steps for beam in beams}
        assert len(axes.lines) == len(kept)
        labels = [note.get_text() for note in axes.texts if note.get_weight() == "bold"]
        assert labels[::2] == [str(token) for token in steps[-1][0].tokens]
        assert labels[-1] == f"{steps[-1][0].log_probability:.2f}"

    def test_dots_what_was_given_up(self):
        steps = [[_beam(1), _beam(2)], [_beam(2, 3), _beam(2, 4)]]
        axes = beam_tree(steps, str).axes[0]
        assert [line.get_linestyle() for line in axes.lines] == [":", "-", "-", "-"]

    def test_has_beginnings_that_no_step_lists(self):
        assert len(beam_tree([[_beam(1, 2, 3)]], str).axes[0].lines) == 3

    def test_needs_a_text(self):
        with pytest.raises(MinigptError, match="found no text"):
            beam_tree([], str)


class TestDraftRace:
    passes = ((2, 2), (3, 1), (0, 0))  # 3, 2 and 1 tokens

    def test_draws_what_each_pass_brought(self):
        axes = draft_race({"draft": self.passes}).axes[0]
        wrong, true, own = ([(bar.get_x(), bar.get_width()) for bar in c] for c in axes.containers)
        assert own == [(2, 1), (4, 1), (5, 1)]
        assert true == [(0, 2), (3, 1), (5, 0)]
        assert wrong == [(2, 0), (4, 2), (5, 0)]

    def test_counts_the_passes_and_gives_all_runs_one_scale(self):
        left, right = draft_race({"none": [(0, 0)] * 6, "draft": self.passes}).axes
        assert [left.get_title(), right.get_title()] == ["none: 6 passes", "draft: 3 passes"]
        assert (left.get_xlim(), left.get_ylim()) == (right.get_xlim(), right.get_ylim())

    @pytest.mark.parametrize("runs", [{}, {"draft": []}])
    def test_needs_a_pass(self, runs):
        with pytest.raises(MinigptError, match="no runs were given"):
            draft_race(runs)


def test_cells_have_their_number_as_colour_and_their_text():
    numbers = torch.tensor([[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]])
    names = (["a", "b"], ["x", "y", "z"])
    figure = cells(numbers, "nats", ("layer", "head"), names, [["p", "q", "r"], ["s", "t", "$"]])
    axes, bar = figure.axes
    assert torch.equal(torch.tensor(axes.images[0].get_array().data), numbers)
    written = {text.get_position(): text.get_text() for text in axes.texts}
    assert written[(2, 0)] == "r"
    assert written[(0, 1)] == "s"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    assert (axes.get_ylabel(), axes.get_xlabel(), bar.get_ylabel()) == ("layer", "head", "nats")


def _beam(*tokens: int) -> Beam:
    return Beam(list(tokens), -1.0, -1.0, "length")


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


class TestMeasured:
    """Drawn from a table, whose bars must be its medians."""

    def table(self) -> Table:
        rows = [
            Row("batch 1      limit", [2.0, 1.0, 3.0], "ms"),
            Row("batch 1      minigpt fast", [4.0, 9.0, 5.0], "ms"),
            Row("batch 1      transformers", [8.0, 6.0, 7.0], "ms"),
        ]
        alone = Section("limits", "one row", rows[:1])
        return Table({}, 3, [Section("decode", "time of a step", rows), alone])

    def test_bars_are_medians_and_a_single_row_is_no_comparison(self):
        (axes,) = plot.measured(self.table()).axes
        assert [bar.get_width() for bar in axes.patches] == [2.0, 5.0, 7.0]
        assert [line.get_xdata().tolist() for line in axes.lines] == [[1, 3], [4, 9], [6, 8]]
        assert axes.get_xlabel() == "ms"

    def test_nothing_to_compare_is_refused(self):
        with pytest.raises(MinigptError, match="nothing was measured that could be compared"):
            plot.measured(Table({}, 3, self.table().sections[1:]))

    def test_a_wrong_suffix_is_refused_before_measuring(self, capsys):
        assert main(["bench", "--model", "random:nano", "--plot", "bench.pdf"]) == 2
        assert "needed one of them for a picture" in capsys.readouterr().err
