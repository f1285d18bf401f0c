"""`minigpt train`: make the bundled toy model again."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from minigpt.commands.common import Subcommands


def add(commands: Subcommands) -> None:
    command = commands.add_parser("train", help="make the bundled toy model again, offline")
    command.set_defaults(run=run)
    command.add_argument("--out", type=Path, default=Path("weights/toy"), metavar="DIR")
    command.add_argument("--steps", type=int, help="training steps")
    command.add_argument("--stories", type=int, help="stories to learn from")
    command.add_argument("--seed", type=int, help="of the stories, the weights and the windows")
    command.add_argument("--threads", type=int, metavar="N", help="CPU threads")


def run(options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from minigpt.train import TrainConfig, train_toy

    def say_beside_bars(line: str) -> None:
        tqdm.write(line, file=sys.stderr)

    changes = {
        name: value
        for name in ("steps", "stories", "seed")
        if (value := getattr(options, name)) is not None
    }
    result = train_toy(options.out, TrainConfig(**changes), say_beside_bars)
    print(
        f"saved {options.out}: held-out loss {result.loss:.3f} nats per token (bigram "
        f"{result.bigram:.3f}, unigram {result.unigram:.3f}), {result.seconds:.0f} s, "
        f"{result.tokens_per_second:,.0f} tokens/s"
    )
    return 0
