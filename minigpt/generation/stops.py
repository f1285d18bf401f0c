"""Stop strings: the text up to the first of them, shown as soon as it is safe to show.

A stop string may span tokens, so the end of what came in waits here as long as it could still
become one. Where the pieces of text come from is `text.py`'s business.
"""

from __future__ import annotations

from collections.abc import Sequence

from minigpt.support.checks import listed
from minigpt.support.errors import MinigptError


class StopStrings:
    """Ends a text before whichever stop string is complete first.

    Of several that are complete at the same character the longest counts. The text shown is the
    same however it was cut into pieces.

    Args:
        stops: the strings; none of them: everything is shown.

    Attributes:
        found: the stop string that ended the text; None so far.

    Raises:
        MinigptError: for a stop string that is empty or not a str.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if isinstance(stops, str):
            raise MinigptError("stops is one str, needed several: pass a list of strings")
        stops = listed(stops, "stops", "a list of strings")
        for stop in stops:
            if not isinstance(stop, str) or not stop:
                raise MinigptError(f"a stop is {stop!r}, needed a str of at least one character")
        self._stops = tuple(stops)
        self._held = ""
        self.found: str | None = None

    def push(self, piece: str) -> tuple[str, bool]:
        """Take the next piece of the text.

        Returns:
            What is safe to show, possibly "", and whether the text has ended; what comes after is
            ignored.
        """
        if not isinstance(piece, str):
            raise MinigptError(f"a piece of the text is {piece!r}, needed a str")
        if self.found is not None:
            return "", True
        text = self._held + piece
        # Each stop's first occurrence: where it ends, and where it starts.
        found = [(at + len(s), at) for s in self._stops if (at := text.find(s)) >= 0]
        if found:
            end, start = min(found)
            self.found, self._held = text[start:end], ""
            return text[:start], True
        shown = len(text) - self._unfinished(text)
        self._held = text[shown:]
        return text[:shown], False

    def flush(self) -> str:
        """What was held back, when no more is to come. Ready for another text afterwards."""
        rest, self._held, self.found = self._held, "", None
        return rest

    def _unfinished(self, text: str) -> int:
        """How many characters at the end of `text` are the beginning of a stop string."""
        longest = max(map(len, self._stops), default=1) - 1
        for size in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-size:]) for stop in self._stops):
                return size
        return 0
