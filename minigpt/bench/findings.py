"""What a part of a long measurement finds, kept entry by entry, so that a stop loses nothing."""

from __future__ import annotations

import json
import os
import time
import traceback
from pathlib import Path
from typing import Any


def put(path: Path, text: str) -> None:
    """In one step, so that nobody reads half of it; it need not survive a crash of the machine."""
    new = path.with_name(f"{path.name}.new")
    new.write_text(text, encoding="utf-8")
    os.replace(new, path)


class Findings:
    """What one part finds, written down entry by entry, so that nothing is lost when it is stopped.

    Args:
        folder: of all parts; NAME.json is ours, NAME.go gives us our turn.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.entries: list[dict[str, Any]] = []
        self.failures: list[str] = []

    def add(self, what: str, value: object, unit: str = "", **more: object) -> None:
        self.entries.append({"what": what, "value": value, "unit": unit, **more})
        self.write()

    def trying(self, what: str) -> _Trying:
        """Inside, an exception is written down and is the end of that block only."""
        return _Trying(self, what)

    def wait_for_turn(self) -> None:
        """Until nothing else runs."""
        put(self.folder / f"{self.name}.ready", "")
        while not (self.folder / f"{self.name}.go").exists():
            time.sleep(0.05)

    def write(self) -> None:
        found = {"entries": self.entries, "failures": self.failures}
        put(self.folder / f"{self.name}.json", json.dumps(found))


class _Trying:
    def __init__(self, findings: Findings, what: str) -> None:
        self.findings, self.what = findings, what

    def __enter__(self) -> None:
        self.began = time.perf_counter()

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, Exception):
            return False
        frame = traceback.extract_tb(error.__traceback__)[-1]
        line = f"{type(error).__name__}: {str(error)[:500]} ({frame.filename}:{frame.lineno})"
        self.findings.failures.append(f"{self.what}: {line}")
        self.findings.write()
        return True
