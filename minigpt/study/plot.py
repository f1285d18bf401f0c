"""Pictures of caches, and of a model at work: what it looks at, what it may say, what it tried.

Every function returns a matplotlib Figure and saves it too when given a path, as PNG or SVG by its
suffix. Backgrounds are transparent and lines a middle grey, so that they read on paper and on dark
screens; colours are told apart by colour-blind readers too (Okabe and Ito 2008; cividis).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from minigpt.bench.measure import Table
from minigpt.cache.base import KVCache
from minigpt.cache.kinds import KINDS
from minigpt.cache.lossy import WindowCache
from minigpt.config import GPTConfig
from minigpt.generation.beam import Beam
from minigpt.model import GPT
from minigpt.numerics.recorder import recording
from minigpt.study.cost import cache_bytes
from minigpt.support.errors import MinigptError
from minigpt.support.modes import evaluating

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9")  # Okabe and Ito
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)))  # so that no colour is needed
GREY = "#808080"
FAMILY = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
MB = 10**6


def cache_growth(path: str | Path | None = None, config: GPTConfig | None = None) -> Figure:
    """Bytes of a cache against its length: the GPT-2 family, and one shape with grouped heads.

    Args:
        path: to save it as well, *.png or *.svg.
        config: the shape whose key/value heads are grouped: as many as query heads, about a
            quarter of them, and one; None: gpt2's.

    Raises:
        MinigptError: without matplotlib, or when the file cannot be written.
    """
    name = "GPT-2 124M" if config is None else "this model"
    config = config or GPTConfig.preset("gpt2")
    figure, (left, right) = _figure(path, 1, 2, (9, 3.8))
    for n, preset in enumerate(FAMILY):
        _growth(left, n, GPTConfig.preset(preset), preset)
    left.set_title("the GPT-2 family")
    H = config.n_head
    quarter = max(G for G in range(1, H + 1) if H % G == 0 and (G == 1 or 4 * G <= H))
    groups = sorted({H, quarter, 1}, reverse=True)
    for n, G in enumerate(groups):
        _growth(right, n, replace(config, n_kv_head=G), f"{G} of {H} heads")
    right.set_title(f"grouped key/value heads, {name}")
    for axes in (left, right):
        axes.set_ylim(0)  # now that all lines are there
    return _finished(figure, path)


def memory_by_kind(
    path: str | Path | None = None, config: GPTConfig | None = None, length: int | None = None
) -> Figure:
    """Bytes of every kind of cache for one row of text, in float32 and bfloat16.

    Args:
        path: to save it as well, *.png or *.svg.
        config: the model's shape; None: gpt2's.
        length: tokens held; None: half the context.

    Raises:
        MinigptError: without matplotlib, or when the file cannot be written.
    """
    config = config or GPTConfig.preset("gpt2")
    length = config.n_positions // 2 if length is None else length
    figure, axes = _figure(path, 1, 1, (7, 3.6))
    for n, dtype in enumerate((torch.float32, torch.bfloat16)):
        heights = [cache_bytes(config, kind, length, dtype) / MB for kind in KINDS]
        places = [place + 0.4 * n - 0.2 for place in range(len(KINDS))]
        bars = axes.bar(places, heights, 0.38, color=COLOURS[n], hatch=("", "//")[n],
                        edgecolor=GREY, label=str(dtype).removeprefix("torch."))  # fmt: skip
        axes.bar_label(bars, fmt="%.3g", color=GREY, fontsize=8)
    axes.set_xticks(range(len(KINDS)), list(KINDS))
    axes.set(xlabel="kind of cache", ylabel="allocated (MB)")
    axes.set_title(f"a cache made for {config.n_positions:,} tokens that holds {length:,}")
    axes.margins(y=0.12)
    _legend(axes)
    return _finished(figure, path)


def cache_heatmap(
    source: GPT | KVCache, ids: Sequence[int] | None = None, layer: int = 0, head: int = 0,
    path: str | Path | None = None, labels: Sequence[str] | None = None,
) -> Figure:  # fmt: skip
    """What one head keeps of a text, and what it looks at: keys, values and attention weights.

    Args:
        source: a model, or a cache, of which the first row is shown.
        ids: the text's tokens, for a model; a cache knows its own.
        layer, head: of the attention; with grouped heads, the keys are those of the head's group.
        path: to save it as well, *.png or *.svg.
        labels: what to write for each token of the text; None: its position.

    Raises:
        MinigptError: for a layer or head that is not there, a text that does not fit, without
            matplotlib, or when the file cannot be written.
    """
    keys, values, attention, positions = head_state(source, ids, layer, head)
    T = len(attention)
    if labels is not None and len(labels) != T:
        raise MinigptError(f"{len(labels)} labels were given for {T} tokens, needed as many")
    figure, axes = _figure(path, 1, 3, (11, 4.2))
    titles = ("keys", "values", "attention weights")
    for n, (ax, title, numbers) in enumerate(
        zip(axes, titles, (keys, values, attention), strict=True)
    ):
        # Most numbers are small and a few huge: the colours end where 99 % of the numbers do.
        most = float(numbers.abs().float().quantile(0.99)) if n < 2 else float(attention.max())
        image = ax.imshow(numbers.numpy(), aspect="auto", cmap="cividis", interpolation="nearest",
                          vmin=-most if n < 2 else 0.0, vmax=most)  # fmt: skip
        bar = figure.colorbar(image, ax=ax, extend="both" if n < 2 else "neither")
        _grey(bar.ax)
        bar.outline.set_edgecolor(GREY)
        ax.set(title=title, xlabel="channel" if n < 2 else "token looked at (key)")
        if n != 1:
            ax.set_ylabel("token (position)" if n == 0 else "token looking (query)")
    if labels is None and positions != list(range(len(keys))):
        labels = [
            str(position) for position in range(T)
        ]  # some were forgotten, the rest need names
    if labels is not None:
        held = [labels[position] for position in positions]
        for ax, names in zip(axes, (held, held, labels), strict=True):
            ax.set_yticks(range(len(names)), names, fontsize=7)
        axes[2].set_xticks(range(len(held)), held, fontsize=7, rotation=90)
    figure.suptitle(f"layer {layer}, head {head}", color=GREY)
    return _finished(figure, path)


def speed_up(
    tokens: Sequence[int], cached: Sequence[float], uncached: Sequence[float],
    path: str | Path | None = None,
) -> Figure:  # fmt: skip
    """Seconds with and without a cache, and how many times as long "without" takes.

    Args:
        tokens: lengths of the texts, in new tokens, in rising order.
        cached, uncached: seconds measured for each of these lengths.
        path: to save it as well, *.png or *.svg.

    Raises:
        MinigptError: when there is not one time above 0 for each length, for lengths that do not
            rise, without matplotlib, or when the file cannot be written.
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
    figure, (left, right) = _figure(path, 1, 2, (9, 3.8))
    for n, (label, seconds) in enumerate((("with the cache", cached), ("without", uncached))):
        left.plot(tokens, seconds, color=COLOURS[n], linestyle=DASHES[n], linewidth=2,
                  marker="os"[n], label=label)  # fmt: skip
    left.set(title="time", ylabel="time for all new tokens (s)")
    _legend(left)
    ratios = [slow / quick for slow, quick in zip(uncached, cached, strict=True)]
    right.plot(tokens, ratios, color=COLOURS[2], linewidth=2, marker="D")
    right.axhline(1, color=GREY, linestyle=":", linewidth=1)  # below it the cache would cost time
    for length, ratio in zip(tokens, ratios, strict=True):
        right.annotate(f"{ratio:.1f} ×", (length, ratio), xytext=(7, -9), color=GREY, fontsize=8,
                       textcoords="offset points")  # fmt: skip
    right.set(title="speed-up", ylabel="time without / time with the cache")
    for axes in (left, right):
        axes.set_xlabel("new tokens")
        axes.set_xlim(0, 1.12 * tokens[-1])
        axes.set_ylim(0)
        axes.grid(color=GREY, alpha=0.25, linewidth=0.6)
    return _finished(figure, path)


@torch.inference_mode()
def head_state(
    source: GPT | KVCache, ids: Sequence[int] | None = None, layer: int = 0, head: int = 0
) -> tuple[Tensor, Tensor, Tensor, list[int]]:
    """Keys (S, D), values (S, D) and attention weights (T, S) of one head, in float32 on the CPU,
    and the positions that the S keys were made at; S < T when a cache has forgotten some.

    The weights are computed again, from the queries of an uncached pass and the keys shown: they
    are what attention multiplies the values with, up to rounding.

    Raises:
        MinigptError: for a layer or head that is not there, a text that does not fit, or a cache
            that knows neither its model nor its tokens.
    """
    cache = source if isinstance(source, KVCache) else None
    if isinstance(source, GPT):
        model, text = source, list(ids or [])
    elif source.model is None or source.tokens is None:
        raise MinigptError(f"{source!r} does not know its model or tokens: pass a model and ids")
    else:
        model, text = source.model, source.tokens[0]
    config = model.config
    for name, value, count in (("layer", layer, config.n_layer), ("head", head, config.n_head)):
        if type(value) is not int or not 0 <= value < count:
            raise MinigptError(f"{name} is {value!r}, needed 0 to {count - 1}")
    with evaluating(model), recording(model) as log:
        model(torch.tensor([text], dtype=torch.int64, device=model.device))
    q, k, v, _, scale, _ = log[f"h.{layer}.attn"].arguments
    positions = list(range(len(text)))
    if cache is not None:
        k, v = cache.layer(layer)
        positions = cache.positions[0] if isinstance(cache, WindowCache) else positions
    group, held = head // (config.n_head // config.kv_heads), len(positions)
    q, k, v = (x.float().cpu() for x in (q[0, head], k[0, group, :held], v[0, group, :held]))
    future = torch.tensor(positions) > torch.arange(len(text))[:, None]  # (T, S)
    scores = (q @ k.T * scale).masked_fill(future, -torch.inf)
    return k, v, scores.softmax(-1).nan_to_num(0.0), positions  # 0 where nothing seen is left


def attention_maps(
    model: GPT, ids: Sequence[int], layer: int = 0,
    path: str | Path | None = None, labels: Sequence[str] | None = None,
) -> Figure:  # fmt: skip
    """What each head of a layer looks at: its attention weights (T, T), all heads side by side.

    Args:
        ids: the text's tokens.
        layer: of the attention.
        path: to save it as well, *.png or *.svg.
        labels: what to write for each token of the text; None: its position.

    Raises:
        MinigptError: for a layer that is not there, a text that does not fit, without matplotlib,
            or when the file cannot be written.
    """
    T, H = len(ids), model.config.n_head
    if labels is not None and len(labels) != T:
        raise MinigptError(f"{len(labels)} labels were given for {T} tokens, needed as many")
    heads = [head_state(model, ids, layer, head)[2] for head in range(H)]  # H x (T, T)
    future = torch.ones(T, T, dtype=torch.bool).triu(1)
    columns = min(H, 6)
    rows, side = -(-H // columns), max(2.0, 0.085 * T)  # inches
    figure, _ = _figure(path, rows, columns, (side * columns + 1.4, side * rows + 1.2))
    panels = figure.axes
    for head, (ax, weights) in enumerate(zip(panels, heads, strict=False)):
        # Most weights are small: as square roots, the colours tell them apart.
        roots = weights.sqrt().masked_fill(future, torch.nan)
        image = ax.imshow(roots.numpy(), aspect="auto", cmap="cividis", interpolation="nearest",
                          vmin=0.0, vmax=1.0)  # fmt: skip
        ax.set_title(f"head {head}")
        if labels is not None:
            ax.set_xticks(range(T), _plain(labels), fontsize=6, rotation=90)
            ax.set_yticks(range(T), _plain(labels), fontsize=6)
        if head % columns:
            ax.tick_params(labelleft=False)
        else:
            ax.set_ylabel("token looking (query)")
        if head + columns < H:
            ax.tick_params(labelbottom=False)
        else:
            ax.set_xlabel("token looked at (key)")
    for ax in panels[H:]:
        ax.set_axis_off()
    bar = figure.colorbar(image, ax=panels, ticks=[0, 0.01**0.5, 0.1**0.5, 0.5**0.5, 1])
    bar.ax.set_yticklabels(["0", "0.01", "0.1", "0.5", "1"])
    bar.set_label("attention weight")
    bar.outline.set_edgecolor(GREY)
    figure.suptitle(f"layer {layer}", color=GREY)
    return _finished(figure, path)


def next_token(
    distributions: Mapping[str, Tensor], name: Callable[[int], str], count: int = 12,
    path: str | Path | None = None,
) -> Figure:  # fmt: skip
    """Distributions of the next token side by side: bars for the likeliest tokens of the first.

    The last bar is all other tokens together. A cross marks what is ruled out, probability 0.

    Args:
        distributions: probabilities (V,), as from `Sampler.distribution`, by their title.
        name: what to write for a token.
        count: tokens to show.
        path: to save it as well, *.png or *.svg.

    Raises:
        MinigptError: for no distribution, without matplotlib, or when the file cannot be written.
    """
    if not distributions:
        raise MinigptError("no distributions were given, needed at least one to draw")
    first = next(iter(distributions.values()))  # (V,)
    count = min(count, len(first))
    shown = first.topk(count).indices  # (count,)
    names = _plain([*(name(int(token)) for token in shown), "all others"])
    size = (2.1 * len(distributions) + 1.2, 0.24 * count + 1.4)
    figure, _ = _figure(path, 1, len(distributions), size)
    most = 0.0
    for n, (ax, title) in enumerate(zip(figure.axes, distributions, strict=True)):
        probabilities = distributions[title][shown].tolist()
        probabilities.append(float(distributions[title].index_fill(0, shown, 0.0).sum()))
        most = max(most, *probabilities)
        bars = ax.barh(range(count + 1), probabilities, color=COLOURS[0])
        bars[-1].set_color(GREY)
        texts = ["×" if p == 0 else f"{p:.2f}" for p in probabilities]
        ax.bar_label(bars, texts, color=GREY, fontsize=8, padding=2)
        ax.set_yticks(range(count + 1), names if n == 0 else [""] * (count + 1))
        ax.set(title=title, xlabel="probability")
        ax.invert_yaxis()
    for ax in figure.axes:
        ax.set_xlim(0, 1.25 * most)  # with room for the numbers
    return _finished(figure, path)


def beam_tree(
    steps: Sequence[Sequence[Beam]], name: Callable[[int], str], path: str | Path | None = None
) -> Figure:
    """A beam search as a tree: every text it kept for a step, and which of them were given up.

    Below each token stands the log-probability of the text up to it, in nats. The best text is a
    thick line, others kept to the end are thin, dotted ones were given up on the way.

    Args:
        steps: what `beam_search` found with 1, 2, ... new tokens, best first.
        name: what to write for a token.
        path: to save it as well, *.png or *.svg.

    Raises:
        MinigptError: for searches that found nothing, without matplotlib, or when the file cannot
            be written.
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
    figure, ax = _figure(path, 1, 1, (1.2 * longest + 0.8, 0.42 * leaves + 0.8))
    for text, score in scores.items():
        end, height, won = len(text), heights[text], best[: len(text)] == text
        given_up = all(kept[:end] != text for kept in (best, *others))
        if not text:
            ax.annotate("prompt", (0, height), (-4, 0), textcoords="offset points", ha="right",
                        va="center", fontsize=8, color=GREY)  # fmt: skip
            continue
        ax.plot([end - 1, end - 0.7, end], [heights[text[:-1]], height, height],
                color=GREY if given_up else COLOURS[0], linewidth=3 if won else 1.2,
                linestyle=":" if given_up else "-")  # fmt: skip
        (token,) = _plain([name(text[-1])])
        for label, shift, side in ((token, 3, "bottom"), (score, -3, "top")):
            ax.annotate(label, (end - 0.35, height), (0, shift), textcoords="offset points",
                        ha="center", va=side, fontsize=8, color=GREY,
                        weight="bold" if won else "normal")  # fmt: skip
    ax.set(xlabel="new tokens", yticks=[], xticks=range(longest + 1))
    ax.set(xlim=(-0.6, longest + 0.1), ylim=(leaves + 0.4, 0.0))
    for spine in ("left", "right", "top"):
        ax.spines[spine].set_visible(False)
    return _finished(figure, path)


def draft_race(
    runs: Mapping[str, Sequence[tuple[int, int]]], path: str | Path | None = None
) -> Figure:
    """Speculative decoding, pass by pass: a row for each pass of the model, the tokens it brought.

    A pass brings the guesses that came true and then one token of its own. The fewer passes, the
    flatter the stairs.

    Args:
        runs: for each pass, how many guesses it checked and how many came true, by the run's title.
        path: to save it as well, *.png or *.svg.

    Raises:
        MinigptError: for no run or one without passes, without matplotlib, or when the file
            cannot be written.
    """
    if not runs or not all(runs.values()):
        raise MinigptError("no runs were given, needed at least one, with a pass in each")
    figure, _ = _figure(path, 1, len(runs), (3.2 * len(runs) + 0.4, 4.4))
    most = max(len(passes) for passes in runs.values())
    longest = max(sum(true + 1 for _, true in passes) for passes in runs.values())
    for ax, (title, passes) in zip(figure.axes, runs.items(), strict=True):
        numbers = range(1, len(passes) + 1)
        guessed, true = zip(*passes, strict=True)
        ends = list(accumulate(n + 1 for n in true))  # tokens there are after each pass
        own = [end - 1 for end in ends]
        begins = [0, *ends][:-1]
        wrong = [g - n for g, n in zip(guessed, true, strict=True)]
        ax.barh(numbers, wrong, 1, own, color="none", edgecolor=GREY, linewidth=0.5,
                label="guess that was wrong")  # fmt: skip
        ax.barh(numbers, true, 1, begins, color=COLOURS[1], label="guess that came true")
        ax.barh(numbers, 1, 1, own, color=COLOURS[0], label="the pass's own token")
        ax.set(title=f"{title}: {len(passes)} passes", xlabel="new tokens", xlim=(0, longest + 4))
        ax.set_ylim(most + 0.5, 0.5)
    figure.axes[0].set_ylabel("pass of the model")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3,
                  frameon=False, labelcolor=GREY, fontsize=8)  # fmt: skip
    return _finished(figure, path)


def cells(
    numbers: Tensor, unit: str, axes: tuple[str, str], names: tuple[Sequence[str], Sequence[str]],
    texts: Sequence[Sequence[str]] | None = None, path: str | Path | None = None,
) -> Figure:  # fmt: skip
    """A table whose cells are coloured by their numbers, with a text in each.

    Args:
        numbers: (rows, columns).
        unit: what they are, for the scale of colours.
        axes, names: what the rows are and what the columns are, and what to call each of them.
        texts: what to write in the cells; None: nothing.
        path: to save it as well, *.png or *.svg.

    Raises:
        MinigptError: without matplotlib, or when the file cannot be written.
    """
    rows, columns = numbers.shape
    wide = 0.16 if texts is None else 0.62  # inches
    figure, ax = _figure(path, 1, 1, (wide * columns + 2.2, 0.36 * rows + 1.3))
    image = ax.imshow(numbers.numpy(), aspect="auto", cmap="cividis", interpolation="nearest")
    for row, line in enumerate(texts or ()):
        for column, text in enumerate(_plain(line)):
            light = image.norm(float(numbers[row, column])) > 0.5
            ax.text(column, row, text, ha="center", va="center", fontsize=8,
                    color="black" if light else "white")  # fmt: skip
    ax.set_yticks(range(rows), _plain(names[0]))
    ax.set_xticks(range(columns), _plain(names[1]))
    ax.set(ylabel=axes[0], xlabel=axes[1])
    bar = figure.colorbar(image, ax=ax, label=unit)
    bar.outline.set_edgecolor(GREY)
    return _finished(figure, path)


def measured(table: Table, path: str | Path | None = None) -> Figure:
    """What `minigpt bench` measured: a bar for each median, a line from least to most.

    Args:
        table: from `Bench.measure`; sections with one row are left out.
        path: to save it as well, *.png or *.svg.

    Raises:
        MinigptError: when no section has two rows; without matplotlib, or when the file cannot be
            written.
    """
    sections = [section for section in table.sections if len(section.rows) > 1]
    if not sections:
        raise MinigptError("nothing was measured that could be compared, needed two rows or more")
    rows = max(len(section.rows) for section in sections)
    figure, _ = _figure(path, 1, len(sections), (5.2 * len(sections), 0.24 * rows + 1.2))
    for axes, section in zip(figure.axes, sections, strict=True):
        for n, row in enumerate(section.rows):
            ours, middle, most = "minigpt" in row.name, median(row.samples), max(row.samples)
            limit = row.name.endswith("limit")
            axes.barh(n, middle, color=GREY if limit else COLOURS[0 if ours else 1])
            axes.plot([min(row.samples), most], [n, n], color=GREY, linewidth=1)
            axes.text(most, n, f" {middle:.3g}", va="center", fontsize=7, color=GREY)
        names = [" ".join(row.name.split()) for row in section.rows]
        axes.set_yticks(range(len(names)), names, fontsize=7)
        axes.invert_yaxis()  # the first on top
        axes.margins(x=0.12, y=0.02)
        axes.set_xlabel(" or ".join(sorted({row.unit for row in section.rows})))
        axes.set_title(f"{section.name}: {section.title}", fontsize=8)
    return _finished(figure, path)


# --- pieces ---------------------------------------------------------------------------------------


def _growth(axes: Axes, n: int, config: GPTConfig, label: str) -> None:
    """One line: allocated as it grows, so without room for more."""
    lengths = [0, config.n_positions]
    per_token = cache_bytes(config, "growing", config.n_positions) // config.n_positions
    axes.plot(lengths, [length * per_token / MB for length in lengths], color=COLOURS[n],
              linestyle=DASHES[n], linewidth=2,
              label=f"{label}: {per_token / 1000:,.1f} kB per token")  # fmt: skip
    axes.set(xlabel="length (tokens)", ylabel="cache of one row (MB, float32)")
    axes.set_xlim(0, config.n_positions)
    axes.grid(color=GREY, alpha=0.25, linewidth=0.6)
    _legend(axes)


def check(path: str | Path | None) -> None:
    """Refuse now what a picture would refuse later: its suffix, a missing matplotlib.

    Raises:
        MinigptError: for these.
    """
    if path is not None and Path(path).suffix.lower() not in (".png", ".svg"):
        raise MinigptError(f"{path} does not end in .png or .svg, needed one of them for a picture")
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise MinigptError(
            "pictures need matplotlib, which is not installed: pip install minigpt[plots]"
        ) from error


def _figure(path: str | Path | None, rows: int, columns: int, size: tuple[float, float]) -> Any:
    """A figure of its own, not of `pyplot`, whose figures live until they are closed."""
    check(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    figure.patch.set_alpha(0)
    return figure, figure.subplots(rows, columns)


def _finished(figure: Figure, path: str | Path | None) -> Figure:
    for axes in figure.axes:
        _grey(axes)
    if path is not None:
        try:
            figure.savefig(path, dpi=150, metadata={"Date": None} if _svg(path) else None)
        except OSError as error:
            raise MinigptError(f"the picture could not be written to {path} ({error})") from error
    return figure


def _svg(path: str | Path) -> bool:
    return Path(path).suffix.lower() == ".svg"


def _grey(axes: Axes) -> None:
    """Text and frame in a grey that reads on white and on black."""
    axes.set_facecolor("none")
    axes.tick_params(colors=GREY)
    for text in (axes.title, axes.xaxis.label, axes.yaxis.label):
        text.set_color(GREY)
    for spine in axes.spines.values():
        spine.set_edgecolor(GREY)


def _legend(axes: Axes) -> None:
    axes.legend(frameon=False, labelcolor=GREY, fontsize=8)


def _plain(labels: Sequence[str]) -> list[str]:
    """The same, to be written as they are: between dollars matplotlib would read mathematics."""
    return [label.replace("$", r"\$") for label in labels]
