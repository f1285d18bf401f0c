"""A run's directory: whose it is, and what lies where in it.

The directory itself holds the best model so far; checkpoints to resume from have a folder there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from minigpt.support.errors import MinigptError
from minigpt.support.files import locked
from minigpt.training.state import newest_checkpoint

CHECKPOINTS = "checkpoints"
RECIPE = "train.toml"


def claim(directory: Path, resume: bool) -> Path | None:
    """The checkpoint to go on from in a run's directory, which is made when missing.

    Raises:
        MinigptError: when it cannot be written, or holds a run that is not to be resumed: better
            now than after ten minutes of training.
    """
    _make(directory)
    found = newest_checkpoint(directory / CHECKPOINTS)
    if found and not resume:
        raise MinigptError(
            f"{directory} holds a run already, up to {found.name}: resume it (--resume), "
            f"choose another directory, or delete {directory / CHECKPOINTS}"
        )
    return found


@contextmanager
def alone_in(directory: Path) -> Iterator[None]:
    """While one process trains into a directory, no other does."""
    _make(directory / CHECKPOINTS)
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(directory / CHECKPOINTS, wait=False))
        except BlockingIOError:
            raise MinigptError(
                f"another process is training into {directory}: wait for it, stop it, or choose "
                f"another directory"
            ) from None
        yield


def _make(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MinigptError(f"cannot save in {directory} ({error}): choose another place") from error
