"""Pictures of caches: how they grow, what is in them, what each kind takes, the time one saves.

Every function returns a matplotlib Figure and saves it too when given a path, as PNG or SVG by its
suffix. Backgrounds are transparent and lines a middle grey, so that they read on paper and on dark
screens; colours are told apart by colour-blind readers too (Okabe and Ito 2008; cividis).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from minigpt.cache import KVCache
from minigpt.cache_kinds import KINDS
from minigpt.cache_lossy import WindowCache
from minigpt.config import GPTConfig
from minigpt.diagnose import recording
from minigpt.errors import MinigptError
from minigpt.generate import evaluating
from minigpt.inspect import cache_bytes
from minigpt.model import GPT

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


def _figure(path: str | Path | None, rows: int, columns: int, size: tuple[float, float]) -> Any:
    """A figure of its own, not of `pyplot`, whose figures live until they are closed."""
    if path is not None and Path(path).suffix.lower() not in (".png", ".svg"):
        raise MinigptError(f"{path} does not end in .png or .svg, needed one of them for a picture")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MinigptError(
            "pictures need matplotlib, which is not installed: pip install minigpt[plots]"
        ) from error
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
