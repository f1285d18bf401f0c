"""Reading files that may be damaged; writing where others may write and read too, and where any of
them may be killed.

What is new is written in a folder of its own and then renamed. Locks are the system's own, on
directories: they leave no file behind, and end with the process that holds them, however it ends.
Where there are none (Windows, some network drives) everything works for one process at a time.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from minigpt.support.checks import plain_file
from minigpt.support.errors import MinigptError, reason

if sys.platform != "win32":
    import fcntl

STAGING = ".saving-"  # how the folders' names begin; one that nobody holds may be deleted
DAY = 24 * 3600  # seconds


@contextmanager
def aside(directory: Path) -> Iterator[Path]:
    """A folder in `directory` to write in; it goes when the block ends, with all still in it.

    Those that killed processes left behind go first: their locks are free. (Without locks, they
    go a day after the last file was written there.)

    Raises:
        OSError: when `directory` is missing or cannot be written.
    """
    with ExitStack() as stack:
        with locked(directory):  # or another process may see ours before it is locked
            for left_behind in directory.glob(f"{STAGING}*"):
                with suppress(OSError), locked(left_behind, wait=False) as held:
                    if held or _untouched_for(left_behind) > DAY:
                        shutil.rmtree(left_behind, ignore_errors=True)
            made = TemporaryDirectory(prefix=STAGING, dir=directory, ignore_cleanup_errors=True)
            staging = Path(stack.enter_context(made))
            stack.enter_context(locked(staging))
        yield staging


@contextmanager
def locked(directory: Path, shared: bool = False, wait: bool = True) -> Iterator[bool]:
    """Hold a directory's lock: alone, or with others that share it.

    Yields:
        whether it is held: it cannot be where there are no locks, or no such directory.

    Raises:
        BlockingIOError: without `wait`, when another process holds it.
    """
    descriptor = _take(directory, shared, wait)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _take(directory: Path, shared: bool, wait: bool) -> int | None:
    """What to close to let go of the lock."""
    if sys.platform == "win32":
        return None
    try:
        descriptor = os.open(directory, os.O_RDONLY)
    except OSError:
        return None
    how = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(descriptor, how if wait else how | fcntl.LOCK_NB)
    except BaseException as error:  # Ctrl-C while waiting, too
        os.close(descriptor)
        if isinstance(error, OSError) and not isinstance(error, BlockingIOError):
            return None
        raise
    return descriptor


def _untouched_for(directory: Path) -> float:
    """Seconds since anything was written there."""
    return time.time() - max(path.stat().st_mtime for path in (directory, *directory.rglob("*")))


def read_json(path: Path, most: int, cure: str = "copy it again", prefix: str = "") -> Any:
    """What a JSON file holds.

    Args:
        most: bytes it may have.
        cure: what the sentence of an error tells to do.
        prefix: what may stand before the JSON, as a note to whoever opens the file.

    Raises:
        MinigptError: when there is no such file, or it is not JSON.
    """
    try:
        plain_file(path, most)
        return json.loads(path.read_text(encoding="utf-8").removeprefix(prefix))
    except MinigptError:
        raise
    except FileNotFoundError as error:
        raise MinigptError(f"{path} does not exist: {cure}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise MinigptError(f"{path} is not valid JSON ({reason(error)}): {cure}") from error


def sha256(path: Path) -> str:
    """The checksum of a file's content, read piece by piece."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
    return digest.hexdigest()


def write_text(path: Path, text: str) -> None:
    """Put `text` at `path` in one step: a crash leaves the old file or the new one, and no other.

    Raises:
        OSError: when the directory is missing, or cannot be written.
    """
    with aside(path.parent) as staging:
        (staging / path.name).write_text(text, encoding="utf-8", newline="\n")
        flush(staging / path.name)
        move(staging / path.name, path)


def move(source: Path, target: Path) -> None:
    """Rename over the target in one step, and wait until the disk has it."""
    os.replace(source, target)
    flush(target.parent)


def flush(path: Path) -> None:
    """Wait until the disk has a file or directory."""
    if os.name == "nt":  # no such call for directories there
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
