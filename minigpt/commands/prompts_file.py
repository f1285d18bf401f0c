"""`minigpt generate --prompts FILE --out FILE`: a file of prompts to a file of texts, side by side.

A line of the result depends on nothing but its prompt and the settings, so a run that was cut short
is taken up where the file ends.
"""

from __future__ import annotations

import argparse
import json
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from minigpt.commands.options import say
from minigpt.generation.engine import Engine
from minigpt.generation.request import Request
from minigpt.generation.stops import StopStrings
from minigpt.generation.text import StreamDecoder, only_spelled
from minigpt.model import GPT
from minigpt.support.checks import path_of, plain_file
from minigpt.support.errors import MinigptError, reason
from minigpt.support.wording import counted
from minigpt.tokenizer import Tokenizer

MOST = 2**31  # bytes of a file of prompts
OWN = ("max_new_tokens", "seed")  # what a line may set for itself, beside the sampling settings


def write_texts(
    options: argparse.Namespace, model: GPT, tokenizer: Tokenizer, settings: dict[str, Any]
) -> int:
    """Continue every prompt of `options.prompts`, and write the texts to `options.out`.

    Raises:
        MinigptError: for a line that is no prompt, before any work; for files of no use.
    """
    out = path_of(options.out)
    lines = read_prompts(path_of(options.prompts), tuple(settings))
    done = resumable(out, lines)
    engine, texts = Engine(model), deque[Text]()
    for number, line in enumerate(lines[done:], done):
        common = {"max_new_tokens": options.max_new_tokens, "policy": options.policy, **settings}
        own = {"seed": options.seed + number, **line}
        try:
            text = Text(tokenizer, own.pop("prompt"), options.stop, options.special)
            how = {**common, **own}
            how["logit_bias"] = only_spelled(model, tokenizer, how.get("logit_bias"))
            text.request = engine.submit(text.ids, on_token=text.push, **how)
            text.cancel = engine.cancel
        except MinigptError as error:
            raise MinigptError(f"{options.prompts}, line {number + 1}: {error}") from error
        texts.append(text)
    if done:
        say(f"{out} has the first {counted(done, 'text')} already: going on from there")
    with (
        out.open("a", encoding="utf-8", newline="\n") as file,
        tqdm(total=len(lines), initial=done, unit="text", leave=False, disable=None) as bar,
    ):
        while texts:  # in the prompts' order, each as soon as those before it are written
            if not texts[0].request.done:
                engine.step()
                continue
            print(json.dumps(texts.popleft().result(), ensure_ascii=False), file=file, flush=True)
            bar.update()
    say(
        f"{counted(len(lines), 'text')} in {out}; of the prompts' tokens "
        f"{engine.counts.hit_rate:.0%} were computed already"
    )
    return 0


class Text:
    """One line: its prompt, and what comes of it."""

    request: Request
    cancel: Callable[[Request], None]

    def __init__(self, tokenizer: Tokenizer, prompt: str, stop: list[str], special: bool) -> None:
        self.prompt, self.ids = prompt, tokenizer.encode(prompt, special)
        self.decoder, self.stops = StreamDecoder(tokenizer), StopStrings(stop)
        self.text = ""

    def push(self, token: int) -> None:
        self.show(self.decoder.push(token))

    def show(self, piece: str) -> None:
        shown, stopped = self.stops.push(piece)
        self.text += shown
        if stopped:
            self.cancel(self.request)
            self.request.result.finish_reason = "stop_string"

    def result(self) -> dict[str, Any]:
        """The line to write; whatever ended it other than the text itself is raised."""
        request = self.request
        if request.error is not None:
            raise request.error
        self.show(self.decoder.flush())
        self.text += "" if request.finish_reason == "stop_string" else self.stops.flush()
        times = [round(seconds, 4) for seconds in request.times]
        return {
            "prompt": self.prompt,
            "tokens": request.tokens,
            "text": self.text,
            "finish_reason": request.finish_reason,
            "first_token_after": times[0] if times else None,  # seconds since the run began
            "last_token_after": times[-1] if times else None,
        }


def read_prompts(path: Path, settings: tuple[str, ...]) -> list[dict[str, Any]]:
    """The lines of a file of prompts: a string each, or an object with "prompt" and settings.

    Raises:
        MinigptError: for a line that is neither, by its number.
    """
    known = ("prompt", *OWN, *settings)
    lines = []
    for number, text in enumerate(_lines(path), 1):
        where = f"{path}, line {number}"
        try:
            line = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise MinigptError(
                f"{where} is not JSON ({reason(error)}): mend or remove it"
            ) from error
        line = {"prompt": line} if isinstance(line, str) else line
        if not isinstance(line, dict) or not isinstance(line.get("prompt"), str):
            raise MinigptError(
                f'{where} holds {text[:60]!r}, needed a string or {{"prompt": "a string"}}'
            )
        for name in line:
            if name not in known:
                raise MinigptError(f"{where} has {name!r}, needed some of {', '.join(known)}")
        lines.append(line)
    if not lines:
        raise MinigptError(f"{path} is empty, needed a prompt on each line")
    return lines


def resumable(out: Path, lines: list[dict[str, Any]]) -> int:
    """How many texts an earlier run has written; a line that it did not finish is cut off.

    Raises:
        MinigptError: for a file that is not the result of these prompts.
    """
    if not out.exists():
        return 0
    whole, end, _ = out.read_bytes().rpartition(b"\n")
    texts = whole.decode("utf-8", "replace").split("\n") if end else []
    for number, text in enumerate(texts):
        try:
            found = json.loads(text)["prompt"]
        except (ValueError, LookupError, TypeError, RecursionError):
            found = None
        if number >= len(lines) or found != lines[number]["prompt"]:
            raise MinigptError(
                f"{out}, line {number + 1} is not the text of that line's prompt: choose another "
                f"file to write to, or remove it"
            )
    with out.open("r+b") as file:
        file.truncate(len(whole) + len(end))
    return len(texts)


def _lines(path: Path) -> list[str]:
    try:
        plain_file(path, MOST)
        return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except FileNotFoundError as error:
        raise MinigptError(f"{path} does not exist: write a prompt on each line of it") from error
    except MinigptError:
        raise
    except (OSError, ValueError) as error:
        raise MinigptError(f"{path} cannot be read ({reason(error)})") from error
