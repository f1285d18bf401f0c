"""`minigpt download`: fetch a checkpoint into weights/."""

from __future__ import annotations

import argparse
from pathlib import Path

from minigpt.checkpoint import hub
from minigpt.commands.options import Subcommands


def add(commands: Subcommands) -> None:
    command = commands.add_parser("download", help="fetch a checkpoint into weights/")
    command.set_defaults(run=run)
    command.add_argument("name", help=f"one of {', '.join(hub.PINNED)}")
    command.add_argument("--weights-dir", type=Path, default=Path("weights"), metavar="DIR")


def run(options: argparse.Namespace) -> int:
    print(hub.download(options.name, options.weights_dir))
    return 0
