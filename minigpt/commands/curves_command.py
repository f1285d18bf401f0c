"""`minigpt curves`: training runs side by side, in one picture and one table."""

from __future__ import annotations

import argparse

from minigpt.commands.options import Subcommands, add_command, say

EXAMPLES = ("minigpt curves runs/addition", "minigpt curves runs/one runs/two --plot both.svg")


def add(commands: Subcommands) -> None:
    command = add_command(
        commands,
        "curves",
        "compare training runs: their curves, recipes and results",
        run,
        EXAMPLES,
    )
    command.add_argument(
        "runs", nargs="+", metavar="RUN", help="a run's directory; it may still be going on"
    )
    command.add_argument(
        "--plot",
        metavar="FILE",
        help="where to draw, as .png or .svg (default curves.png: beside one run's log, of several "
        "here)",
    )


def run(options: argparse.Namespace) -> int:
    from minigpt.support.checks import path_of
    from minigpt.support.errors import MinigptError
    from minigpt.training.curves import PICTURES, draw_rewards, draw_runs, of_rewards
    from minigpt.training.run_table import compare_runs, read_run, titles

    plot = options.plot
    if plot is not None and path_of(plot).suffix.lower() not in (".png", ".svg"):
        raise MinigptError(f"{plot} does not end in .png or .svg, needed one of them for a picture")
    runs = [read_run(place) for place in options.runs]
    files = [path_of(plot)] if plot else [path_of(PICTURES[0])]
    if plot is None and len(runs) == 1:
        files = [path_of(options.runs[0]) / name for name in PICTURES]
    print(compare_runs(runs))
    if len(runs) == 1 and of_rewards(runs[0].rows):
        picture = draw_rewards(runs[0].rows, files)
    else:
        named = dict(zip(titles(runs), [each.rows for each in runs], strict=True))
        picture = draw_runs(named, files)
    if picture is None:
        say("(no picture without matplotlib: pip install minigpt[plots])")
    else:
        say(f"(drawn in {picture})")
    return 0
