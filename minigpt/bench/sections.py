"""How fast, how large, compared with what: the measurements behind `minigpt bench`.

Everything runs in turns on the same weights (`measure.py`). Figures are reported, never asserted;
printing is left to the command line, and whether the bits are right to `verify`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from minigpt.bench.attention_section import measure_attention
from minigpt.bench.cache_sections import measure_cache, measure_kinds
from minigpt.bench.contest import Contest
from minigpt.bench.engine_section import measure_engine
from minigpt.bench.machine import describe_machine
from minigpt.bench.measure import Section, Table
from minigpt.bench.speed_sections import (
    measure_decode,
    measure_exact,
    measure_int8,
    measure_limits,
    measure_prefill,
)
from minigpt.bench.start_section import measure_start
from minigpt.bench.text_section import measure_texts
from minigpt.bench.train_section import measure_train
from minigpt.checkpoint import hub
from minigpt.config import GPTConfig
from minigpt.model import GPT
from minigpt.support.errors import MinigptError

SECTIONS: dict[str, Callable[[Contest], Section]] = {
    "decode": measure_decode,
    "prefill": measure_prefill,
    "exact": measure_exact,
    "int8": measure_int8,
    "cache": measure_cache,
    "kinds": measure_kinds,
    "texts": measure_texts,
    "engine": measure_engine,
    "train": measure_train,
    "start": measure_start,
    "limits": measure_limits,
    "attention": measure_attention,
}


def measure_sections(contest: Contest, names: Sequence[str] = tuple(SECTIONS)) -> Table:
    """These sections, in this order."""
    parts = [SECTIONS[name](contest) for name in names]
    return Table(describe_machine(contest.model), contest.rounds, parts)


def choose_sections(only: str | None) -> list[str]:
    """The sections named in "decode,cache"; None: all of them.

    Raises:
        MinigptError: for a name that is not in `SECTIONS`.
    """
    names = list(SECTIONS) if only is None else only.split(",")
    for name in names:
        if name not in SECTIONS:
            known = ", ".join(SECTIONS)
            raise MinigptError(f"there is no section {name!r} to measure, needed some of {known}")
    return [name for name in SECTIONS if name in names]


@contextmanager
def directory_of(source: str, dtype: torch.dtype | None = None) -> Iterator[Path]:
    """A directory that minigpt and transformers both load.

    The source is what `GPT.from_pretrained` takes; or "random:" and a preset's name, for a model of
    that shape with random weights (float32 unless `dtype` says otherwise), deleted afterwards.
    """
    preset = source.removeprefix("random:")
    if preset == source:
        yield hub.resolve(source)
        return
    with TemporaryDirectory(prefix="minigpt-bench-", ignore_cleanup_errors=True) as directory:
        model = GPT(GPTConfig.preset(preset)).to(dtype or torch.float32)
        model.save_pretrained(directory)
        del model
        yield Path(directory)
