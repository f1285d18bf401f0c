"""`minigpt download`: fetch a checkpoint into weights/."""

from __future__ import annotations

import argparse
from pathlib import Path

from minigpt.commands.options import Subcommands, add_command

NAMES = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2")  # those of `hub.PINNED`
EXAMPLES = ("minigpt download gpt2", "minigpt download distilgpt2 --weights-dir models")


def add(commands: Subcommands) -> None:
    command = add_command(commands, "download", "fetch a checkpoint into weights/", run, EXAMPLES)
    command.add_argument("name", help=f"one of {', '.join(NAMES)}")
    command.add_argument(
        "--weights-dir",
        type=Path,
        default=Path("weights"),
        metavar="DIR",
        help="the folder of checkpoints (default weights)",
    )


def run(options: argparse.Namespace) -> int:
    from minigpt.checkpoint import hub

    print(hub.download(options.name, options.weights_dir))
    return 0
