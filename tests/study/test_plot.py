"""Pictures: what is drawn is what is there, and the file is a picture."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("matplotlib")

from minigpt import Engine, MinigptError, beam_search
from minigpt.cache.kinds import KINDS
from minigpt.generation.beam import Beam
from minigpt.generation.sampling import Sampler
from minigpt.study.attention import read_head, read_heads
from minigpt.study.plot import (
    attention_maps,
    beam_tree,
    cache_growth,
    cache_heatmap,
    cells,
    draft_race,
    memory_by_kind,
    next_token,
    roofline,
    speed_up,
    timeline,
)
from minigpt.study.style import AMOUNTS, SIGNED


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


RUNS = {"decode": {"1": (0.5, 2e9), "8": (4.0, 9e9)}, "prefill": {"64": (50.0, 30e9)}}


class TestRoofline:
    def test_rises_with_the_bandwidth_up_to_the_peak(self):
        (axes,) = roofline(10e9, 50e9, RUNS).axes
        xs, speeds = axes.lines[0].get_data()
        assert list(xs) == [0.25, 5, 100]
        assert list(speeds) == pytest.approx([2.5, 50, 50])

    def test_has_a_point_for_each_measurement_and_its_label(self):
        (axes,) = roofline(10e9, 50e9, RUNS).axes
        drawn = {line.get_label(): line.get_xydata().tolist() for line in axes.lines[1:]}
        assert drawn == {"decode": [[0.5, 2], [4, 9]], "prefill": [[50, 30]]}
        labels = {(text.get_text(), text.xy) for text in axes.texts if hasattr(text, "xy")}
        assert labels == {("1", (0.5, 2)), ("8", (4.0, 9)), ("64", (50.0, 30))}

    def test_names_units_and_marks_round_numbers(self):
        (axes,) = roofline(10e9, 50e9, RUNS).axes
        assert axes.get_xlabel() == "arithmetic intensity (FLOP per byte)"
        assert axes.get_ylabel() == "speed (GFLOP per second)"
        marks = [label.get_text() for label in axes.get_xticklabels()]
        assert marks == ["0.5", "1", "2", "5", "10", "20", "50", "100"]

    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            ((1.0, 1.0, {}), "no runs were given"),
            ((1.0, 1.0, {"decode": {}}), "no runs were given"),
            ((0.0, 1.0, RUNS), "one of the numbers is 0.0, needed more than 0"),
            ((1.0, 1.0, {"decode": {"1": (1.0, -2.0)}}), "one of the numbers is -2.0"),
        ],
    )
    def test_needs_numbers_above_0(self, arguments, sentence):
        with pytest.raises(MinigptError, match=sentence):
            roofline(*arguments)


class TestHeatmap:
    @pytest.fixture
    def ids(self, text):
        return text(1, 30)[0].tolist()

    def test_shows_keys_values_and_weights(self, exact, ids):
        axes = cache_heatmap(exact, ids, layer=1, head=2).axes
        assert [ax.get_title() for ax in axes[:3]] == ["keys", "values", "attention weights"]
        for ax, numbers in zip(axes, read_head(exact, ids, 1, 2)[:3], strict=False):
            drawn = torch.tensor(ax.images[0].get_array().filled(0.0))
            assert torch.equal(drawn, numbers)

    def test_gives_signed_numbers_a_map_around_zero(self, exact, ids):
        keys, values, weights = (ax.images[0] for ax in cache_heatmap(exact, ids).axes[:3])
        for image in (keys, values):
            assert image.get_cmap().name == SIGNED
            assert image.norm.vmin == -image.norm.vmax
        assert weights.get_cmap().name == AMOUNTS
        assert weights.norm.vmin == 0.0

    def test_leaves_the_future_blank(self, exact, ids):
        drawn = cache_heatmap(exact, ids).axes[2].images[0].get_array()
        assert torch.equal(torch.tensor(drawn.mask), torch.ones(30, 30).triu(1).bool())

    def test_of_a_lossy_cache_names_what_is_left(self, exact, ids):
        cache = exact.new_cache(kind="window", window=8, sinks=2)
        exact(torch.tensor([ids]), cache=cache)
        left, _, right = cache_heatmap(cache).axes[:3]
        held = [str(position) for position in [0, 1, *range(22, 30)]]
        assert [label.get_text() for label in left.get_yticklabels()] == held
        assert [label.get_text() for label in right.get_xticklabels()] == held
        future = torch.tensor([int(name) for name in held]) > torch.arange(30)[:, None]
        assert torch.equal(torch.tensor(right.images[0].get_array().mask), future)

    @pytest.mark.parametrize(
        ("changes", "sentence"),
        [
            ({"layer": 2}, "layer is 2, needed a whole number from 0 to 1"),
            ({"head": -1}, "head is -1, needed a whole number from 0 to 2"),
            ({"labels": ["a"]}, "1 labels were given for 30 tokens"),
        ],
    )
    def test_needs_what_is_there(self, exact, ids, changes, sentence):
        with pytest.raises(MinigptError, match=sentence):
            cache_heatmap(exact, ids, **changes)


class TestAttentionMaps:
    @pytest.fixture
    def ids(self, text):
        return text(1, 12)[0].tolist()

    def test_show_the_weights_of_every_head_of_the_layer(self, exact, ids):
        panels = attention_maps(exact, ids, layer=1).axes[:3]
        (heads,) = read_heads(exact, ids, [1])
        for head, axes in enumerate(panels):
            assert axes.get_title() == f"head {head}"
            drawn = axes.images[0].get_array().filled(0.0)
            # Drawn as square roots, which rounds once; squaring them rounds again.
            assert drawn**2 == pytest.approx(heads.weights[head].numpy(), abs=1e-6)

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
        with pytest.raises(MinigptError, match="layer is 2, needed a whole number from 0 to 1"):
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


class TestWords:
    """Every picture says in words what it shows."""

    def test_have_the_numbers(self):
        alt = speed_up([10, 100], [0.1, 1.0], [0.2, 4.0]).alt
        assert "100 tokens, 1 s with the cache, 4 s without, 4.0 ×" in alt
        alt = roofline(10e9, 50e9, RUNS).alt
        assert "ridge at 5 FLOP per byte" in alt
        assert "decode 8: 9 at 4 FLOP per byte" in alt

    def test_have_what_is_looked_at_most(self, exact):
        weights = read_head(exact, [3, 1, 4])[2].mean(0)
        alt = attention_maps(exact, [3, 1, 4], labels=["a", "b", "c"]).alt
        assert f"head 0: the key looked at most is {'abc'[weights.argmax()]!r}" in alt

    def test_are_in_every_picture(self, exact):
        pictures = [
            cache_growth(), memory_by_kind(), cache_heatmap(exact, [3, 1]),
            next_token({"plain": torch.tensor([0.25, 0.75])}, str),
            beam_tree([[_beam(1)]], str), draft_race({"draft": [(2, 1)]}),
            cells(torch.tensor([[1.0]]), "nats", ("layer", "head"), (["0"], ["0"])),
            roofline(1.0, 1.0, {"decode": {"1": (1.0, 1.0)}}),
        ]  # fmt: skip
        assert all(picture.alt.endswith(".") for picture in pictures)


def test_timeline_draws_every_piece_of_work_in_its_row_and_step(exact, text, tmp_path):
    page = 16 * exact.cache_spec.bytes_per_token
    engine = Engine(exact, memory=6 * page, batch=3, chunk=20)
    for seed in range(4):
        engine.submit(text(1, 25, seed=seed)[0].tolist(), 30, stop_tokens=())
    engine.run()
    figure = timeline(engine.record, tmp_path / "rows.png")
    (axes,) = figure.axes
    bars = [bar for bars in axes.containers for bar in bars if bar.get_width()]
    cells = {(int(bar.get_x()), round(bar.get_y() + 0.4)) for bar in bars}
    work = [work for work in engine.record if work.what != "preempted"]
    assert len(bars) == len(work)
    assert cells == {(each.step, each.slot) for each in work}
    crosses = [line.get_xydata() for line in axes.lines if line.get_marker() == "x"]
    back = [places[0].tolist() for places in crosses if len(places)]  # not the legend's
    assert back == [[w.step, w.slot] for w in engine.record if w.what == "preempted"] != []
    assert figure.alt.startswith("4 texts in 3 rows over")
    assert (tmp_path / "rows.png").stat().st_size
    with pytest.raises(MinigptError, match="the record is empty"):
        timeline([])
