"""Small checks of arguments that several modules make alike."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from minigpt.errors import MinigptError


def listed(values: Iterable[Any] | Tensor, name: str = "", needed: str = "a list") -> list[Any]:
    """A list of what is in a list, a range, a tensor or an array.

    Args:
        name, needed: for the sentence, when it is none of these.

    Raises:
        MinigptError: then.
    """
    try:
        return values.tolist() if hasattr(values, "tolist") else list(values)
    except TypeError:
        found = f"{name} is {values!r}" if name else f"found a {type(values).__name__}"
        raise MinigptError(f"{found}, needed {needed}") from None


def is_whole(value: object) -> bool:
    """Is this an int, and not a bool?"""
    return isinstance(value, int) and not isinstance(value, bool)


def whole(name: str, value: object) -> None:
    """Refuse anything but a whole number of at least 1."""
    if not is_whole(value) or value < 1:  # type: ignore[operator]
        raise MinigptError(f"{name} is {value!r}, needed a whole number of at least 1")
