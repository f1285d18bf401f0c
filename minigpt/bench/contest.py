"""One model against the others that can run it: what every section of a bench is given."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from minigpt.bench.entrants import Decode, Entrant, EntrantFailure, why_no_transformers
from minigpt.bench.lineup import load_entrants
from minigpt.bench.machine import prepare_product, prepare_read
from minigpt.bench.measure import Prepare, Samples, interleave
from minigpt.model import GPT
from minigpt.support.checks import whole

BATCHES = (1, 4, 8, 16)
Found = TypeVar("Found")
SMALL = 50e6  # bytes of weights up to which 500 tokens without a cache take seconds


class Contest:
    """A model, its rivals, and how much of everything is measured.

    Args:
        model: in evaluation mode.
        directory: the checkpoint it came from, which transformers and fresh processes load.
        rounds: of what takes seconds; what takes longer gets fewer. None: 10, or 2 when quick.
        quick: as little as shows that everything works.
        long: up to 500 tokens without the cache, whatever the size of the model.

    Raises:
        MinigptError: for fewer rounds than one.
    """

    def __init__(
        self,
        model: GPT,
        directory: Path,
        rounds: int | None = None,
        quick: bool = False,
        long: bool = False,
    ) -> None:
        self.rounds = whole("rounds", (2 if quick else 10) if rounds is None else rounds)
        self.model, self.directory, self.quick = model, directory, quick
        self.missing = why_no_transformers(model.config)
        self.dtype = str(model.dtype).removeprefix("torch.")
        self.bytes = sum(weight.nbytes for weight in model.parameters())
        limit = model.config.n_positions
        self.prompt = min(128, limit // 2)
        self.steps = min(4 if quick else 16, limit - self.prompt)
        self.batches = (1, 8) if quick else BATCHES
        self.prefills = sorted({min(length, limit) for length in (128, 512, 1024)})
        lengths = [10] if quick else [10, 50, 100, 200]
        if long or (self.bytes < SMALL and not quick):
            lengths.append(500)
        self.lengths = sorted({min(length, limit - self.prompt // 8) for length in lengths})
        self.buffer = 2**27 if quick else 2**29  # bytes that no cache holds, to time reading,
        self.side = 1024 if quick else 3072  # and the width of matrices, to time multiplying
        self.left_out: list[str] = []  # who failed, and of what, in whole sentences
        self._samples: dict[tuple[str, int], Samples] = {}  # which sections share

    @cached_property
    def entrants(self) -> list[Entrant]:
        """Who is compared: loaded and converted when a section first asks."""
        return load_entrants(self.model, self.directory)

    def tokens(self, batch_size: int, length: int) -> Tensor:
        """Random ones, always the same: (batch_size, length)."""
        generator, vocab_size = torch.Generator().manual_seed(0), self.model.config.vocab_size
        tokens = torch.randint(vocab_size, (batch_size, length), generator=generator)
        return tokens.to(self.model.device)

    def decode(self, batch_size: int) -> Samples:
        """Seconds of `steps` steps after the prompt: of the limit, and of every entrant.

        The limit reads a buffer as large as what a step reads, so that a cache of the processor
        keeps as much of either from one step to the next: most of a small model, none of a large.
        """
        tokens = self.tokens(batch_size, self.prompt)
        nbytes = self._bytes_read(batch_size)
        buffer = min(nbytes, self.buffer)
        read = partial(prepare_read, self.model.device, buffer, self.steps)
        return self._together(
            "decode",
            batch_size,
            (read, nbytes / buffer),
            lambda rival: rival.decode(tokens, self.steps),
            lambda rival: batch_size == 1 or rival.batches,
        )

    def prefill(self, length: int) -> Samples:
        """Seconds until the first token after so many: of the limit, and of every entrant."""
        tokens = self.tokens(1, length)
        product = partial(prepare_product, self.model.device, self.model.dtype, self.side)
        work = self.model.config.multiplications(length, length * (length + 1) // 2)
        return self._together(
            "prefill",
            length,
            (product, work / self.side**3),
            lambda rival: rival.prefill(tokens),
        )

    def _together(
        self,
        kind: str,
        size: int,
        limit: tuple[Prepare, float],
        prepare: Callable[[Entrant], Decode],
        takes_part: Callable[[Entrant], bool] = lambda _: True,
    ) -> Samples:
        """In the same turns; measured once. The limit takes so many times what is timed of it."""
        if (kind, size) not in self._samples:
            limit_once, scale = limit
            ready = limit_once()

            def measure(rivals: list[Entrant]) -> Samples:
                turns = {r.name: partial(prepare, r) for r in rivals if takes_part(r)}
                return interleave({"limit": lambda: ready, **turns}, self.rounds, f"{kind} {size}")

            samples = self.without_failures(self.entrants, measure)
            samples["limit"] = [scale * took for took in samples["limit"]]
            self._samples[kind, size] = samples
        return self._samples[kind, size]

    def without_failures(
        self, rivals: list[Entrant], measure: Callable[[list[Entrant]], Found]
    ) -> Found:
        """Measure them all; one that fails leaves the list, and the others are measured anew."""
        while True:
            try:
                return measure(rivals)
            except EntrantFailure as failure:
                rivals.remove(failure.entrant)
                self.left_out.append(str(failure))

    def _bytes_read(self, batch_size: int) -> int:
        """In a step: every weight but the embeddings that are looked up, and the cache."""
        looked_up = self.model.wpe.weight.nbytes
        if not self.model.config.tie_word_embeddings:
            looked_up += self.model.wte.weight.nbytes
        positions = batch_size * (self.prompt + self.steps // 2)  # half way through the steps
        return self.bytes - looked_up + self.model.cache_spec.bytes_per_token * positions
