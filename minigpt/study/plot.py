"""Pictures of caches and of a model at work; long, because each picture is a function of its own.

Every function returns a matplotlib Figure, and saves it too where it is given a `path`, *.png or
*.svg. Each raises MinigptError when that file cannot be written. How figures look is in `style.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minigpt.cache.kinds import KINDS
from minigpt.cache.kvcache import KVCache
from minigpt.config import GPTConfig
from minigpt.generation.beam import Beam
from minigpt.generation.request import Work
from minigpt.model import GPT
from minigpt.study.attention import read_head, read_heads
from minigpt.study.cost import cache_bytes
from minigpt.study.style import (
    COLOURS,
    DASHES,
    GREY,
    HATCHES,
    INK,
    Picture,
    contrasting,
    draw_matrix,
    drawing,
    local,
)
from minigpt.support.errors import MinigptError

FAMILY = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
MB = 10**6
PALE = 0.35  # of a colour


def cache_growth(path: str | Path | None = None, config: GPTConfig | None = None) -> Picture:
    """Bytes of a cache against its length: the GPT-2 family, and one shape with grouped heads.

    Args:
        config: the shape whose key/value heads are grouped: as many as query heads, about a
            quarter of them, and one; None: gpt2's.
    """
    name = "GPT-2 124M" if config is None else "this model"
    config = config or GPTConfig.preset("gpt2")
    H = config.n_head
    quarter = max(G for G in range(1, H + 1) if H % G == 0 and (G == 1 or 4 * G <= H))
    groups = sorted({H, quarter, 1}, reverse=True)
    panels = {
        "the GPT-2 family": {preset: GPTConfig.preset(preset) for preset in FAMILY},
        f"grouped key/value heads, {name}": {
            f"{G} of {H} heads": replace(config, n_kv_head=G) for G in groups
        },
    }
    with drawing(path, 1, 2, (9, 3.8)) as figure:
        told = []
        for axes, (title, shapes) in zip(figure.axes, panels.items(), strict=True):
            for n, (label, shape) in enumerate(shapes.items()):
                # Of the kind that takes what it needs, so without room for more.
                full = cache_bytes(shape, "growing", shape.n_positions)
                label = f"{label}: {full / shape.n_positions / 1000:,.1f} kB per token"
                axes.plot(
                    [0, shape.n_positions],
                    [0, full / MB],
                    color=COLOURS[n],
                    linestyle=DASHES[n],
                    linewidth=2,
                    label=label,
                )
                told.append(label)
            axes.set(title=title, xlabel="length (tokens)", ylabel="cache of one row (MB, float32)")
            axes.set_xlim(0, shape.n_positions)
            axes.set_ylim(0)
            axes.grid()
            axes.legend()
        figure.alt = f"Bytes of a cache rise in proportion to its length. {'; '.join(told)}."
    return figure


def memory_by_kind(
    path: str | Path | None = None, config: GPTConfig | None = None, length: int | None = None
) -> Picture:
    """Bytes of every kind of cache for one row of text, in float32 and bfloat16.

    Args:
        config: the model's shape; None: gpt2's.
        length: tokens held; None: half the context.
    """
    config = config or GPTConfig.preset("gpt2")
    length = config.n_positions // 2 if length is None else length
    title = f"a cache made for {config.n_positions:,} tokens that holds {length:,}"
    with drawing(path, 1, 1, (7, 3.6)) as figure:
        (axes,) = figure.axes
        told = []
        for n, dtype in enumerate((torch.float32, torch.bfloat16)):
            name = str(dtype).removeprefix("torch.")
            heights = [cache_bytes(config, kind, length, dtype) / MB for kind in KINDS]
            bars = axes.bar(
                [place + 0.4 * n - 0.2 for place in range(len(KINDS))],
                heights,
                0.38,
                color="white" if HATCHES[n] else COLOURS[n],
                hatch=HATCHES[n],
                edgecolor=COLOURS[n],
                label=name,
            )
            axes.bar_label(bars, fmt="%.3g", fontsize=8)
            told += [f"{kind} in {name} {h:.3g}" for kind, h in zip(KINDS, heights, strict=True)]
        axes.set_xticks(range(len(KINDS)), list(KINDS))
        axes.set(xlabel="kind of cache", ylabel="allocated (MB)", title=title)
        axes.margins(y=0.12)
        axes.legend()
        figure.alt = f"Megabytes of {title}: {', '.join(told)}."
    return figure


def cache_heatmap(
    source: GPT | KVCache,
    ids: Sequence[int] | None = None,
    layer: int = 0,
    head: int = 0,
    path: str | Path | None = None,
    labels: Sequence[str] | None = None,
) -> Picture:
    """What one head keeps of a text, and what it looks at: keys, values and attention weights.

    Args:
        source: a model, or a cache, of which the first row is shown.
        ids: the text's tokens, for a model; a cache knows its own.
        layer, head: of the attention; with grouped heads, the keys are those of the head's group.
        labels: what to write for each token of the text; None: its position.

    Raises:
        MinigptError: for a layer or head that is not there, or a text that does not fit.
    """
    keys, values, weights, positions = read_head(source, ids, layer, head)
    T = len(weights)
    names = _labels(labels, T)
    held = [names[position] for position in positions]
    future = torch.tensor(positions) > torch.arange(T)[:, None]  # (T, S)
    with drawing(path, 1, 3, (11, 4.2)) as figure:
        left, middle, right = figure.axes
        for axes, title, numbers in ((left, "keys", keys), (middle, "values", values)):
            # Most numbers are small and a few huge: the colours end where 99 % of the numbers do.
            image = draw_matrix(axes, numbers, float(numbers.abs().quantile(0.99)), signed=True)
            figure.colorbar(image, ax=axes, extend="both")
            axes.set(title=title, xlabel="channel")
            axes.set_yticks(range(len(held)), held, fontsize=8)
        seen = weights.masked_fill(future, torch.nan)
        figure.colorbar(draw_matrix(right, seen, float(weights.max()), signed=False), ax=right)
        left.set_ylabel("token (position)")
        right.set(title="attention weights", xlabel="token looked at (key)")
        right.set_ylabel("token looking (query)")
        right.set_yticks(range(T), names, fontsize=8)
        right.set_xticks(range(len(held)), held, fontsize=8, rotation=90)
        figure.suptitle(f"layer {layer}, head {head}")
        figure.alt = (
            f"Layer {layer}, head {head}, on {T} tokens: keys and values as colours, "
            f"{len(held)} tokens by {keys.shape[1]} channels, and the attention weights of each "
            f"token for the tokens up to it. {_most_looked_at(weights, held)}."
        )
    return figure


def attention_maps(
    model: GPT,
    ids: Sequence[int],
    layer: int = 0,
    path: str | Path | None = None,
    labels: Sequence[str] | None = None,
) -> Picture:
    """What each head of a layer looks at: its attention weights (T, T), all heads side by side.

    Args:
        ids: the text's tokens.
        layer: of the attention.
        labels: what to write for each token of the text; None: its position.

    Raises:
        MinigptError: for a layer that is not there, or a text that does not fit.
    """
    T = len(ids)
    names = _labels(labels, T)
    (heads,) = read_heads(model, ids, [layer])
    H = len(heads.weights)
    future = torch.ones(T, T, dtype=torch.bool).triu(1)
    columns = min(H, 6)
    rows, side = -(-H // columns), max(2.0, 0.085 * T)  # inches
    with drawing(path, rows, columns, (side * columns + 1.4, side * rows + 1.2)) as figure:
        panels = figure.axes
        for head, (axes, weights) in enumerate(zip(panels, heads.weights, strict=False)):
            # Most weights are small: as square roots, the colours tell them apart.
            roots = weights.sqrt().masked_fill(future, torch.nan)
            image = draw_matrix(axes, roots, 1.0, signed=False)
            axes.set_title(f"head {head}")
            axes.set_xticks(range(T), names, fontsize=8, rotation=90)
            axes.set_yticks(range(T), names, fontsize=8)
            if head % columns:
                axes.tick_params(labelleft=False)
            else:
                axes.set_ylabel("token looking (query)")
            if head + columns < H:
                axes.tick_params(labelbottom=False)
            else:
                axes.set_xlabel("token looked at (key)")
        for axes in panels[H:]:
            axes.set_axis_off()
        marks = (0, 0.01, 0.1, 0.5, 1)
        bar = figure.colorbar(image, ax=panels, ticks=[mark**0.5 for mark in marks])
        bar.ax.set_yticklabels([str(mark) for mark in marks])
        bar.set_label("attention weight")
        figure.suptitle(f"layer {layer}")
        told = [
            f"head {n}: {_most_looked_at(weights, names)}"
            for n, weights in enumerate(heads.weights)
        ]
        figure.alt = f"Attention weights of layer {layer} on {T} tokens. {'; '.join(told)}."
    return figure


def next_token(
    distributions: Mapping[str, Tensor],
    name: Callable[[int], str],
    count: int = 12,
    path: str | Path | None = None,
) -> Picture:
    """Distributions of the next token side by side: bars for the likeliest tokens of the first.

    The last bar is all other tokens together. A cross marks what is ruled out, probability 0.

    Args:
        distributions: probabilities (V,), as from `Sampler.distribution`, by their title.
        name: what to write for a token.
        count: tokens to show.

    Raises:
        MinigptError: for no distribution.
    """
    if not distributions:
        raise MinigptError("no distributions were given, needed at least one to draw")
    first = next(iter(distributions.values()))  # (V,)
    count = min(count, len(first))
    shown = first.topk(count).indices  # (count,)
    names = [*(name(int(token)) for token in shown), local("all others")]
    size = (2.1 * len(distributions) + 1.2, 0.24 * count + 1.4)
    with drawing(path, 1, len(distributions), size) as figure:
        most, told = 0.0, []
        for n, (axes, title) in enumerate(zip(figure.axes, distributions, strict=True)):
            probabilities = distributions[title][shown].tolist()
            probabilities.append(float(distributions[title].index_fill(0, shown, 0.0).sum()))
            most = max(most, *probabilities)
            bars = axes.barh(range(count + 1), probabilities, color=COLOURS[0])
            bars[-1].set_color(GREY)
            texts = ["×" if p == 0 else f"{p:.2f}" for p in probabilities]
            axes.bar_label(bars, texts, fontsize=8, padding=2)
            axes.set_yticks(range(count + 1), names if n == 0 else [""] * (count + 1))
            axes.set(title=title, xlabel="probability")
            axes.invert_yaxis()
            pairs = zip(names, texts, strict=True)
            told.append(f"{title}: {', '.join(f'{token!r} {text}' for token, text in pairs)}")
        for axes in figure.axes:
            axes.set_xlim(0, 1.25 * most)  # with room for the numbers
        figure.alt = f"Probabilities of the next token. {'; '.join(told)}."
    return figure


def beam_tree(
    steps: Sequence[Sequence[Beam]], name: Callable[[int], str], path: str | Path | None = None
) -> Picture:
    """A beam search as a tree: every text it kept for a step, and which of them were given up.

    Below each token stands the log-probability of the text up to it, in nats. The best text is a
    thick line, others kept to the end are thin, dotted ones were given up on the way.

    Args:
        steps: what `beam_search` found with 1, 2, ... new tokens, best first.
        name: what to write for a token.

    Raises:
        MinigptError: for searches that found nothing.
    """
    if not steps or not steps[-1]:
        raise MinigptError("the beam search found no text, needed one of at least one token")
    scores: dict[tuple[int, ...], str] = {(): ""}  # in the order of being found, best first
    for beam in (beam for beams in steps for beam in beams):
        text = tuple(beam.tokens)
        for end in range(1, len(text)):  # where ended texts were better, a beginning is not listed
            scores.setdefault(text[:end], "")
        scores.setdefault(text, f"{beam.log_probability:.2f}")
    heights: dict[tuple[int, ...], float] = {}
    leaves = 0

    def place(text: tuple[int, ...]) -> float:
        """A leaf has a row of its own; other texts are half way between their continuations."""
        nonlocal leaves
        nexts = [place(t) for t in scores if t and t[:-1] == text]
        leaves += not nexts
        heights[text] = (nexts[0] + nexts[-1]) / 2 if nexts else leaves
        return heights[text]

    place(())
    best, *others = (tuple(beam.tokens) for beam in steps[-1])
    longest = max(map(len, scores))
    with drawing(path, 1, 1, (1.2 * longest + 0.8, 0.42 * leaves + 0.8)) as figure:
        (axes,) = figure.axes

        def write(
            label: str, at: tuple[float, float], shift: tuple[float, float], **how: Any
        ) -> None:
            axes.annotate(label, at, shift, textcoords="offset points", fontsize=8, **how)

        for text, score in scores.items():
            end, height, won = len(text), heights[text], best[: len(text)] == text
            given_up = all(kept[:end] != text for kept in (best, *others))
            if not text:
                write(local("prompt"), (0, height), (-4, 0), ha="right", va="center")
                continue
            axes.plot(
                [end - 1, end - 0.7, end],
                [heights[text[:-1]], height, height],
                color=GREY if given_up else COLOURS[0],
                linewidth=3 if won else 1.2,
                linestyle=":" if given_up else "-",
            )
            for label, shift, side in ((name(text[-1]), 3, "bottom"), (score, -3, "top")):
                weight = "bold" if won else "normal"
                write(label, (end - 0.35, height), (0, shift), ha="center", va=side, weight=weight)
        axes.set(xlabel="new tokens", yticks=[], xticks=range(longest + 1))
        axes.set(xlim=(-0.6, longest + 0.1), ylim=(leaves + 0.4, 0.0))
        axes.spines[["left", "right", "top"]].set_visible(False)
        figure.alt = (
            f"A tree of {len(scores) - 1} texts that a beam search kept for a step. The best: "
            f"{' '.join(repr(name(token)) for token in best)}, log-probability {scores[best]} nats."
        )
    return figure


def draft_race(
    runs: Mapping[str, Sequence[tuple[int, int]]], path: str | Path | None = None
) -> Picture:
    """Speculative decoding, pass by pass: a row for each pass of the model, the tokens it brought.

    A pass brings the guesses that came true and then one token of its own. The fewer passes, the
    flatter the stairs.

    Args:
        runs: for each pass, how many guesses it checked and how many came true, by the run's title.

    Raises:
        MinigptError: for no run or one without passes.
    """
    if not runs or not all(runs.values()):
        raise MinigptError("no runs were given, needed at least one, with a pass in each")
    most = max(len(passes) for passes in runs.values())
    longest = max(sum(true + 1 for _, true in passes) for passes in runs.values())
    with drawing(path, 1, len(runs), (3.2 * len(runs) + 0.4, 4.4)) as figure:
        told = []
        for axes, (title, passes) in zip(figure.axes, runs.items(), strict=True):
            numbers = range(1, len(passes) + 1)
            guessed, true = zip(*passes, strict=True)
            ends = list(accumulate(n + 1 for n in true))  # tokens there are after each pass
            own = [end - 1 for end in ends]
            begins = [0, *ends][:-1]
            wrong = [g - n for g, n in zip(guessed, true, strict=True)]
            label = "guess that was wrong"
            axes.barh(numbers, wrong, 1, own, color="none", edgecolor=GREY, label=label)
            axes.barh(numbers, true, 1, begins, color=COLOURS[1], label="guess that came true")
            axes.barh(numbers, 1, 1, own, color=COLOURS[0], label="the pass's own token")
            axes.set(title=f"{title}: {len(passes)} passes", xlabel="new tokens")
            axes.set(xlim=(0, longest + 4), ylim=(most + 0.5, 0.5))
            told.append(f"{title}: {ends[-1]} tokens in {len(passes)} passes of the model")
        figure.axes[0].set_ylabel("pass of the model")
        handles, names = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=3)
        figure.alt = f"{'; '.join(told)}."
    return figure


def timeline(record: Iterable[Work], path: str | Path | None = None) -> Picture:
    """Who had which row of an engine's batch, step by step: prefill pale, decoding in full colour.

    Args:
        record: `Engine.record`, or a part of it.

    Raises:
        MinigptError: for an empty one.
    """
    record = list(record)
    if not record:
        raise MinigptError("the record is empty: let the engine take a step first")
    first, last = record[0].step, record[-1].step
    slots = 1 + max(work.slot for work in record)
    # Who prefills the last of its prompt decodes in the same step: each has half of the cell.
    prefilled = {(work.step, work.slot) for work in record if work.what == "prefill"}
    decoded = {(work.step, work.slot) for work in record if work.what == "decode"}
    size = (min(12.0, max(5.0, 2 + 0.12 * (last - first))), 1.3 + 0.32 * slots)
    with drawing(path, 1, 1, size) as figure:
        (axes,) = figure.axes
        shown: dict[int, int] = {}  # whose number stands in each row
        for work in record:
            cell = (work.step, work.slot)
            if work.what == "preempted":
                axes.plot(work.step, work.slot, "x", color=INK, markersize=8, markeredgewidth=2)
                shown.pop(work.slot, None)
                continue
            halved = cell in prefilled and cell in decoded
            later = 0.5 if halved and work.what == "decode" else 0.0
            axes.barh(
                work.slot,
                0.5 if halved else 1.0,
                0.8,
                work.step + later,
                color=COLOURS[work.request % len(COLOURS)],
                alpha=PALE if work.what == "prefill" else 1.0,
                linewidth=0,
            )
            if shown.get(work.slot) != work.request:
                shown[work.slot] = work.request
                axes.plot([work.step] * 2, [work.slot - 0.4, work.slot + 0.4], color="white")
                axes.annotate(
                    str(work.request), (work.step, work.slot), (2, 0), textcoords="offset points",
                    va="center", fontsize=7, color="white",
                    bbox={"boxstyle": "square,pad=0.1", "color": INK, "linewidth": 0},
                )  # fmt: skip
        axes.set(xlim=(first, last + 1), ylim=(slots - 0.5, -0.5))
        axes.set(xlabel="step of the engine", ylabel="row of the batch")
        axes.set_yticks(range(slots))
        for name, alpha in (("prefill", PALE), ("decode", 1.0)):
            axes.barh(-9, 0, color=COLOURS[0], alpha=alpha, label=name)
        texts = len({work.request for work in record})
        back = sum(work.what == "preempted" for work in record)
        if back:
            axes.plot([], [], "x", color=INK, markeredgewidth=2, linestyle="", label="put back")
        figure.legend(loc="outside lower center", ncols=3)
        figure.alt = (
            f"{texts} texts in {slots} rows over {last - first + 1} steps; {back} times a text was "
            f"put back."
        )
    return figure


def roofline(
    bandwidth: float,
    flops: float,
    runs: Mapping[str, Mapping[str, tuple[float, float]]],
    path: str | Path | None = None,
) -> Picture:
    """The roof that memory and arithmetic put over all computations, and some that were measured.

    Left of the ridge a computation waits for memory, right of it for arithmetic (Williams et al.
    2009). Both scales are logarithmic.

    Args:
        bandwidth: bytes that are read in a second at best.
        flops: multiplications and additions in a second at best.
        runs: by title and label, each FLOP per byte (see `cost.pass_cost`) and FLOP per second.

    Raises:
        MinigptError: for no run, or numbers that are not above 0.
    """
    points = [point for run in runs.values() for point in run.values()]
    if not points:
        raise MinigptError("no runs were given, needed at least one, with a point in it")
    least = min(bandwidth, flops, *(number for point in points for number in point))
    if not least > 0:
        raise MinigptError(f"one of the numbers is {least}, needed more than 0")
    ridge = flops / bandwidth
    ends = [min(ridge, *(x for x, _ in points)) / 2, max(ridge, *(x for x, _ in points)) * 2]
    with drawing(path, 1, 1, (7, 4.2)) as figure:
        (axes,) = figure.axes
        axes.axvspan(ends[0], ridge, color=GREY, alpha=0.1, linewidth=0)
        roof = [min(flops, bandwidth * x) / 1e9 for x in (ends[0], ridge, ends[1])]
        axes.plot([ends[0], ridge, ends[1]], roof, color=INK, linewidth=2)
        told = []
        for n, (title, run) in enumerate(runs.items()):
            for label, (x, speed) in run.items():
                # Lines rise to the right: below right or above left, a label is clear of them.
                beside, side = ((4, -11), "left") if n % 2 == 0 else ((-4, 5), "right")
                axes.annotate(
                    label, (x, speed / 1e9), beside, textcoords="offset points", fontsize=8,
                    color=COLOURS[n % len(COLOURS)], ha=side,
                )  # fmt: skip
                told.append(f"{title} {label}: {speed / 1e9:,.3g} at {x:.3g} FLOP per byte")
            xs, speeds = zip(*run.values(), strict=True)
            axes.plot(
                xs, [speed / 1e9 for speed in speeds], f"{'osD^v*'[n % 6]}:", label=title,
                color=COLOURS[n % len(COLOURS)],
            )  # fmt: skip
        axes.set(xscale="log", yscale="log", xlim=ends)
        axes.set(xlabel="arithmetic intensity (FLOP per byte)", ylabel="speed (GFLOP per second)")
        bottom, top = axes.get_ylim()
        for axis, (low, high) in ((axes.xaxis, ends), (axes.yaxis, (bottom, top))):
            marks = _round_numbers(low, high)
            axis.set_ticks(marks, [f"{mark:,g}" for mark in marks])
            axis.set_ticks([], minor=True)
        axes.grid()
        for x, side, words in (
            (ridge / 1.08, "right", local("waits for memory")),
            (ridge * 1.08, "left", local("waits for arithmetic")),
        ):
            axes.text(x, top * 1.02, words, ha=side, va="bottom", fontsize=8, color=GREY)
        axes.legend(loc="lower right")
        figure.alt = (
            f"A roof that rises by {bandwidth / 1e9:,.3g} GB per second up to "
            f"{flops / 1e9:,.3g} GFLOP per second, with its ridge at {ridge:.3g} FLOP per byte. "
            f"GFLOP per second of {'; '.join(told)}."
        )
    return figure


def speed_up(
    tokens: Sequence[int],
    cached: Sequence[float],
    uncached: Sequence[float],
    path: str | Path | None = None,
) -> Picture:
    """Seconds with and without a cache, and how many times as long "without" takes.

    Args:
        tokens: lengths of the texts, in new tokens, in rising order.
        cached, uncached: seconds measured for each of these lengths.

    Raises:
        MinigptError: when there is not one time above 0 for each length, or for lengths that do
            not rise.
    """
    if not len(tokens) == len(cached) == len(uncached) > 0:
        raise MinigptError(
            f"{len(tokens)} lengths were given with {len(cached)} cached and {len(uncached)} "
            f"uncached times, needed one of each for every length"
        )
    lengths = [0, *tokens]
    if any(later <= earlier for earlier, later in pairwise(lengths)):
        raise MinigptError(f"the lengths are {list(tokens)}, needed numbers from 1 on that rise")
    quickest = min(*cached, *uncached)
    if not quickest > 0:
        raise MinigptError(f"one of the times is {quickest} seconds, needed more than 0")
    ratios = [slow / quick for slow, quick in zip(uncached, cached, strict=True)]
    with drawing(path, 1, 2, (9, 3.8)) as figure:
        left, right = figure.axes
        for n, (label, seconds) in enumerate((("with the cache", cached), ("without", uncached))):
            style = f"{'os'[n]}{DASHES[n]}"
            left.plot(tokens, seconds, style, color=COLOURS[n], linewidth=2, label=label)
        left.set(title="time", ylabel="time for all new tokens (s)")
        left.legend()
        right.plot(tokens, ratios, color=COLOURS[2], linewidth=2, marker="D")
        right.axhline(1, color=GREY, linestyle=":")  # below it the cache would cost time
        box = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # the label hides a line
        for length, ratio in zip(tokens, ratios, strict=True):
            place, label = (length, ratio), f"{ratio:.1f} ×"
            right.annotate(label, place, (7, -9), textcoords="offset points", fontsize=8, bbox=box)
        right.set(title="speed-up", ylabel="time without / time with the cache")
        for axes in (left, right):
            axes.set(xlabel="new tokens", xlim=(0, 1.18 * tokens[-1]))
            axes.set_ylim(0)
            axes.grid()
        told = [
            f"{length} tokens, {quick:.3g} s with the cache, {slow:.3g} s without, {ratio:.1f} ×"
            for length, quick, slow, ratio in zip(tokens, cached, uncached, ratios, strict=True)
        ]
        figure.alt = f"Time to generate, and what the cache saves. {'; '.join(told)}."
    return figure


def cells(
    numbers: Tensor,
    unit: str,
    axes: tuple[str, str],
    names: tuple[Sequence[str], Sequence[str]],
    texts: Sequence[Sequence[str]] | None = None,
    path: str | Path | None = None,
) -> Picture:
    """A table whose cells are coloured by their numbers, with a text in each.

    Numbers of both signs get colours of two kinds, white at 0.

    Args:
        numbers: (rows, columns).
        unit: what they are, for the scale of colours.
        axes, names: what the rows are and what the columns are, and what to call each of them.
        texts: what to write in the cells; None: nothing.
    """
    rows, columns = numbers.shape
    wide = 0.16 if texts is None else 0.62  # inches
    upright = max(map(len, names[1]), default=0) * 0.09 > wide  # inches: else they would touch
    with drawing(path, 1, 1, (wide * columns + 2.2, 0.36 * rows + 1.3)) as figure:
        (panel,) = figure.axes
        signed = bool(numbers.min() < 0)
        image = draw_matrix(panel, numbers, float(numbers.abs().max()), signed)
        if not signed:  # the least need not be near 0
            image.set_clim(float(numbers.min()), float(numbers.max()))
        for row, line in enumerate(texts or ()):
            for column, text in enumerate(line):
                colour = contrasting(image, float(numbers[row, column]))
                panel.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)
        panel.set_yticks(range(rows), names[0])
        panel.set_xticks(range(columns), names[1], rotation=90 if upright else 0)
        panel.set(ylabel=axes[0], xlabel=axes[1])
        figure.colorbar(image, ax=panel, label=unit)
        row, column = divmod(int(numbers.argmax()), columns)
        figure.alt = (
            f"{unit.capitalize()} by {axes[0]} and {axes[1]}, {rows} by {columns}, from "
            f"{float(numbers.min()):.3g} to {float(numbers.max()):.3g}; the most at "
            f"{axes[0]} {names[0][row]}, {axes[1]} {names[1][column]}."
        )
    return figure


def _round_numbers(low: float, high: float) -> list[float]:
    """1, 2, 5, 10, 20, ... between two numbers above 0: marks on a logarithmic scale."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)))
    marks = [float(f"{step}e{decade}") for decade in decades for step in (1, 2, 5)]
    return [mark for mark in [*marks, 10.0**decades.stop] if low <= mark <= high]


def _labels(labels: Sequence[str] | None, count: int) -> list[str]:
    if labels is None:
        return [str(position) for position in range(count)]
    if len(labels) != count:
        raise MinigptError(f"{len(labels)} labels were given for {count} tokens, needed as many")
    return list(labels)


def _most_looked_at(weights: Tensor, held: Sequence[str]) -> str:
    """In words: the key that gets the most, of all queries' weights (T, S) together."""
    share = weights.mean(0)
    key = int(share.argmax())
    return f"the key looked at most is {held[key]!r}, with {share[key]:.0%} of all weight"
