"""`minigpt score`: how likely the model finds a text."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

import minigpt
from minigpt.commands.options import Subcommands, add_command, model_options, read_utf8, say
from minigpt.support.checks import path_of
from minigpt.support.errors import MinigptError
from minigpt.support.wording import counted

if TYPE_CHECKING:
    from minigpt import Score, Tokenizer

EXAMPLES = ("minigpt score story.txt", "minigpt score story.txt --tokens")


def add(commands: Subcommands) -> None:
    about = "tell how likely the model finds a text: its perplexity"
    command = add_command(commands, "score", about, run, EXAMPLES)
    command.add_argument("file", metavar="FILE", help="UTF-8 text; - is standard input")
    model_options(command)
    command.add_argument(
        "--stride",
        type=int,
        metavar="N",
        help="of the windows over a text longer than the context (default half the context): "
        "smaller is slower and gives each token more to go by",
    )
    command.add_argument("--tokens", action="store_true", help="a line for each token")
    command.add_argument("--json", action="store_true", help="the figures as JSON")


def run(options: argparse.Namespace) -> int:
    text = read(options.file)

    from tqdm import tqdm

    from minigpt.commands.models import load, load_tokenizer

    model = load(options)
    tokenizer = load_tokenizer(options.model)
    ids = tokenizer.encode(text)
    eot = model.config.eos_token_id
    if eot is None:
        say("this model has no end-of-text token to start from: the first token is not scored")
    elif ids[:1] != [eot]:  # else the tokenizer begins every text with it
        ids = [eot, *ids]
    with tqdm(total=len(ids) - 1, unit="token", leave=False, disable=None) as bar:
        result = minigpt.score(model, ids, options.stride, progress=bar.update)
    n_bytes = len(tokenizer.decode_bytes(ids[1:]))
    figures: dict[str, object] = {
        "tokens": len(ids) - 1,
        "bytes": n_bytes,
        "loss": result.loss,
        "perplexity": result.perplexity,
        "bits_per_byte": result.bits_per_byte(n_bytes),
    }
    if options.json:
        if options.tokens:
            figures |= {"ids": ids[1:], "log_probabilities": result.log_probabilities.tolist()}
        print(json.dumps(figures, indent=2))
        return 0
    if options.tokens:
        print(listing(result, tokenizer))
    print(
        f"{counted(len(ids) - 1, 'token')}, {counted(n_bytes, 'byte')}: "
        f"{result.loss:.4f} nats per token, perplexity {result.perplexity:.2f}, "
        f"{result.bits_per_byte(n_bytes):.4f} bits per byte"
    )
    return 0


def read(file: str) -> str:
    """The text of a file, or of standard input; line ends stay as they are."""
    name = "standard input" if file == "-" else file
    try:
        content = sys.stdin.buffer.read() if file == "-" else path_of(file).read_bytes()
    except OSError as error:
        raise MinigptError(f"{name} cannot be read ({error}): give a text file, or -") from error
    text = read_utf8(content, name)
    if not text:
        raise MinigptError(f"{name} is empty, needed text to score")
    return text


def listing(result: Score, tokenizer: Tokenizer) -> str:
    """A line for each scored token: its id, its log-probability in nats, its text."""
    lines = [f"{'id':>6} {'nats':>9}  token"]
    scores = result.log_probabilities.tolist()
    for token, value in zip(result.tokens[1:], scores, strict=True):
        lines.append(f"{token:>6} {value:>9.4f}  {tokenizer.decode([token])!r}")
    return "\n".join(lines)
