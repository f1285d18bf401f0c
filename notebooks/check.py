"""Runs the lessons and holds them to what they show: `python notebooks/check.py [--write] [FILE]`.

Each notebook runs once, from top to bottom, as a reader has it who owns no checkout: in an empty
folder, with what the wheel holds. (With --here it runs where it lies, with this checkout: there
lessons find GPT-2 in `weights/gpt2`.) Every cell must run, every text output must be the
committed one (cells tagged "varies" excepted, and pictures), and every exercise must reject its
stub and accept its own solution. With --write the new outputs are stored instead of compared, and
the translations built from them (see translate.py).
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import translate
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

SECONDS = 600  # that a single cell may take
CHECKOUT = Path(__file__).resolve().parent.parent
WHICH = "import minigpt\nassert minigpt.__file__.startswith({!r}), minigpt.__file__"
SOLUTION = re.compile(r"<summary>Solution</summary>\s*```python\n(.*?)```", re.DOTALL)


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0 when the lessons hold, 1 when one does not."""
    parser = argparse.ArgumentParser(description="Run the lessons and compare their outputs.")
    parser.add_argument("--write", action="store_true", help="store the new outputs instead")
    parser.add_argument("--here", action="store_true", help="run them in this checkout")
    parser.add_argument("files", nargs="*", type=Path, help="default: all of notebooks/*.ipynb")
    options = parser.parse_args(arguments)
    files = options.files or sorted(Path(__file__).resolve().parent.glob("*.ipynb"))
    for file in files:
        if not file.is_file():
            parser.error(f"there is no file {file}")  # exit code 2
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        package = CHECKOUT if options.here else installed(Path(folder))
        # A kernel each; those whose times are stored have the machine to themselves.
        with ThreadPoolExecutor(1 if options.write else 2) as pool:
            for wrong, said in pool.map(lambda file: timed(file, options.write, package), files):
                print(said, flush=True)
                failed |= wrong > 0
    return int(failed)


def timed(file: Path, write: bool, package: Path) -> tuple[int, str]:
    """How much is wrong with a lesson; and that, how long it took and what is wrong, to print."""
    began = time.perf_counter()
    problems = list(check(file, write, package))
    summary = f"{file.name}: {len(problems)} wrong, {time.perf_counter() - began:.0f} s"
    return len(problems), "".join([summary, *(f"\n  {problem}" for problem in problems)])


def installed(folder: Path) -> Path:
    """Where the contents of the wheel lie, built from this checkout: all that pip would install."""
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder / "dist"]
    done = subprocess.run(build, cwd=CHECKOUT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"the wheel could not be built: {done.stderr}")
    (wheel,) = (folder / "dist").iterdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def check(file: Path, write: bool, package: Path) -> Iterator[str]:
    """What is wrong with a lesson and its translations: a cell's id, and why.

    `package` is the folder that the lesson takes minigpt from. It runs in an empty one, unless that
    is the checkout.
    """
    committed, fresh = nbformat.read(file, 4), nbformat.read(file, 4)
    exercises = add_solutions(fresh)
    fresh.cells.insert(0, added("package", WHICH.format(str(package))))
    with tempfile.TemporaryDirectory() as empty:
        problem = run(fresh, file.parent if package == CHECKOUT else Path(empty), package)
    if problem:
        yield problem
        return
    for stub, solved in exercises:
        if "right!" in text(stub):
            yield f"{stub.id}: says right! to the stub"
        if "right!" not in text(solved):
            yield f"{stub.id}: does not accept the solution in its answer; says {text(solved)!r}"
    fresh.cells = [cell for cell in fresh.cells if not cell.metadata.get("added")]
    for count, cell in enumerate(code(fresh), 1):  # as if nothing had been added
        for counted in (cell, *cell.outputs):
            if "execution_count" in counted:
                counted.execution_count = count
    fresh.metadata.language_info = NotebookNode(name="python")  # not this machine's version
    if write:
        nbformat.write(fresh, file)
    else:
        yield from stale(committed, fresh)
    yield from translate.write(file) if write else translate.stale(file)


def add_solutions(notebook: NotebookNode) -> list[tuple[NotebookNode, NotebookNode]]:
    """After each check the solutions so far, the check again, and the stubs: an exercise may build
    on those before it, and later cells shall meet what a reader has who answers nothing. Returns
    each check and its repetition."""
    cells, exercises = [], []
    solutions, stubs = [], []
    for n, cell in enumerate(notebook.cells):
        cells.append(cell)
        if "check" not in cell.metadata.get("tags", []):
            continue
        before, after = notebook.cells[n - 1], notebook.cells[n + 1 : n + 2]
        solution = SOLUTION.search("".join(cell.source for cell in after))
        solutions.append(solution[1] if solution else "")
        stubs.append(before.source)
        added_sources = {
            "solved": "\n\n".join(solutions),
            "again": cell.source,
            "stub": "\n\n".join(stubs),
        }
        for name, source in added_sources.items():
            cells.append(added(f"{cell.id}-{name}", source))
        exercises.append((cell, cells[-2]))
    notebook.cells = cells
    return exercises


def added(name: str, source: str) -> NotebookNode:
    """A cell that is run, and does not stay."""
    return nbformat.v4.new_code_cell(source, id=name, metadata=NotebookNode(added=True))


def run(notebook: NotebookNode, folder: Path, package: Path) -> str:
    """Run all cells, offline and in this folder; returns what stopped it, or nothing."""
    begun: list[str] = []
    client = NotebookClient(
        notebook, timeout=SECONDS, kernel_name="python3", resources={"metadata": {"path": folder}},
        record_timing=False, coalesce_streams=True, extra_arguments=["--log-level=ERROR"],
        on_cell_start=lambda cell, cell_index: begun.append(cell.id),
    )  # fmt: skip
    try:
        client.execute(env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(package)})
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        message = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()  # without colours
        return f"{begun[-1] if begun else 'kernel'}: {message}"
    return ""


def stale(committed: NotebookNode, fresh: NotebookNode) -> Iterator[str]:
    for old, new in zip(code(committed), code(fresh), strict=True):
        before, after = text(old).splitlines(), text(new).splitlines()
        same = before == after or "varies" in new.metadata.get("tags", [])
        if not same or bool(old.outputs) != bool(new.outputs):
            lines = difflib.unified_diff(before, after, "committed", "now", n=1, lineterm="")
            yield "\n    ".join([f"{new.id}: stale output", *list(lines)[:20]])


def code(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def text(cell: NotebookNode) -> str:
    """All text that a reader sees, but for the addresses of objects, which never repeat."""
    shown = []
    for output in cell.outputs:
        data = output.get("data", {})
        shown += [output.get("text"), data.get("text/html", data.get("text/plain"))]
    return re.sub(r"0x[0-9a-fA-F]+", "0x...", "\n".join(filter(None, shown)))


if __name__ == "__main__":
    sys.exit(main())
