"""How fast a training step is, beside two plain loops over GPT-2 of the same shape.

One is what a tutorial would write over transformers' model: AdamW as it comes, cross-entropy and
clipping. The other is what nanoGPT comes to on a CPU: no biases, the fused attention, and AdamW
with decay on matrices. All take their steps in turns on the same tokens, with as many threads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from minigpt.bench.contest import Contest
from minigpt.bench.measure import Prepare, Row, Section, interleave, ratios
from minigpt.bench.plain_gpt import PlainGPT
from minigpt.config import GPTConfig
from minigpt.support.wording import counted
from minigpt.tokenizer import CharTokenizer
from minigpt.training.data import Corpus
from minigpt.training.loop import Run
from minigpt.training.parallel import Processes
from minigpt.training.recipes import TrainConfig, preset
from minigpt.training.sources import Text, starting_model

CHARACTERS = 64  # and the end of text: 65 tokens, as in tiny Shakespeare
RECIPES = ("laptop", "gpu")


def measure_train(contest: Contest) -> Section:
    """Step times of the recipes' shapes on the CPU, in float32 and mixed precision."""
    rows = []
    for name in RECIPES:
        config = replace(preset(name), device="cpu", compile=False, dropout=0.0)
        # A batch that a CPU computes in a second or two; the time per token hardly depends on it.
        batch_size = 1 if contest.quick else min(config.batch_size, 12)
        config = replace(config, batch_size=batch_size)
        for precision in ("float32", "bfloat16"):
            title = f"{name}, {precision}"
            times = step_times(replace(config, precision=precision), max(1, contest.rounds // 2))
            tokens = batch_size * config.n_positions
            for who, seconds in times.items():
                extra = {"tokens/s": tokens / median(seconds)}
                rows.append(Row(f"{title}: {who}", [1e3 * s for s in seconds], "ms", extra))
            ours, *others = times.items()
            for who, seconds in others:
                rows.append(Row(f"{title}: of the time of {who}", ratios(ours[1], seconds), "x"))
    return Section(
        "train", f"time of a training step, {counted(torch.get_num_threads(), 'thread')}", rows
    )


def step_times(config: TrainConfig, rounds: int) -> dict[str, list[float]]:
    """Seconds of each step, ours first; without transformers' where it is not installed."""
    tokenizer = CharTokenizer(map(chr, range(65, 65 + CHARACTERS)))
    tokens = np.random.default_rng(0).integers(CHARACTERS, size=100_000, dtype=np.uint16)
    source = Text(Corpus(tokenizer, tokens, tokens, len(tokens)), config.n_positions, config.seed)
    with TemporaryDirectory(prefix="minigpt-bench-") as directory:
        config = replace(config, device="cpu")  # which the other loop runs on as well
        processes = Processes(torch.device(config.device))
        model = starting_model(config, source)
        run = Run(model, source, config, Path(directory), processes, resume=False)
        contenders: dict[str, Prepare] = {"minigpt": lambda: run.step}
        nano = nano_loop(config, source)
        contenders["nanoGPT's loop"] = lambda: nano
        plain = plain_loop(config, source)
        if plain is not None:
            contenders["plain loop over transformers"] = lambda: plain
        run.step()  # compiles, where that is asked for
        return interleave(contenders, rounds, "train")


def our_step(
    shape: GPTConfig, device: torch.device, batch_size: int, compiled: bool
) -> Callable[[], object]:
    """One step of ours in bfloat16 on random tokens, to be called again and again."""
    config = TrainConfig(
        n_layer=shape.n_layer, n_head=shape.n_head, n_embd=shape.n_embd,
        n_positions=shape.n_positions, batch_size=batch_size, device=str(device),
        precision="bfloat16", compile=compiled,
    )  # fmt: skip
    tokenizer = CharTokenizer(map(chr, range(256, 256 + shape.vocab_size - 1)))
    tokens = np.random.default_rng(0).integers(shape.vocab_size, size=100_000, dtype=np.uint16)
    source = Text(Corpus(tokenizer, tokens, tokens, len(tokens)), config.n_positions, config.seed)
    with TemporaryDirectory(prefix="minigpt-bench-") as directory:  # only a checkpoint needs it
        model = starting_model(config, source)
        return Run(model, source, config, Path(directory), Processes(device), resume=False).step


def nano_loop(config: TrainConfig, source: Text) -> Callable[[], object]:
    """A step as nanoGPT takes it on a CPU, to be called again and again."""
    torch.manual_seed(config.seed)
    model = PlainGPT(config.shape(source.tokenizer.n_vocab, None), bias=False)
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": config.weight_decay},
         {"params": others, "weight_decay": 0.0}],
        lr=config.learning_rate, betas=(config.beta1, config.beta2),
    )  # fmt: skip
    numbers = iter(range(10**9))

    def step() -> None:
        inputs, targets = source.batch(next(numbers), range(config.batch_size))
        with torch.autocast("cpu", torch.bfloat16, enabled=config.precision != "float32"):
            loss = model(inputs, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()

    return step


def plain_loop(config: TrainConfig, source: Text) -> Callable[[], object] | None:
    """A step of the reference, to be called again and again; None: transformers is missing."""
    try:
        from transformers import GPT2Config, GPT2LMHeadModel
    except ImportError:
        return None
    shape: Any = GPT2Config(
        vocab_size=source.tokenizer.n_vocab,
        n_positions=config.n_positions,
        n_embd=config.n_embd,
        n_layer=config.n_layer,
        n_head=config.n_head,
        embd_pdrop=config.dropout,
        attn_pdrop=config.dropout,
        resid_pdrop=config.dropout,
        bos_token_id=0,
        eos_token_id=0,
    )
    model: Any = GPT2LMHeadModel(shape).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate)
    numbers = iter(range(10**9))

    def step() -> None:
        inputs, targets = source.batch(next(numbers), range(config.batch_size))
        with torch.autocast("cpu", torch.bfloat16, enabled=config.precision != "float32"):
            logits = model(inputs).logits
            loss = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()

    return step
