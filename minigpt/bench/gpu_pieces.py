"""What the pieces of a decoding step take on a GPU, in ways that could replace one another.

Every layer's turn comes, so that weights are read from memory, and all is recorded and replayed, so
that nothing waits for Python: the times are those of the kernels in a step.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from minigpt.bench.findings import Findings
from minigpt.bench.gpu_place import Place
from minigpt.model import GPT, Block
from minigpt.numerics.base import KEY_BLOCK
from minigpt.numerics.certificates import plain_attention
from minigpt.numerics.device_attention import DeviceStarts, quickly

Piece = Callable[[Block], object]


@torch.inference_mode()
def time_pieces(findings: Findings, place: Place, model: GPT) -> None:
    """Microseconds of each, for one text."""
    blocks = [block for block in model.h if isinstance(block, Block)]
    x = torch.randn(1, model.config.n_embd, device=place.device, dtype=model.dtype)
    read = sum(block.mlp.c_fc.weight.nbytes for block in blocks)
    for name, piece in _products(x).items():
        took = _seconds(place, partial(_all, piece, blocks))
        speed = {"GB/s": read / took / 1e9}
        findings.add(f"c_fc, {name}", 1e6 * took / len(blocks), "us", **speed)
    pieces = _small(x)
    for keys in (KEY_BLOCK, 8 * KEY_BLOCK):
        pieces |= _attentions(place, model, keys)
    for name, piece in pieces.items():
        took = _seconds(place, partial(_all, piece, blocks))
        findings.add(name, 1e6 * took / len(blocks), "us")


def _products(x: Tensor) -> dict[str, Piece]:
    """Of one row (1, in) and the widest weight of a layer."""

    def of(product: Callable[[Tensor, Tensor], Tensor]) -> Piece:
        return lambda block: product(block.mlp.c_fc.weight, block.mlp.c_fc.bias)

    return {
        "linear with bias, as now": of(lambda weight, bias: F.linear(x, weight.T, bias)),
        "addmm": of(lambda weight, bias: torch.addmm(bias, x, weight)),
        "product, then bias": of(lambda weight, bias: x @ weight + bias),
        "product, no bias": of(lambda weight, _: x @ weight),
        "addmv": of(lambda weight, bias: torch.addmv(bias, weight.T, x[0])),
        "mv, then bias": of(lambda weight, bias: torch.mv(weight.T, x[0]) + bias),
    }


def _small(x: Tensor) -> dict[str, Piece]:
    """Of one row, (1, C)."""
    return {
        "adding two rows": lambda block: x + x,
        "layer norm": lambda block: block.ln_1(x),
        "gelu": lambda block: F.gelu(x, approximate="tanh"),
    }


def _attentions(place: Place, model: GPT, keys: int) -> dict[str, Piece]:
    heads, width, scale = model.config.n_head, model.config.head_dim, model.config.head_dim**-0.5
    q, k, v = (
        torch.randn(1, heads, count, width, device=place.device, dtype=model.dtype)
        for count in (1, keys, keys)
    )
    numbers = torch.arange(keys, device=place.device)
    starts = DeviceStarts([keys // KEY_BLOCK], numbers[-9:-8], numbers, model.dtype)
    mask = starts.mask
    return {
        f"attention to {keys}, as now": lambda _: quickly(q, k, v, starts, scale),
        f"attention to {keys}, two products": lambda _: plain_attention(q, k, v, mask, scale),
    }


def _all(piece: Piece, blocks: list[Block]) -> None:
    for block in blocks:
        piece(block)


def _seconds(place: Place, run: Callable[[], object]) -> float:
    """The best of several replays of what `run` asks for; of calls, on a CPU."""
    run()
    if place.cuda:
        place.wait()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        run = graph.replay
    return min(place.seconds(run) for _ in range(2 if place.small else 12))
