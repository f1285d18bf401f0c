"""How many threads a small model is trained with: tried out before the first step.

The products of a small model are over before a second thread has begun; on a busy machine waiting
for it can take most of the time. Sums that are divided differently round differently, so the
number is kept in the run's state, and a resumed run has the same.
"""

from __future__ import annotations

import copy
import time

import torch

from minigpt.model import GPT
from minigpt.numerics.base import set_ops
from minigpt.numerics.half_precision import TrainingOps
from minigpt.training.losses import cross_entropy
from minigpt.training.recipes import TrainConfig
from minigpt.training.sources import Source

SMALL = 10_000_000  # parameters, above which all threads are worth their while
ROUNDS = 3
HOPELESS = 3.0  # times the best so far, in a first pass: others on the machine are in the way
GAIN = 0.9  # of the time: with less to be won, fewer threads are taken


def times_by_threads(model: GPT, source: Source, config: TrainConfig) -> dict[int, float]:
    """Seconds of a forward and backward pass with 1, 2, 4, ... threads, up to as many as are set.

    Nothing is changed by it: not the model, nor the random numbers, nor the number of threads.
    """
    most = torch.get_num_threads()
    counts = [2**n for n in range(most.bit_length()) if 2**n < most] + [most]
    inputs, targets = source.batch(0, range(config.batch_size // config.accumulate))
    model = copy.deepcopy(model).train()
    model.numerics = "fast"
    set_ops(model, TrainingOps())
    dtype = getattr(torch, config.precision)
    seconds: dict[int, float] = {}

    def once(count: int) -> float:
        torch.set_num_threads(count)
        began = time.perf_counter()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = cross_entropy(model(inputs), targets)
        loss.backward()
        return time.perf_counter() - began

    try:
        with torch.random.fork_rng(devices=[]):
            for count in counts:
                seconds[count] = once(count)  # warms up; is it worth trying again?
                if seconds[count] < HOPELESS * min(seconds.values()):
                    seconds[count] = min(once(count) for _ in range(ROUNDS))
    finally:
        torch.set_num_threads(most)
    return seconds


def fewest(seconds: dict[int, float]) -> int:
    """The number of threads to take: more than fewer only where they save a tenth of the time."""
    best = min(seconds)
    for count in sorted(seconds):
        if seconds[count] < GAIN * seconds[best]:
            best = count
    return best
