"""The one error that means "your input, not our bug".

Everything a user can get wrong raises `MinigptError` with one sentence: what, found, needed,
what to do. The command line prints that sentence and exits with 2; a notebook shows it last.
"""

from __future__ import annotations


class MinigptError(ValueError):
    """A mistake in what was passed in: an argument, a file, a configuration."""
