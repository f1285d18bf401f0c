"""The command line: one module of `commands/` for each command.

Exit codes: 0 done, 1 a check failed, 2 a mistake in the input (one sentence on stderr), 130
interrupted. Text goes to stdout, everything about the run to stderr.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence

import torch

import minigpt
from minigpt.commands import (
    bench_command,
    download_command,
    generate_command,
    inspect_command,
    play_command,
    score_command,
    trace_command,
    train_command,
    verify_command,
)
from minigpt.commands.options import say
from minigpt.support.errors import MinigptError

COMMANDS = (
    generate_command,
    play_command,
    verify_command,
    trace_command,
    inspect_command,
    score_command,
    bench_command,
    train_command,
    download_command,
)
MOST_THREADS = 1024


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    try:
        options = parser().parse_args(arguments)
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # rather "?" than an error, on an old terminal
        if getattr(options, "threads", None) is not None:
            if not 1 <= options.threads <= MOST_THREADS:
                raise MinigptError(f"--threads is {options.threads}, needed 1 to {MOST_THREADS}")
            torch.set_num_threads(options.threads)
        run: Callable[[argparse.Namespace], int] = options.run
        return run(options)
    except MinigptError as error:
        say(f"minigpt: {error}")
        return 2
    except KeyboardInterrupt:
        say("\ninterrupted")
        return 130
    except BrokenPipeError:  # the reader of our output left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="minigpt",
        description="GPT-2 with a KV cache whose logits equal the uncached ones, bit for bit.",
    )
    top.add_argument("--version", action="version", version=f"minigpt {minigpt.__version__}")
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    return top


if __name__ == "__main__":
    sys.exit(main())
