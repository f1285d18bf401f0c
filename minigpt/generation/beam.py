"""Beam search: keep the likeliest few texts at every step, instead of one.

Each beam is a row of the cache. A step scores every continuation of every beam, keeps the best, and
`cache.select` reorders the rows to match: a beam that had two good continuations becomes two rows,
one that had none is gone. With the paged cache that copies no keys and values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from minigpt.generation.decoding import Row
from minigpt.generation.sampling import Sampler
from minigpt.model import GPT, require_model
from minigpt.numerics.copies import recheck
from minigpt.support.checks import is_number, whole
from minigpt.support.errors import MinigptError
from minigpt.support.modes import evaluating
from minigpt.support.tokens import listed_tokens

STRONGEST = 10  # length penalty: far beyond any use, and a long text to that power is a number


@dataclass(frozen=True)
class Beam:
    """One text that was found."""

    tokens: list[int]  # the new ids, without the one that ended it
    log_probability: float  # of all of them together, and of the ending token if there was one
    score: float  # log-probability / length ** length_penalty, by which beams are compared
    finish_reason: str  # "length", "end_of_text" or "context"


def beam_search(
    model: GPT,
    ids: Sequence[int],
    max_new_tokens: int = 50,
    beams: int = 4,
    length_penalty: float = 1.0,
    stop_tokens: Sequence[int] | None = None,
    kind: str = "paged",
    never: Sequence[int] = (),
) -> list[Beam]:
    """The likeliest continuations that a search this wide finds, best first.

    Finished texts and running ones compete by score; the search ends when no running beam's score
    beats the worst of `beams` finished ones, as in transformers' `early_stopping=False`.

    Args:
        ids: the prompt's tokens; empty starts from the end-of-text token.
        max_new_tokens: at most so many; the context's end also ends it.
        beams: rows kept at each step.
        length_penalty: 0 compares sums of log-probabilities, which favours short texts; 1 means.
        stop_tokens: end a text; None: the model's end-of-text token, if it has one.
        kind: of the cache.
        never: tokens that no text takes, such as ids that the tokenizer has no text for.

    Raises:
        MinigptError: for arguments out of range, before any work is done.
    """
    require_model(model)
    recheck(model)
    whole("beams", beams, 1, model.config.vocab_size, "one for each token of the vocabulary")
    if not is_number(length_penalty) or not -STRONGEST <= length_penalty <= STRONGEST:
        raise MinigptError(
            f"length_penalty is {length_penalty!r}, needed a number from -{STRONGEST} to "
            f"{STRONGEST}"
        )
    row = Row(model, ids, max_new_tokens, Sampler(), 0, stop_tokens)
    prompt, stops = row.window, sorted(row.stop_tokens)
    banned = listed_tokens(never, "never", model.config.vocab_size)
    count = min(max_new_tokens, row.limit - len(prompt) + 1)
    if count == 0:
        return []
    running: list[tuple[float, list[int]]] = [(0.0, [])]  # (log-probability, new tokens)
    finished: list[Beam] = []

    def done(log_probability: float, tokens: list[int], reason: str) -> Beam:
        length = len(tokens) + (reason == "end_of_text")
        return Beam(tokens, log_probability, log_probability / length**length_penalty, reason)

    cache = model.new_cache(max_length=min(row.limit, len(prompt) + count), kind=kind)
    with evaluating(model), torch.inference_mode():
        tokens = torch.tensor([prompt], device=model.device)
        for step in range(count):
            logits = model.next_logits(tokens, cache=cache).float().cpu()  # (beams, V)
            if not logits.isfinite().all():
                raise MinigptError(
                    "the model's logits hold numbers that are not finite: its weights are "
                    "damaged, or its dtype overflows; try dtype float32"
                )
            before = torch.tensor([score for score, _ in running], dtype=torch.float64)
            totals = before[:, None] + logits.log_softmax(-1)  # (beams, V)
            totals[:, banned] = -torch.inf
            # Enough that, whatever ends, as many beams go on.
            width = min(beams * (len(stops) + 1), totals.numel())
            best, places = totals.flatten().sort(descending=True, stable=True)
            going: list[tuple[float, list[int], int]] = []
            for rank, (score, place) in enumerate(
                zip(best[:width].tolist(), places[:width].tolist(), strict=True)
            ):
                beam, token = divmod(place, totals.shape[1])
                if token in banned:
                    break  # these come last
                if token in row.stop_tokens:
                    if rank < beams:
                        finished.append(done(score, running[beam][1], "end_of_text"))
                elif len(going) < beams:
                    going.append((score, [*running[beam][1], token], beam))
            finished = sorted(finished, key=lambda beam: -beam.score)[:beams]
            running = [(score, new) for score, new, _ in going]
            if step + 1 == count or not going:
                break
            attainable = going[0][0] / (step + 1) ** length_penalty
            if len(finished) == beams and finished[-1].score >= attainable:
                break
            cache = cache.select([beam for *_, beam in going])
            tokens = torch.tensor([[new[-1]] for _, new, _ in going], device=model.device)
    reason = "length" if count == max_new_tokens else "context"
    finished += [done(score, new, reason) for score, new in running]
    return sorted(finished, key=lambda beam: -beam.score)[:beams]
