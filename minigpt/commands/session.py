"""A text written in turns, you and the model, over one cache that is kept between them.

`Session` is what happens; the terminal around it is in `play_command.py`. Between turns only the
new tokens are computed. Rewinding truncates the cache, branching forks it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Any

import torch

from minigpt.cache.kvcache import KVCache
from minigpt.generation.decoding import Generation
from minigpt.generation.sampling import Sampler
from minigpt.generation.text import TextStream, stream_text
from minigpt.model import GPT
from minigpt.support.errors import MinigptError
from minigpt.support.modes import evaluating
from minigpt.support.wording import counted, meant
from minigpt.tokenizer import Tokenizer

SETTINGS: dict[str, type] = {
    "temperature": float, "top_k": int, "top_p": float, "min_p": float,
    "repetition_penalty": float, "presence_penalty": float, "frequency_penalty": float,
    "no_repeat_ngram_size": int, "min_new_tokens": int, "max_new_tokens": int,
    "seed": int, "draft": str,
}  # fmt: skip
HELP = """what you type is added to the text, and the model goes on from there
  (empty line)       the model goes on
  /rewind [N]        take back the last N turns (1); /undo is the same
  /branch NAME       remember this point
  /go NAME           go to a point remembered; /branches lists them
  /text              the text so far
  /cache             what the cache holds, and what it costs
  /compare           the next logits with the cache and without: same bits? how long?
  /set [NAME VALUE]  the settings, or change one (VALUE none: back to the default)
  /quit              leave (as Ctrl-D does); Ctrl-C stops the model, not the program"""


class Session:
    """The text so far, its cache, and the points one can return to.

    Args:
        special: read special tokens that are written out in a turn, rather than their characters.
        settings: of `stream_text`: temperature, max_new_tokens, ...
    """

    def __init__(
        self, model: GPT, tokenizer: Tokenizer, special: bool = False, **settings: Any
    ) -> None:
        self.model, self.tokenizer, self.special = model, tokenizer, special
        self.settings: dict[str, Any] = settings
        self.tokens: list[int] = []  # the whole text
        self.cache: KVCache = model.new_cache(kind="paged")  # branches share their beginning
        self.turns: list[int] = []  # how long the text was before each
        self.branches: dict[str, tuple[list[int], list[int], KVCache]] = {}
        self.note = ""  # what there is to tell about the last turn

    def turn(self, text: str) -> Iterator[str]:
        """Add `text` and let the model go on; yields what it writes, piece by piece.

        Stopped half way (closed, or by an exception such as KeyboardInterrupt), it keeps what was
        written.
        """
        before = len(self.tokens)
        prompt = self.tokens + self.tokenizer.encode(text, self.special, part=before > 0)
        limit = self.model.config.n_positions
        window = prompt
        if len(prompt) >= limit:
            window = prompt[-max(1, limit // 2) :]
        seed = self.settings.get("seed", 0) + len(self.turns)  # or each turn would draw the same
        settings = {**self.settings, "seed": seed, "cache": self.cache, "policy": "reprefill"}
        pieces = stream_text(self.model, self.tokenizer, window, **settings)
        self.turns.append(before)
        self.tokens = prompt
        try:
            yield from pieces
        finally:
            self.tokens = prompt + pieces.result.tokens
            self.note = self._told(pieces, len(window), len(prompt) - len(window))

    def _told(self, pieces: TextStream, window: int, forgotten: int) -> str:
        result: Generation = pieces.result
        computed = max(0, window - result.reused)
        note = (
            f"{computed} of {counted(window, 'token')} of the text computed, {result.reused} from "
            f"the cache, {len(result.tokens)} written at {result.tokens_per_second:,.0f} tokens/s"
        )
        if result.drafted:
            note += f", {result.accepted} of {result.drafted} guesses came true"
        if forgotten or result.prefills:
            note += "; the context was full: the older part is out of the model's sight"
        return note

    @property
    def text(self) -> str:
        return self.tokenizer.decode(self.tokens)

    def rewind(self, count: int = 1) -> None:
        """Take back the last turns.

        Raises:
            MinigptError: when there were not so many.
        """
        if not 1 <= count <= len(self.turns):
            raise MinigptError(
                f"cannot rewind {counted(count, 'turn')}: there were {len(self.turns)}, needed a "
                f"number from 1 to that"
            )
        length = self.turns[-count]
        del self.turns[-count:]
        self.tokens = self.tokens[:length]
        held = (self.cache.tokens or [[]])[0][:length]
        if held == self.tokens[: len(held)]:  # else it holds a later window, and is cut next time
            self.cache.truncate(len(held))

    def branch(self, name: str) -> None:
        """Remember this point of the text, under a name."""
        self.branches[name] = (list(self.tokens), list(self.turns), self.cache.fork())

    def go(self, name: str) -> None:
        """Go to a point remembered; it stays remembered.

        Raises:
            MinigptError: when there is none of that name.
        """
        if name not in self.branches:
            known = ", ".join(self.branches) or "none yet"
            raise MinigptError(f"there is no branch {name!r} ({known}): /branch makes one")
        tokens, turns, cache = self.branches[name]
        self.tokens, self.turns, self.cache = list(tokens), list(turns), cache.fork()

    def set(self, name: str, value: str) -> None:
        """Change a setting, given as text.

        Raises:
            MinigptError: for a name or value that makes no sense; the setting stays as it was.
        """
        if name not in SETTINGS:
            raise MinigptError(f"there is no setting {name!r}, needed one of {', '.join(SETTINGS)}")
        new = {key: old for key, old in self.settings.items() if key != name}
        if value != "none":
            try:
                new[name] = SETTINGS[name](value)
            except ValueError:
                kind = SETTINGS[name].__name__
                raise MinigptError(f"{name} is {value!r}, needed a {kind}, or none") from None
        known = Sampler.__dataclass_fields__
        Sampler(**{k: v for k, v in new.items() if k in known}).check(self.model.config.vocab_size)
        stream_text(self.model, self.tokenizer, [0], **new)  # refuses what it cannot use
        self.settings = new

    def compare(self) -> str:
        """The next logits from the cache and from scratch: are they the same bits?"""
        limit = self.model.config.n_positions
        if not self.tokens:
            raise MinigptError("there is no text to compare on yet: type something first")
        held = (self.cache.tokens or [[]])[0]
        window = held if held else self.tokens[-limit:]
        cache = self.cache.fork()
        cache.truncate(max(0, min(len(held), len(window) - 1)))
        device = self.model.device
        with evaluating(self.model), torch.inference_mode():
            began = time.perf_counter()
            cached = self.model.next_logits(
                torch.tensor([window[len(cache) :]], device=device), cache=cache
            )
            middle = time.perf_counter()
            uncached = self.model.next_logits(torch.tensor([window], device=device))
            ended = time.perf_counter()
        if torch.equal(cached, uncached):
            answer = "yes, bit for bit"
        else:
            answer = f"no, by up to {float((cached - uncached).abs().max()):.2g}"
        return (
            f"next logits after {counted(len(window), 'token')}: "
            f"cached {1000 * (middle - began):.1f} ms, uncached {1000 * (ended - middle):.1f} ms; "
            f"logits equal: {answer}"
        )

    def draw(self, width: int = 40) -> str:
        """The cache as a bar, and its cost."""
        full = round(width * len(self.cache) / self.cache.capacity)
        return f"[{'#' * full}{'.' * (width - full)}] {self.cache!r}"

    def command(self, line: str) -> str:
        """Do what a line that begins with "/" says, and return what there is to show.

        Raises:
            MinigptError: for anything it does not understand; nothing has changed then.
        """
        name, *words = line[1:].split() or [""]
        name = "rewind" if name == "undo" else name
        if name == "rewind" and len(words) <= 1:
            if words and not words[0].isdecimal():
                raise MinigptError(f"/rewind takes a number of turns, found {words[0]!r}")
            self.rewind(int(words[0]) if words else 1)
            return f"{counted(len(self.tokens), 'token')} left"
        if name == "branch" and len(words) == 1:
            self.branch(words[0])
            return f"branch {words[0]}: {counted(len(self.tokens), 'token')}"
        if name == "go" and len(words) == 1:
            self.go(words[0])
            return counted(len(self.tokens), "token")
        if name in ("go", "branches") and not words:
            return (
                "\n".join(
                    f"{name}: {counted(len(tokens), 'token')}"
                    for name, (tokens, *_) in self.branches.items()
                )
                or "no branches yet: /branch NAME makes one"
            )
        if name == "set" and len(words) == 2:
            self.set(*words)
            return f"{words[0]} = {words[1]}"
        if name == "set" and not words:
            return "\n".join(f"{key} = {self.settings.get(key, 'none')}" for key in SETTINGS)
        if not words and name in ("text", "cache", "compare", "help"):
            show = {"text": lambda: self.text, "cache": self.draw, "compare": self.compare}
            return show[name]() if name in show else HELP
        usage = {
            known.split()[0]: known for known in re.findall(r"^  (/.*?)  ", HELP, re.MULTILINE)
        }
        if f"/{name}" in usage:
            raise MinigptError(f"{line!r} was typed, needed {usage[f'/{name}']}")
        raise MinigptError(f"{line!r} is no command{meant('/' + name, usage)}: /help lists them")
