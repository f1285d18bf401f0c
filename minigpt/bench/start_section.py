"""How long a fresh process takes to begin, and how much memory loading needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from minigpt.bench.contest import Contest
from minigpt.bench.entrants import minigpt_entrant, transformers_entrants
from minigpt.bench.measure import Row, Section, turns
from minigpt.generation.continuation import choose_likeliest
from minigpt.model import GPT
from minigpt.numerics import NUMERICS
from minigpt.numerics.certificate_file import VARIABLE
from minigpt.support.errors import MinigptError
from minigpt.support.memory import process_memory

IMPORTS = {
    "minigpt": "from minigpt import GPT",
    "transformers": "from transformers import DynamicCache, GPT2LMHeadModel",
}
EXACT = "first exact pass, extra"
PROBE = """
import json, time
times = [time.perf_counter()]
import torch
times.append(time.perf_counter())
{}
times.append(time.perf_counter())
found = {{"import torch": times[1] - times[0], "import, after torch": times[2] - times[1]}}
from minigpt.bench.start_section import probe
print(json.dumps(found | probe(*{})))
"""


def measure_start(contest: Contest) -> Section:
    """Fresh processes that import, load and run a first pass."""
    rounds = 1 if contest.quick else max(1, contest.rounds // 3)
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in IMPORTS}
    if contest.missing:
        del runs["transformers"]
    model = contest.model
    what = (str(contest.directory), contest.dtype, str(model.device), torch.get_num_threads())
    for name in turns(runs, rounds + (not contest.quick), "start"):  # the first warms the disk up
        code = PROBE.format(IMPORTS[name], (name, *what))
        with TemporaryDirectory(prefix="minigpt-bench-", ignore_cleanup_errors=True) as folder:
            run = _run_fresh(code, {VARIABLE: folder})
            if EXACT in run:  # a second process, which finds the first one's certificates
                run["exact, certificates kept"] = _run_fresh(code, {VARIABLE: folder})[EXACT]
        runs[name].append(run)
    rows = []
    for package, found in runs.items():
        for key in found[0]:
            samples, unit = [run[key] for run in found[-rounds:]], "s"
            if "memory" in key:
                samples, unit = [taken / contest.bytes for taken in samples], "x"
            rows.append(Row(f"{package:<13}{key}", samples, unit))
    notes = [
        "extra: a first pass less a second; minigpt packs weights in it, exact then certifies, or "
        "reads the certificates that an earlier process kept",
        "memory: peak less what was in use before loading, over bytes of weights",
    ]
    return Section("start", f"a fresh process, {rounds} rounds", rows, notes)


def _run_fresh(code: str, variables: dict[str, str]) -> dict[str, float]:
    """Run code in a new process; its last line is JSON."""
    environment = {**os.environ, **variables}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise MinigptError(f"a fresh process failed ({reason}): leave out the section 'start'")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def probe(package: str, directory: str, dtype: str, device: str, threads: int) -> dict[str, float]:
    """In a fresh process: seconds and, where known, peak bytes of loading and of first passes."""
    torch.set_num_threads(threads)
    number, place = getattr(torch, dtype), torch.device(device)
    before, began = process_memory(), time.perf_counter()
    if package == "minigpt":
        model = GPT.from_pretrained(directory, number, place)
        rivals = [minigpt_entrant(model, name) for name in NUMERICS]
    else:
        rivals = transformers_entrants(Path(directory), number, place)[:1]
    found = {"load": time.perf_counter() - began}
    loaded = process_memory(peak=True)
    tokens = torch.zeros(1, 32, dtype=torch.int64, device=place)
    for rival, name in zip(rivals, ("first pass, extra", EXACT), strict=False):
        rival.ready()
        seconds = []
        for _ in range(2):  # a prompt, then a single token
            began = time.perf_counter()
            choose_likeliest(rival.next_logits, tokens, 2, rival.new_cache(1, 64)).tolist()
            seconds.append(time.perf_counter() - began)
        found[name] = seconds[0] - seconds[1]
    if before is not None and loaded is not None:
        found["memory to load"] = loaded - before
        found["memory to decode"] = (process_memory(peak=True) or loaded) - before
    return found
