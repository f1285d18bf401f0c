"""`minigpt verify`: are cached logits equal to uncached ones, bit for bit?"""

from __future__ import annotations

import argparse
import json
import random

import minigpt
from minigpt.commands.options import (
    Subcommands,
    add_command,
    model_options,
    seed_option,
    special_option,
    status,
)
from minigpt.support.checks import whole

EXAMPLES = ("minigpt verify", "minigpt verify --model random:gpt2 --tokens 40")


def add(commands: Subcommands) -> None:
    about = "check that cached logits equal uncached ones, bit for bit"
    command = add_command(commands, "verify", about, run, EXAMPLES)
    model_options(command)
    text = command.add_mutually_exclusive_group()
    text.add_argument("--prompt", help="text to check on; default: random tokens")
    text.add_argument("--tokens", type=int, metavar="N", help="random tokens to check on (160)")
    special_option(command)
    seed_option(command, "of the random tokens and chunks")
    command.add_argument("--json", action="store_true", help="the report as JSON")
    command.add_argument(
        "--matrix",
        action="store_true",
        help="instead of one model, every dtype, head layout and width against all that may vary",
    )


def run(options: argparse.Namespace) -> int:
    if options.matrix:
        return run_matrix(options)

    from minigpt.commands.models import load, load_tokenizer

    model = load(options)
    ids: list[int] | None = None
    if options.prompt is not None:
        ids = load_tokenizer(options.model).encode(options.prompt, options.special)
    elif options.tokens is not None:
        count = whole("--tokens", options.tokens, 2)
        rng = random.Random(options.seed)
        ids = [rng.randrange(model.config.vocab_size) for _ in range(count)]
    report = minigpt.verify(model, ids, options.seed, progress=status)
    status("")
    print(json.dumps(report.to_dict(), indent=2) if options.json else report)
    return 0 if report.equal else 1


def run_matrix(options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from minigpt.commands.models import device_named
    from minigpt.study.matrix import COLUMNS, ROWS, cell, render, start

    results, device = {}, device_named(options.device)
    with tqdm(total=len(COLUMNS) * len(ROWS), unit="cell", leave=False, disable=None) as bar:
        for column in COLUMNS:
            ways = start(column.model(device, options.numerics))
            for row in ROWS:
                bar.set_description(f"{column}, {row}")
                results[row, str(column)] = cell(ways, row)
                bar.update()
    if options.json:
        print(json.dumps([{"row": r, "column": c, "cell": v} for (r, c), v in results.items()]))
    else:
        print(render(results))
    return 0 if all(not value.endswith("differ") for value in results.values()) else 1
