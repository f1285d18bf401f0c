"""`minigpt bench`: speed and memory, side by side."""

from __future__ import annotations

import argparse
import json

from minigpt.commands.options import (
    Subcommands,
    add_command,
    device_options,
    model_option,
    precision_option,
)

EXAMPLES = (
    "minigpt bench --model toy --quick --only decode",
    "minigpt bench --model random:gpt2 --markdown",
)


def add(commands: Subcommands) -> None:
    command = add_command(
        commands, "bench", "measure speed and memory, side by side", run, EXAMPLES
    )
    command.set_defaults(numerics="fast", weights=None)  # it measures all of them
    model_option(command, "random:gpt2")
    precision_option(command)
    device_options(command)
    command.add_argument(
        "--only",
        metavar="SECTION[,SECTION]",
        help="some of decode, prefill, exact, int8, cache, kinds, texts, engine, train, start, "
        "limits, attention (default all)",
    )
    command.add_argument("--rounds", type=int, metavar="N", help="repetitions (default 10)")
    command.add_argument("--quick", action="store_true", help="as little as shows that it works")
    command.add_argument(
        "--long", action="store_true", help="500 tokens without the cache, also for large models"
    )
    command.add_argument("--plot", metavar="FILE", help="draw it too, as .png or .svg")
    form = command.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="all samples as JSON")
    form.add_argument("--markdown", action="store_true", help="tables as a README shows them")


def run(options: argparse.Namespace) -> int:
    import torch

    from minigpt.bench.contest import Contest
    from minigpt.bench.sections import choose_sections, directory_of, measure_sections
    from minigpt.commands.models import load

    if options.plot:
        from minigpt.bench.picture import draw_table
        from minigpt.study.style import check_suffix

        check_suffix(options.plot)  # before minutes of measuring

    sections, source = choose_sections(options.only), options.model
    dtype = getattr(torch, options.dtype) if options.dtype else None
    with directory_of(source, dtype) as directory:
        options.model = str(directory)
        contest = Contest(load(options), directory, options.rounds, options.quick, options.long)
        table = measure_sections(contest, sections)
    table.about = {"model": source, **table.about}
    if options.plot:
        draw_table(table, options.plot)
    if options.json:
        print(json.dumps(table.to_dict(), indent=2))
    else:
        print(table.to_markdown() if options.markdown else table)
    return 0
