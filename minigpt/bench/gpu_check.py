"""Exactness and speed on a GPU, within minutes: one file of results to look at or send in.

    python -m minigpt.bench.gpu_check --out DIR [--seconds 480] [--device cuda]

The parts run in processes of their own, each behind a time limit; what one had found when it was
stopped, or failed, is kept. All begin at once, for some import and compile for half a minute, and
wait for their turn, so that nothing else is on the device while something is timed. What they
measure is in `gpu_parts.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from minigpt.bench.findings import Findings, put
from minigpt.support.tables import table


@dataclass(frozen=True)
class Part:
    """What runs in one process: a function of `gpu_parts.py`."""

    name: str
    share: float  # of all the time, from its turn on


# Most important first: what is left when time is up is the least.
PARTS = (
    Part("exactness", 0.4),
    Part("decoding", 0.35),
    Part("training", 0.2),
    Part("large", 0.2),
    Part("rival_compiled", 0.25),
    Part("memory", 0.15),
)


class _Running:
    """A part's process."""

    def __init__(self, part: Part, folder: Path, options: argparse.Namespace) -> None:
        self.part, self.folder = part, folder
        self.log = (folder / f"{part.name}.log").open("w")
        command = [
            sys.executable, "-m", "minigpt.bench.gpu_check", "--part", part.name, "--out",
            str(folder), "--device", options.device,
        ]  # fmt: skip
        if options.small:
            command.append("--small")
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log)
        self.began = time.monotonic()

    def turn(self, until: float) -> str:
        """Let it go on, and wait; how it ended."""
        (self.folder / f"{self.part.name}.go").touch()
        try:
            code = self.process.wait(max(0.1, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.stop()
            return "stopped: its time was up"
        self.log.close()
        return "done" if code == 0 else f"failed with status {code}"

    @property
    def ready(self) -> bool:
        """Has it come to its turn, or to an end?"""
        waits = (self.folder / f"{self.part.name}.ready").exists()
        return waits or self.process.poll() is not None

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        self.log.close()

    def found(self) -> dict[str, Any]:
        file = self.folder / f"{self.part.name}.json"
        found: dict[str, Any] = {"entries": [], "failures": []}
        if file.exists():
            found = json.loads(file.read_text())
        log = (self.folder / f"{self.part.name}.log").read_text(errors="replace")
        return {**found, "log": log.strip().splitlines()[-12:]}


def check(options: argparse.Namespace) -> dict[str, Any]:
    """Run all parts, write down what is known after each, and return it."""
    out, end = Path(options.out), time.monotonic() + options.seconds
    out.mkdir(parents=True, exist_ok=True)
    wanted = [part for part in PARTS if not options.only or part.name in options.only]
    result: dict[str, Any] = {"about": {"device": options.device, "seconds": options.seconds}}
    result["parts"] = {}
    with TemporaryDirectory(prefix="minigpt-gpu-") as place:
        folder = Path(place)
        running = {part.name: _Running(part, folder, options) for part in wanted}
        try:
            for part in wanted:
                began = time.monotonic()
                left = end - began
                one = running.pop(part.name)
                if left < 3:
                    one.stop()
                    result["parts"][part.name] = {"ended": "not begun: no time was left"}
                    continue
                if part is not wanted[0]:  # compilers at work would be in the figures
                    settle(running.values(), min(left / 4, options.seconds / 10))
                ended = one.turn(began + min(left, part.share * options.seconds))
                took = round(time.monotonic() - began, 1)
                result["parts"][part.name] = {"ended": ended, "seconds": took, **one.found()}
                write(out, result)
        finally:
            for one in running.values():
                one.stop()
    write(out, result)
    return result


def settle(running: Iterable[_Running], seconds: float) -> None:
    """Wait until all are ready for their turn, but not for long."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and not all(one.ready for one in running):
        time.sleep(0.1)


def write(out: Path, result: dict[str, Any]) -> None:
    put(out / "result.json", json.dumps(result, indent=1))
    put(out / "table.txt", render(result))


def render(result: dict[str, Any]) -> str:
    """The findings for people."""
    lines = []
    for name, part in result["parts"].items():
        lines.append(f"{name}: {part['ended']}, {part.get('seconds', 0)} s")
        rows = [
            (
                f"  {entry['what']}",
                _shown(entry["value"]),
                entry["unit"],
                " ".join(
                    f"{key}={_shown(value)}"
                    for key, value in entry.items()
                    if key not in ("what", "value", "unit", "samples")
                ),
            )
            for entry in part.get("entries", [])
        ]
        if rows:
            lines.append(table(("  what", "value", "", ""), rows, width=140))
        lines += [f"  FAILED {failure}" for failure in part.get("failures", [])]
        if part["ended"] != "done":
            lines += [f"  | {line}" for line in part.get("log", [])[-6:]]
        lines.append("")
    return "\n".join(lines)


def _shown(value: object) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="minigpt.bench.gpu_check", description=__doc__)
    parser.add_argument("--out", required=True, help="where result.json and table.txt go")
    parser.add_argument("--seconds", type=float, default=480, help="for all parts (default 480)")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny shapes: does it run?")
    parser.add_argument("--only", nargs="*", metavar="PART", help=", ".join(p.name for p in PARTS))
    parser.add_argument("--part", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.part:
        from minigpt.bench import gpu_parts

        findings = Findings(Path(options.out), options.part)
        with findings.trying(options.part):
            gpu_parts.run(options.part, findings, options.device, options.small)
        findings.write()
        sys.stdout.flush()
        os._exit(0)  # compilers' helper processes would be waited for
    result = check(options)
    sys.stdout.write(render(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
