"""What the commands' options have in common: how they are parsed, explained and answered.

Nothing here needs PyTorch, so help and the answer to a mistyped option come at once; what the
options name is loaded in `models.py`.
"""

from __future__ import annotations

import argparse
import codecs
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from minigpt.support.errors import MinigptError
from minigpt.support.wording import meant

if TYPE_CHECKING:
    Subcommands = argparse._SubParsersAction["Parser"]
else:
    Subcommands = object

# The library has these names too, behind PyTorch; a test holds them together.
NUMERICS = ("exact", "fast")
DTYPES = ("float32", "bfloat16", "float16")
MODEL = "toy"  # bundled
NARROW = 60  # characters of a line, below which argparse's list of all options does not fit


class Parser(argparse.ArgumentParser):
    """A parser that answers a mistyped option with its own usage and the nearest name.

    Args:
        examples: commands that its help ends with.
    """

    def __init__(self, *arguments: Any, examples: Sequence[str] = (), **settings: Any) -> None:
        if shutil.get_terminal_size().columns < NARROW:
            settings.setdefault("usage", "%(prog)s [options]")
        super().__init__(*arguments, **settings)
        self.examples = examples

    def parse_known_args(self, *arguments: Any) -> tuple[Any, list[str]]:  # type: ignore[override]
        """As in argparse, where only the parser at the top would refuse what is left over."""
        options, rest = super().parse_known_args(*arguments)
        if rest:
            word = next((word for word in rest if word.startswith("-")), rest[0]).partition("=")[0]
            if word.startswith("-"):
                self.error(f"there is no option {word}{meant(word, self._option_string_actions)}")
            self.error(f"{word!r} is one word too many: quote a text, and see --help")
        return options, rest

    def format_help(self) -> str:
        shown = super().format_help()
        if self.examples:
            width = shutil.get_terminal_size().columns
            lines = [wrapped(example, width) for example in self.examples]
            shown += "\n".join(["\nexamples:", *lines, ""])
        return shown


def wrapped(command: str, width: int) -> str:
    """A shell command on as many lines as it takes, cut between words; quoted text stays whole."""
    lines = [" "]
    for word in re.findall(r'(?:"[^"]*"|\S)+', command):
        if len(lines[-1]) + len(word) + len("  \\") > width and lines[-1].strip():
            lines[-1] += " \\"
            lines.append("     ")
        lines[-1] += f" {word}"
    return "\n".join(lines)


def add_command(
    commands: Subcommands,
    name: str,
    about: str,
    run: Callable[[argparse.Namespace], int],
    examples: Sequence[str],
    **settings: Any,
) -> Parser:
    """A command without options yet; `about` it is one line, for the list of all."""
    description = settings.pop("description", f"{about[0].upper()}{about[1:]}.")
    command = commands.add_parser(
        name, help=about, description=description, examples=examples, **settings
    )
    command.set_defaults(run=run)
    return command


def model_options(command: argparse.ArgumentParser) -> None:
    model_option(command, MODEL)
    command.add_argument(
        "--numerics",
        choices=NUMERICS,
        default="exact",
        help="exact: the bits do not depend on how the work was cut; fast: whatever is quickest "
        "(default exact)",
    )
    precision_option(command)
    command.add_argument(
        "--weights", choices=["int8"], help="8-bit weights: quicker and smaller, other logits"
    )
    device_options(command)


def model_option(command: argparse.ArgumentParser, default: str) -> None:
    command.add_argument(
        "--model",
        default=default,
        metavar="SOURCE",
        help="directory, a name such as toy or gpt2, or random:PRESET for that shape with random "
        f"weights (default {default})",
    )


def precision_option(command: argparse.ArgumentParser) -> None:
    command.add_argument("--dtype", choices=DTYPES, help="default: what the checkpoint has")


def device_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--device", default="auto", help="cpu, cuda, mps, ... (default cuda if there is one)"
    )
    threads_option(command, "CPU threads (default all; 1 for small models)")


def threads_option(command: argparse.ArgumentParser, about: str = "CPU threads") -> None:
    command.add_argument("--threads", type=int, metavar="N", help=about)


def seed_option(command: argparse.ArgumentParser, about: str = "same seed, same text") -> None:
    command.add_argument("--seed", type=int, default=0, metavar="N", help=f"{about} (default 0)")


def read_utf8(content: bytes, name: str) -> str:
    """The text of a file or a pipe, without the mark (BOM) that some editors begin it with.

    In UTF-8 wherever we are: Python's own reading would depend on the locale.
    """
    try:
        return content.removeprefix(codecs.BOM_UTF8).decode("utf-8")
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise MinigptError(
            f"{name} is not UTF-8 text (byte {error.start} is {byte:#04x}): convert it to UTF-8, "
            f"for example with iconv"
        ) from error


def special_option(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--special",
        action="store_true",
        help="read special tokens that are written out, such as <|endoftext|>; else such text is "
        "ordinary characters",
    )


def say(line: str, end: str = "\n") -> None:
    print(line, end=end, file=sys.stderr, flush=True)


def status(line: str) -> None:
    """A line that the next one overwrites; nothing where nobody watches."""
    if sys.stderr.isatty():
        print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
