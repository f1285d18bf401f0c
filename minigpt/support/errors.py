"""The one error that means "your input, not our bug".

Everything a user can get wrong raises `MinigptError` with one sentence: what, found, needed,
what to do. The command line prints that sentence and exits with 2; a notebook shows it last.
"""

from __future__ import annotations

LONGEST = 2_000  # characters of a sentence; of a longer one the middle is left out


class MinigptError(ValueError):
    """A mistake in what was passed in: an argument, a file, a configuration.

    What was found there may be anything, and goes to a terminal: characters that do not show are
    spelled out (no file can clear the screen), and megabytes are cut.
    """

    def __init__(self, sentence: str) -> None:
        if len(sentence) > LONGEST:
            half = LONGEST // 2
            sentence = f"{sentence[:half]} … {sentence[-half:]}"
        shown = (c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in sentence)
        super().__init__("".join(shown))


def reason(error: BaseException) -> str:
    """What another library's error says, on one line."""
    return " ".join(str(error).split()) or type(error).__name__
