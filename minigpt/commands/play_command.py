"""`minigpt play`: write a text together with the model, in turns, over one cache."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from minigpt.commands.choosing import SAMPLING, sampling_options
from minigpt.commands.options import (
    Subcommands,
    add_command,
    model_options,
    say,
    seed_option,
    special_option,
)
from minigpt.support.errors import MinigptError

if TYPE_CHECKING:
    from minigpt.commands.session import Session

EXAMPLES = ("minigpt play", "minigpt play --temperature 0 --max-new-tokens 20")


def add(commands: Subcommands) -> None:
    command = add_command(
        commands, "play", "write a text with the model, turn by turn", run, EXAMPLES
    )
    model_options(command)
    command.add_argument(
        "--max-new-tokens",
        type=int,
        default=60,
        metavar="N",
        help="what the model writes per turn (default 60)",
    )
    sampling_options(command)
    special_option(command)
    seed_option(command)


def run(options: argparse.Namespace) -> int:
    from minigpt.commands.models import load, load_tokenizer, tell_padding
    from minigpt.commands.session import Session

    model = load(options)
    tokenizer = load_tokenizer(options.model)
    tell_padding(model, tokenizer)
    settings = {name: getattr(options, name) for name in (*SAMPLING, "max_new_tokens", "seed")}
    session = Session(model, tokenizer, options.special)
    for name, value in settings.items():
        if value is not None:
            session.set(name, str(value))
    say("Type the beginning of a text; the model goes on. /help lists commands, Ctrl-D leaves.")
    read = reader()
    while True:
        try:
            line = read()
        except KeyboardInterrupt:  # at the prompt: drop the line, as shells do
            say("")
            continue
        except UnicodeDecodeError as error:
            say(f"minigpt: that line is not {error.encoding} text: {error.reason}")
            continue
        except EOFError:
            say("")
            return 0
        if line.strip() in ("/quit", "/exit"):
            return 0
        try:
            if line.startswith("/"):
                print(session.command(line.strip()))
            else:
                take_turn(session, line)
        except MinigptError as error:
            say(f"minigpt: {error}")


def take_turn(session: Session, line: str) -> None:
    print(line, end="", flush=True)
    pieces = session.turn(line)
    try:
        for piece in pieces:
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        pieces.close()  # type: ignore[attr-defined]
        say(" (stopped)", end="")
    print(flush=True)
    say(f"  ({session.note})")


def reader() -> Callable[[], str]:
    """A function that asks for a line: with history and editing on a terminal."""
    if not sys.stdin.isatty():
        return lambda: input().removeprefix("\ufeff").rstrip("\r")  # as other systems write
    try:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
    except ImportError:  # the extra is not installed: the terminal's own editing
        return lambda: input("> ")
    prompt: PromptSession[str] = PromptSession(auto_suggest=AutoSuggestFromHistory())
    return lambda: prompt.prompt("> ")
