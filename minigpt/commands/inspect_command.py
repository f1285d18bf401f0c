"""`minigpt inspect`: what a model is made of, and what caches for it cost."""

from __future__ import annotations

import argparse
import json

from minigpt.commands.options import MODEL, Subcommands, add_command, model_option, say

EXAMPLES = ("minigpt inspect", "minigpt inspect gpt2-xl --batch 4 --memory 16GB")


def add(commands: Subcommands) -> None:
    command = add_command(
        commands,
        "inspect",
        "show a model's parameters, and what a cache for it costs",
        run,
        EXAMPLES,
    )
    command.add_argument(
        "source",
        nargs="?",
        metavar="MODEL",
        help="directory (config.json will do), a preset such as gpt2-xl or random:gpt2-xl, or a "
        f"name on the hub (default {MODEL})",
    )
    model_option(command, MODEL)
    command.add_argument("--batch", type=int, default=1, metavar="B", help="rows (default 1)")
    command.add_argument(
        "--memory",
        default="8GB",
        metavar="SIZE",
        help="for weights and caches, such as 512MB, 8GB or 8GiB (default 8GB)",
    )
    command.add_argument("--json", action="store_true", help="the same as JSON")
    command.add_argument(
        "--plot", metavar="FILE", help="draw how caches grow, as .png or .svg (needs matplotlib)"
    )


def run(options: argparse.Namespace) -> int:
    from minigpt.study.cost import inspect, parse_size

    found = inspect(options.source or options.model, options.batch, parse_size(options.memory))
    if options.plot:
        from minigpt.study.plot import cache_growth

        cache_growth(options.plot, found.config)
        say(f"(drawn in {options.plot})")
    print(json.dumps(found.to_dict(), indent=2) if options.json else found)
    return 0
