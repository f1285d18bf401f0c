"""What a training run came to: its best model, measured on everything held out, and its cost.

Losses are compared with what counting would do, and told per byte, so that tokenizers compare too.
Printing is left to the command line.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from minigpt.config import GPTConfig
from minigpt.model import GPT
from minigpt.support.memory import peak_memory
from minigpt.training.losses import evaluate
from minigpt.training.recipes import TrainConfig
from minigpt.training.sources import Source, Text
from minigpt.training.state import State

MOST_PAIRS = 2**24  # V x V counts that a bigram table may take
PART = 2**22  # tokens in memory at a time
COUNTED = 2**26  # tokens of the training text that are counted, the first

# Multiplications and additions per second, dense, from NVIDIA's data sheets: by the device's name,
# in bfloat16 or float16, and in float32 (TF32 is not used).
PEAKS: dict[str, tuple[float, float]] = {
    "H200": (989e12, 67e12),
    "H100": (989e12, 67e12),
    "A100": (312e12, 19.5e12),
    "L4": (121e12, 30.3e12),
    "T4": (65e12, 8.1e12),
}


@dataclass(frozen=True)
class Summary:
    """Losses are in nats per token, on all that is held out."""

    step: int  # of the best model
    loss: float
    unigram: float | None  # how well token frequencies alone would do; None: nothing to count
    bigram: float | None  # ... and frequencies given the token before; None: too many pairs
    bits_per_byte: float | None  # of the text in UTF-8; None: no text
    accuracy: float | None  # part of the unseen problems solved exactly; None: no task
    tokens_per_second: float
    utilisation: float | None  # of the device's peak; None: its peak is not known
    seconds: float  # of training, evaluations aside
    peak_memory: int | None  # bytes; None: unknown

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.loss, 700.0))

    def __str__(self) -> str:
        lines = [
            f"best model         step {self.step:,}",
            f"held-out loss      {self.loss:.4f} nats per token, perplexity {self.perplexity:,.2f}",
        ]
        if self.bits_per_byte is not None:
            lines.append(f"bits per byte      {self.bits_per_byte:.4f}")
        if self.unigram is not None:
            bigram = "" if self.bigram is None else f", bigram {self.bigram:.4f}"
            lines.append(f"counting would do  unigram {self.unigram:.4f}{bigram}")
        if self.accuracy is not None:
            lines.append(f"exactly right      {self.accuracy:.2%} of unseen problems")
        speed = f"{self.tokens_per_second:,.0f} tokens/s"
        lines.append(f"training           {self.seconds:,.0f} s, {speed}")
        if self.utilisation is not None:
            lines.append(f"utilisation        {self.utilisation:.1%} of the device's peak")
        if self.peak_memory is not None:
            lines.append(f"peak memory        {self.peak_memory / 2**20:,.0f} MiB")
        return "\n".join(lines)


def summarise(
    directory: str | Path,
    source: Source,
    config: TrainConfig,
    state: State,
    device: torch.device,
    accuracy: Callable[[GPT], float] | None = None,
    processes: int = 1,
) -> Summary:
    """Measure the best model of a run, as it was saved."""
    model = GPT.from_pretrained(directory, device=device, numerics="fast")
    loss = evaluate(model, source.held_out())
    unigram = bigram = bits_per_byte = None
    if isinstance(source, Text):
        corpus = source.corpus
        unigram, bigram = baselines(corpus.training, corpus.held_out, model.config.vocab_size)
    if source.bytes_per_token:
        bits_per_byte = loss / math.log(2) / source.bytes_per_token
    speed = state.step * config.batch_size * source.width / max(state.seconds, 1e-9)
    utilisation, peak = None, peak_flops(device, config.precision)
    if peak:
        utilisation = speed * flops(model.config, source.width) / (peak * processes)
    return Summary(
        step=state.best_step,
        loss=loss,
        unigram=unigram,
        bigram=bigram,
        bits_per_byte=bits_per_byte,
        accuracy=accuracy(model) if accuracy else None,
        tokens_per_second=speed,
        utilisation=utilisation,
        seconds=state.seconds,
        peak_memory=peak_memory(device),
    )


def baselines(
    training: npt.NDArray[np.integer], held_out: npt.NDArray[np.integer], vocab_size: int
) -> tuple[float, float | None]:
    """Cross-entropy of unigram and bigram counts with add-one smoothing, in nats per token."""
    V = vocab_size
    seen, new = training[:COUNTED], held_out
    unigram = np.ones(V)  # (V,)
    for part in _parts(seen):
        unigram += np.bincount(part, minlength=V)
    one = _mean(-np.log(unigram / unigram.sum()), new[1:])
    if V**2 > MOST_PAIRS:
        return one, None
    bigram = np.ones(V**2)
    for part in _parts(seen, 1):
        bigram += np.bincount(part[:-1] * V + part[1:], minlength=V**2)
    pairs = bigram.reshape(V, V)
    nats = -np.log(pairs / pairs.sum(1, keepdims=True))
    total = sum(nats[part[:-1], part[1:]].sum() for part in _parts(new, 1))
    return one, float(total / (len(new) - 1))


def _parts(tokens: npt.NDArray[np.integer], more: int = 0) -> Iterator[npt.NDArray[np.int64]]:
    """Tokens piece by piece, each with the first `more` of the next: a text may be large."""
    for first in range(0, len(tokens) - more, PART):
        yield tokens[first : first + PART + more].astype(np.int64)


def _mean(values: npt.NDArray[np.float64], tokens: npt.NDArray[np.integer]) -> float:
    return float(sum(values[part].sum() for part in _parts(tokens)) / len(tokens))


def flops(config: GPTConfig, width: int) -> float:
    """Multiplications and additions that training takes per token (Chowdhery et al. 2022).

    Two for each weight of a product forward and four backward, and the same for attention's two
    products with `width` keys. Recomputed activations do not count: they are no progress.
    """
    return 6.0 * config.multiplications(1, width)


def peak_flops(device: torch.device, precision: str) -> float | None:
    """The most that the device can do per second; None: not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    found = next(
        (peak for key, peak in PEAKS.items() if key in name.split()[1:] or key in name), None
    )
    return found and found[precision == "float32"]
