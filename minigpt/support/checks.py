"""Small checks of arguments that several modules make alike."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from numbers import Integral, Rational, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from minigpt.support.errors import MinigptError

if TYPE_CHECKING:
    import torch
    from torch import Tensor


AUTO = "auto"  # a device: the best there is
LFS_NOTE = b"version https://git-lfs"  # as its pointer files begin


def listed(values: Iterable[Any] | Tensor, name: str = "", needed: str = "a list") -> list[Any]:
    """A list of what is in a list, a range, a tensor or an array.

    Args:
        name, needed: for the sentence, when it is none of these.

    Raises:
        MinigptError: then.
    """
    try:
        found = values.tolist() if hasattr(values, "tolist") else list(values)
    except (TypeError, RuntimeError):  # RuntimeError: a tensor without numbers, on "meta"
        found = None
    if not isinstance(found, list):  # of a tensor with one number and no dimension
        told = f"{name} is {values!r}" if name else f"found a {type(values).__name__}"
        raise MinigptError(f"{told}, needed {needed}")
    return found


def is_whole(value: object) -> TypeGuard[int]:
    """Is this an int, or one of numpy's, and not a bool?"""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[float]:
    """Is this a float, or an int that a tensor could hold, of Python or numpy, and not a bool?"""
    if is_whole(value):
        return -(2**63) <= value < 2**63
    return isinstance(value, Real) and not isinstance(value, Rational)  # no Fraction, nor a bool


def whole(name: str, value: object, low: int = 1, high: int | None = None, why: str = "") -> int:
    """The value, which must be a whole number of at least `low` and at most `high`.

    Args:
        name: what it is called, for the sentence.
        why: goes at the sentence's end, after a colon: where the limits come from, or what to do.

    Raises:
        MinigptError: for anything else.
    """
    if is_whole(value) and low <= value and (high is None or value <= high):
        return int(value)
    limits = f"of at least {low}" if high is None else f"from {low} to {_shown(high)}"
    raise MinigptError(f"{name} is {value!r}, needed a whole number {limits}{why and f': {why}'}")


def _shown(limit: int) -> str:
    """A seed's limit as people write it: 2**63 - 1."""
    power = (limit + 1).bit_length() - 1
    return f"2**{power} - 1" if power > 32 and limit + 1 == 2**power else str(limit)


def path_of(place: str | Path) -> Path:
    """A place in the file system, there or not.

    Raises:
        MinigptError: for what is no path, or one that no file system can hold.
    """
    try:
        if b"\0" in os.fsencode(place) or isinstance(place, bytes):
            raise ValueError
        return Path(place)
    except (TypeError, ValueError):  # ValueError: also of a lone surrogate
        raise MinigptError(f"the path is {place!r}, needed a str or a Path") from None


def device_named(name: str | torch.device) -> torch.device:
    """A device of this machine; "auto" is "cuda" where there is such a GPU, and else "cpu".

    Raises:
        MinigptError: for one that is not there, or that torch was not built for.
    """
    import torch  # here: checks are also made where torch is not needed, and it takes a second

    if name == AUTO:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "mps" and not torch.backends.mps.is_available():
        raise MinigptError(
            "device 'mps' cannot be used here: it is the GPU of a Mac with Apple's own chip, and "
            "needs macOS 12.3 or newer"
        )
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ImportError, TypeError) as error:  # by device
        reason = str(error).partition("\n")[0]
        raise MinigptError(f"device {name!r} cannot be used here: {reason}") from error
    return device


def plain_file(path: Path, most: int | None = None) -> None:
    """Refuse what would hang or fill the memory if it were read, and what is not there yet.

    Raises:
        OSError: for a pipe, a device, a directory, or a file of more than `most` bytes.
        MinigptError: for the note that git-lfs leaves in place of a file that it has not fetched.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError("it is not a plain file")
    if most is not None and found.st_size > most:
        raise OSError(f"it has {found.st_size:,} bytes, needed at most {most:,}")
    with path.open("rb") as opened:
        if opened.read(len(LFS_NOTE)) == LFS_NOTE:
            raise MinigptError(
                f"{path} is a pointer of git-lfs, not the file itself: run `git lfs pull` in "
                f"{path.parent}"
            )
