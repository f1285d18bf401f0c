"""`minigpt verify`: are cached logits equal to uncached ones, bit for bit?"""

from __future__ import annotations

import argparse
import json
import random

import minigpt
from minigpt.commands.options import Subcommands, device_named, load, model_options, status
from minigpt.support.errors import MinigptError
from minigpt.tokenizer import Tokenizer


def add(commands: Subcommands) -> None:
    command = commands.add_parser(
        "verify", help="check that cached logits equal uncached ones, bit for bit"
    )
    command.set_defaults(run=run)
    model_options(command)
    text = command.add_mutually_exclusive_group()
    text.add_argument("--prompt", help="text to check on; default: random tokens")
    text.add_argument("--tokens", type=int, metavar="N", help="random tokens to check on (160)")
    command.add_argument("--seed", type=int, default=0, help="of the random tokens and chunks")
    command.add_argument("--json", action="store_true", help="the report as JSON")
    command.add_argument(
        "--matrix", action="store_true",
        help="instead of one model, every dtype, head layout and width against all that may vary",
    )  # fmt: skip


def run(options: argparse.Namespace) -> int:
    if options.matrix:
        return matrix(options)
    model = load(options)
    ids: list[int] | None = None
    if options.prompt is not None:
        ids = Tokenizer.from_pretrained(options.model).encode(options.prompt)
    elif options.tokens is not None:
        if options.tokens < 0:
            raise MinigptError(f"--tokens is {options.tokens}, needed a whole number of at least 2")
        rng = random.Random(options.seed)
        ids = [rng.randrange(model.config.vocab_size) for _ in range(options.tokens)]
    report = minigpt.verify(model, ids, options.seed, progress=status)
    status("")
    print(json.dumps(report.to_dict(), indent=2) if options.json else report)
    return 0 if report.equal else 1


def matrix(options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from minigpt.study.matrix import COLUMNS, ROWS, cell, render, start

    results, device = {}, device_named(options.device)
    with tqdm(total=len(COLUMNS) * len(ROWS), unit="cell", leave=False) as bar:
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
