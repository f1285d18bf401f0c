"""The command line: one module of `commands/` for each command.

Exit codes: 0 done, 1 a check failed, 2 a mistake in the input (one sentence on stderr), 130
interrupted. Text goes to stdout, everything about the run to stderr. Until a command runs, nothing
is imported that needs PyTorch.
"""

from __future__ import annotations

import argparse
import errno
import io
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import minigpt
from minigpt.commands import (
    bench_command,
    curves_command,
    download_command,
    generate_command,
    inspect_command,
    play_command,
    score_command,
    trace_command,
    train_command,
    verify_command,
)
from minigpt.commands.options import Parser, say
from minigpt.support.checks import whole
from minigpt.support.errors import MinigptError
from minigpt.support.wording import meant

COMMANDS = (
    generate_command,
    play_command,
    verify_command,
    trace_command,
    inspect_command,
    score_command,
    bench_command,
    train_command,
    curves_command,
    download_command,
)
MOST_THREADS = 1024


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    try:
        try:
            options = parse(sys.argv[1:] if arguments is None else arguments)
        except SystemExit:
            print(end="", flush=True)  # the help
            raise
        with leaving_at_once():
            import torch
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # rather "?" than an error, on an old terminal
        if getattr(options, "threads", None) is not None:
            torch.set_num_threads(whole("--threads", options.threads, 1, MOST_THREADS))
        run: Callable[[argparse.Namespace], int] = options.run
        code = run(options)
        print(end="", flush=True)  # here, where a reader that has left is no surprise
        return code
    except MinigptError as error:
        say(f"minigpt: {error}")
        return 2
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which may not be there yet
            raise
        say(f"minigpt: {out_of_memory(str(error))}")
        return 2
    except KeyboardInterrupt:
        say("\ninterrupted")
        return 130
    except BrokenPipeError:  # the reader of our output left, as `head` does
        drop_output()
        return 0
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        drop_output()
        say(f"minigpt: the output cannot be written ({error.strerror}): make room there")
        return 2


def out_of_memory(told: str) -> str:
    """A sentence of the many that torch tells when a GPU is full."""
    need = re.search(r"Tried to allocate ([\d.]+ \w+)", told)
    free = re.search(r"of which ([\d.]+ \w+) is free", told)
    needed = f"{need[1]} more were needed" if need else "more was needed"
    return (
        f"the device's memory is full ({needed}, {free[1] if free else 'too little'} free): take a "
        f"smaller model, batch or dtype (--dtype bfloat16), or --device cpu"
    )


def drop_output() -> None:
    """What is still to be written goes nowhere: Python tries again at its end, and complains."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options given; ends the process where argparse would."""
    top, names = parser()
    first = next((word for word in arguments if not word.startswith("-")), None)
    if first is not None and first not in names:
        known = meant(first, names) or f", needed one of {', '.join(names)}"
        top.error(f"there is no command {first!r}{known}")
    return top.parse_args(arguments)


def parser() -> tuple[Parser, list[str]]:
    """The parser of everything, and the names of the commands."""
    top = Parser(
        prog="minigpt",
        usage="minigpt COMMAND ...",
        description="GPT-2 with a KV cache whose logits equal the uncached ones, bit for bit.",
        examples=(
            'minigpt generate --prompt "Once upon a time"',
            "minigpt verify",
        ),
    )
    top.add_argument("--version", action="version", version=f"minigpt {minigpt.__version__}")
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND", prog=top.prog)
    for command in COMMANDS:
        command.add(commands)
    return top, list(commands.choices)


@contextmanager
def leaving_at_once() -> Iterator[None]:
    """Inside, Ctrl-C ends the process there and then.

    For imports of other people's modules, where an exception may be swallowed or turned into
    another; nothing has been begun yet that would have to be ended.
    """
    main_thread = threading.current_thread() is threading.main_thread()
    if not main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield  # signals cannot be set, or somebody has set them
        return

    def leave(number: int, frame: object) -> None:
        os.write(2, b"\ninterrupted\n")
        os._exit(130)

    signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
