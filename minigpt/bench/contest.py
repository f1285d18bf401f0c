"""One model against the others that can run it: what every section of a bench is given."""

from __future__ import annotations

from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor

from minigpt.bench.entrants import Entrant, load_entrants, why_no_transformers
from minigpt.bench.machine import prepare_product, prepare_read
from minigpt.bench.measure import Prepare, Samples, interleave
from minigpt.model import GPT
from minigpt.support.checks import whole

BATCHES = (1, 4, 8, 16)
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
        self.buffer = 2**27 if quick else 2**29  # bytes read to find the limit of reading,
        self.side = 1024 if quick else 3072  # and width of the matrices multiplied for the other
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
        """Seconds of `steps` steps after the prompt: of the limit, and of every entrant."""
        tokens = self.tokens(batch_size, self.prompt)
        rivals: dict[str, Prepare] = {
            rival.name: partial(rival.decode, tokens, self.steps)
            for rival in self.entrants
            if batch_size == 1 or rival.batches
        }
        read = partial(prepare_read, self.model.device, self.buffer)
        scale = self.steps * self._bytes_read(batch_size) / self.buffer
        return self._together("decode", batch_size, read, scale, rivals)

    def prefill(self, length: int) -> Samples:
        """Seconds until the first token after so many: of the limit, and of every entrant."""
        tokens = self.tokens(1, length)
        rivals: dict[str, Prepare] = {
            rival.name: partial(rival.prefill, tokens) for rival in self.entrants
        }
        product = partial(prepare_product, self.model.device, self.model.dtype, self.side)
        work = self.model.config.multiplications(length, length * (length + 1) // 2)
        return self._together("prefill", length, product, work / self.side**3, rivals)

    def _together(
        self,
        kind: str,
        size: int,
        limit: Prepare,
        scale: float,
        rivals: dict[str, Prepare],
    ) -> Samples:
        """In the same turns; measured once. The limit takes `scale` times what is timed of it."""
        if (kind, size) not in self._samples:
            ready = limit()
            samples = interleave({"limit": lambda: ready, **rivals}, self.rounds, f"{kind} {size}")
            samples["limit"] = [scale * took for took in samples["limit"]]
            self._samples[kind, size] = samples
        return self._samples[kind, size]

    def _bytes_read(self, batch_size: int) -> float:
        """In a step: every weight but the embeddings that are looked up, and the cache."""
        looked_up = self.model.wpe.weight.nbytes
        if not self.model.config.tie_word_embeddings:
            looked_up += self.model.wte.weight.nbytes
        positions = batch_size * (self.prompt + self.steps / 2)  # half way through the steps
        return self.bytes - looked_up + self.model.cache_spec.bytes_per_token * positions
