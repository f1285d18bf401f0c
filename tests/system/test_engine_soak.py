"""Hundreds of requests through one engine: memory stays flat, and no page is lost.

MINIGPT_EXAMPLES=10 makes it ten times as many.
"""

from __future__ import annotations

import os
import random

import torch

from minigpt import GPT, Engine, GPTConfig, generate
from minigpt.support.memory import process_memory

REQUESTS = 800 * int(os.environ.get("MINIGPT_EXAMPLES", "1"))
MOST = 8 * 2**20  # bytes that the second half may add: allocators keep some


def test_memory_stays_flat_over_hundreds_of_requests():
    torch.manual_seed(0)
    shape = {"vocab_size": 17, "n_positions": 48, "n_embd": 8, "n_layer": 1, "n_head": 2}
    model = GPT(GPTConfig(**shape), numerics="exact").eval()
    page = 4
    engine = Engine(model, 24 * page * model.cache_spec.bytes_per_token, batch=8, page=page)
    draw, going, checked, half = random.Random(0), [], 0, None

    def some_request():
        ids = [1, 2, 3, 4, 5, 6, 7, 8][: draw.randint(1, 8)] + draw.choices(range(17), k=4)
        how = {"max_new_tokens": draw.randint(1, 12), "temperature": draw.choice([0.0, 1.0])}
        how["seed"] = draw.randint(0, 9)
        return engine.submit(ids, **how), ids, how

    for number in range(REQUESTS):
        going.append(some_request())
        if number % 50 == 7:
            engine.cancel(going.pop()[0])
        engine.step()
        if number == REQUESTS // 2:
            half = process_memory()
        for request, ids, how in [each for each in going if each[0].done]:
            if request.number % 40 == 0:
                assert request.tokens == generate(model, ids, **how).tokens
                checked += 1
        going = [each for each in going if not each[0].done]
    engine.run()
    assert checked > 10 and engine.counts.preemptions and engine.counts.reused
    assert engine._pool.available == engine.pages
    assert len(engine._pool.names) <= engine.pages and not any(engine._pool.owners[1:])
    if half is not None:
        assert process_memory() - half < MOST
