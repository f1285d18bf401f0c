"""CTranslate2 as an entrant: a C++ program in which no Python runs between two tokens.

It brings threads of its own, so it runs in a process of its own (`own_process.py`):

    python -m minigpt.bench.ctranslate2_process CHECKPOINT float32|int8 THREADS
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from minigpt.bench.entrants import Decode, Entrant
from minigpt.bench.own_process import OwnProcess, answer


def ctranslate2_entrant(directory: Path, weights: str) -> Entrant:
    """That program on a checkpoint; its own weights are "float32" or "int8"."""
    name, threads = "CTranslate2" + " int8" * (weights == "int8"), str(torch.get_num_threads())
    return OwnProcess(name, False, "-m", __name__, str(directory), weights, threads)


class CTranslate2(Entrant):
    """The program itself.

    It keeps the prefilled beginning of one text, so that the steps after it can be timed alone;
    not of several, so it takes its turns with single texts.

    Args:
        directory: a checkpoint.
        weights: "float32" or "int8".
        threads: of all that it computes.
    """

    def __init__(self, directory: Path, weights: str, threads: int) -> None:
        import ctranslate2

        self.name, self.batches = "CTranslate2", False
        with TemporaryDirectory(prefix="minigpt-bench-", ignore_cleanup_errors=True) as folder:
            convert(directory, Path(folder))
            self._generator = ctranslate2.Generator(
                folder, compute_type=weights, intra_threads=threads
            )

    def _continue(self, row: list[int], count: int, prefilled: list[int]) -> list[int]:
        beginning, words = ([_word(token) for token in part] for part in (prefilled, row))
        (result,) = self._generator.generate_batch(
            [words],
            max_length=count,
            end_token=[],
            return_end_token=True,
            static_prompt=beginning or None,
            include_prompt_in_result=False,
        )
        return result.sequences_ids[0]

    def prefill(self, tokens: Tensor) -> Decode:
        return lambda: [self._continue(row, 1, []) for row in tokens.tolist()]

    def decode(self, tokens: Tensor, steps: int) -> Decode:
        rows = [(row, self._continue(row, 1, [])) for row in tokens.tolist()]
        if len(rows) == 1:
            self._continue(rows[0][1], 1, rows[0][0])  # from here on its beginning is kept
        return lambda: [self._continue(first, steps, row) for row, first in rows]


def convert(directory: Path, to: Path) -> None:
    """Write a checkpoint the way CTranslate2 reads it; its words are numbers, as no text is run."""
    from ctranslate2.converters import TransformersConverter

    vocab_size = json.loads((directory / "config.json").read_text())["vocab_size"]

    converter = TransformersConverter(str(directory))
    converter.load_tokenizer = lambda *_, **__: _Words(vocab_size)
    converter.convert(str(to), force=True)


class _Words:
    """As much of a tokenizer as the conversion asks for."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.bos_token = self.eos_token = self.unk_token = _word(count - 1)

    def get_vocab(self) -> dict[str, int]:
        return {_word(token): token for token in range(self.count)}


def _word(token: int) -> str:
    return f"<{token}>"


if __name__ == "__main__":
    torch.set_num_threads(1)  # for the conversion: torch's threads would count beside the others
    directory, weights, threads = sys.argv[1:]
    answer(partial(CTranslate2, Path(directory), weights, int(threads)))
