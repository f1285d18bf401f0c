"""The plain training loop, and the recipe of the bundled toy model.

The toy model learns little stories from a grammar (`stories.py`), so anyone can make it again
offline. The loop is the classic one: random windows of one long text, AdamW, warm-up and cosine.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from minigpt.config import GPTConfig
from minigpt.errors import MinigptError
from minigpt.generate import evaluating
from minigpt.model import GPT
from minigpt.stories import stories
from minigpt.tokenizer import Tokenizer, train_bpe


@dataclass(frozen=True)
class TrainConfig:
    """Every number of a training run. The defaults are the bundled model's recipe."""

    preset: str = "toy"  # shape of the model, from `config.PRESETS`
    stories: int = 40_000  # training texts, drawn from the grammar
    held_out: int = 1_000  # stories from another seed, for the validation loss
    steps: int = 2_000
    batch_size: int = 16  # windows per step, each of the model's context length
    learning_rate: float = 2e-3
    warmup: int = 100  # steps of linear warm-up, before the cosine
    weight_decay: float = 0.1  # on matrices only
    beta2: float = 0.98  # AdamW's second moment; shorter memory than 0.999 suits short runs
    clip: float = 1.0  # largest norm of all gradients together
    evaluate_every: int = 250  # steps
    seed: int = 1

    def __post_init__(self) -> None:
        for name in ("stories", "held_out", "steps", "batch_size", "evaluate_every"):
            if getattr(self, name) < 1:
                raise MinigptError(f"{name} is {getattr(self, name)}, needed at least 1")
        if not 0 <= self.seed < 2**63 - 1:
            raise MinigptError(f"seed is {self.seed}, needed a whole number from 0 to 2**63 - 2")
        if not self.learning_rate > 0:
            raise MinigptError(f"learning_rate is {self.learning_rate}, needed a positive number")


@dataclass(frozen=True)
class TrainResult:
    """Losses in nats per token, on held-out stories."""

    loss: float
    unigram: float  # how well token frequencies alone would do
    bigram: float  # ... and frequencies given the token before
    train_loss: float
    seconds: float
    tokens_per_second: float


def train_toy(
    directory: str | Path,
    config: TrainConfig | None = None,
    report: Callable[[str], object] = lambda line: None,
) -> TrainResult:
    """Train the toy model and save it, with its tokenizer, in `directory`."""
    config = config or TrainConfig()
    try:
        Path(directory).mkdir(parents=True, exist_ok=True)
    except OSError as error:  # better now than after ten minutes of training
        raise MinigptError(f"cannot save in {directory} ({error}): choose another place") from error
    shape = GPTConfig.preset(config.preset)
    report(f"writing {config.stories + config.held_out:,} stories and learning {shape.vocab_size} "
           f"byte pairs from them")  # fmt: skip
    texts = list(stories(config.seed, config.stories))
    tokenizer = train_bpe(islice(texts, 5_000), shape.vocab_size)
    shape = replace(shape, vocab_size=tokenizer.n_vocab, eos_token_id=tokenizer.eot_token)
    training = tokenize(tokenizer, tqdm(texts, desc="tokenizing", leave=False))
    held_out = tokenize(tokenizer, stories(config.seed + 1, config.held_out))
    torch.manual_seed(config.seed)
    model = GPT(shape)
    result = train(model, training, held_out, config, report)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return result


def train(
    model: GPT,
    training: Tensor,
    held_out: Tensor,
    config: TrainConfig,
    report: Callable[[str], object] = lambda line: None,
) -> TrainResult:
    """Train `model` in place.

    Args:
        training, held_out: token ids, (N,) int64, longer than the model's context.
        report: given a line of text at each evaluation.
    """
    window = model.config.n_positions
    for name, tokens in (("training", training), ("held-out", held_out)):
        if len(tokens) <= window:
            raise MinigptError(
                f"the {name} text has {len(tokens)} tokens, needed more than one context of "
                f"{window}: give more text, or a model with a shorter context"
            )
    matrices = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": config.weight_decay},
         {"params": others, "weight_decay": 0.0}],
        lr=config.learning_rate, betas=(0.9, config.beta2), fused=True,
    )  # fmt: skip
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, config))
    generator = torch.Generator().manual_seed(config.seed)
    began = time.perf_counter()
    bar = tqdm(range(1, config.steps + 1), desc="training", unit="step")
    average = math.log(model.config.vocab_size)
    for step in bar:
        model.train()
        inputs, targets = windows(training, window, config.batch_size, generator)
        loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        average += 0.05 * (loss.item() - average)
        bar.set_postfix(loss=f"{average:.3f}")
        if step % config.evaluate_every == 0 or step == config.steps:
            report(f"step {step}: held-out loss {evaluate(model, held_out):.4f}")
    seconds = time.perf_counter() - began
    unigram, bigram = baselines(training, held_out, model.config.vocab_size)
    return TrainResult(
        evaluate(model, held_out), unigram, bigram, average, seconds,
        config.steps * config.batch_size * window / seconds,
    )  # fmt: skip


def tokenize(tokenizer: Tokenizer, texts: Iterable[str]) -> Tensor:
    """All texts as one row of ids, (N,) int64, an end-of-text token before each."""
    ids: list[int] = []
    for text in texts:
        if tokenizer.eot_token is not None:
            ids.append(tokenizer.eot_token)
        ids.extend(tokenizer.encode(text))
    return torch.tensor(ids)


def windows(
    tokens: Tensor, width: int, count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """`count` random windows of a text: inputs and the tokens that follow them, (count, width)."""
    starts = torch.randint(len(tokens) - width, (count, 1), generator=generator)
    positions = starts + torch.arange(width)
    return tokens[positions], tokens[positions + 1]


def rate(step: int, config: TrainConfig) -> float:
    """Learning rate as a fraction of the largest: linear warm-up, then cosine down to a tenth."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return 0.1 + 0.45 * (1 + math.cos(math.pi * done))


@torch.inference_mode()
def evaluate(model: GPT, tokens: Tensor, rows: int = 64) -> float:
    """Mean cross-entropy in nats per token, over a text cut into whole windows."""
    window = model.config.n_positions
    count = (len(tokens) - 1) // window
    inputs = tokens[: count * window].view(count, window)
    targets = tokens[1 : count * window + 1].view(count, window)
    total = 0.0
    with evaluating(model):
        for x, y in zip(inputs.split(rows), targets.split(rows), strict=True):
            total += F.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="sum").item()
    return total / targets.numel()


def baselines(training: Tensor, held_out: Tensor, vocab_size: int) -> tuple[float, float]:
    """Cross-entropy of unigram and bigram counts with add-one smoothing, in nats per token."""
    pairs = training[:-1] * vocab_size + training[1:]
    bigram = torch.bincount(pairs, minlength=vocab_size**2).view(vocab_size, vocab_size) + 1.0
    unigram = torch.bincount(training, minlength=vocab_size) + 1.0
    bigram_log = (bigram / bigram.sum(1, keepdim=True)).log()
    unigram_log = (unigram / unigram.sum()).log()
    return (
        -unigram_log[held_out[1:]].mean().item(),
        -bigram_log[held_out[:-1], held_out[1:]].mean().item(),
    )
