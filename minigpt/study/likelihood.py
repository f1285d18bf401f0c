"""How likely a model finds a given text: a log-probability for each token, and their mean.

Texts longer than the context are read through overlapping windows. How the log-probabilities of
tokens that are being generated are had is in `sampling.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minigpt.model import GPT, require_model
from minigpt.support.checks import whole
from minigpt.support.errors import MinigptError
from minigpt.support.modes import evaluating
from minigpt.support.tokens import listed_tokens
from minigpt.support.wording import counted


@dataclass(frozen=True)
class Score:
    """What a model thought of a text of N tokens.

    The first token has nothing before it and so no log-probability. To have one for the first token
    of a text, score it with the end-of-text token before it: the token that separates texts.
    """

    tokens: list[int]  # N, as given
    log_probabilities: Tensor  # (N - 1,) float32, nats: [i] is of tokens[i + 1], given those before

    @property
    def loss(self) -> float:
        """Cross-entropy in nats per token, over all tokens but the first."""
        return -self.log_probabilities.double().mean().item()

    @property
    def perplexity(self) -> float:
        """e to the loss: choosing among so many equally likely tokens is as hard."""
        return torch.tensor(self.loss, dtype=torch.float64).exp().item()  # inf, not an error

    def bits_per_byte(self, n_bytes: int) -> float:
        """Bits to encode the text, for each of its bytes: comparable between vocabularies.

        Args:
            n_bytes: of the text that the scored tokens spell, all of them but the first.

        Raises:
            MinigptError: for a text without bytes.
        """
        whole("n_bytes", n_bytes, 1, 2**63 - 1)
        return -self.log_probabilities.double().sum().item() / math.log(2) / n_bytes


def score(
    model: GPT,
    ids: Sequence[int],
    stride: int | None = None,
    progress: Callable[[int], object] = lambda count: None,
) -> Score:
    """The log-probability of each token of a text, each given the tokens before it.

    A text longer than the context is read through windows as long as the context, each `stride`
    tokens further on than the last. Every token is scored once, in the first window that it is in:

        0 1 2 3 4 5 6 7            context 8, stride 3: token 0 has nothing before it
              3 4 5 6 7 8 9 10     scores 8, 9, 10
                    6 7 ...        scores 11, 12, 13

    so each is predicted from at least context - stride tokens (or all there are), as in Hugging
    Face's guide to perplexity. A small stride gives every token more to go by and takes longer: a
    text of N tokens takes about N / stride passes.

    Args:
        model: (1, T) uncached passes in evaluation mode; its mode is restored afterwards.
        ids: the text's tokens, at least 2; see `Score` about the first.
        stride: from 1 to the context less 1; None: half the context.
        progress: given the number of tokens that each window scored, as tqdm's `update` takes it.

    Raises:
        MinigptError: for arguments out of range, before any work is done; and for a model that
            gives NaN.
    """
    require_model(model)
    context = model.config.n_positions
    stride = max(1, context // 2) if stride is None else stride
    why = "less than the context, so that every token has one before it"
    whole("stride", stride, 1, context - 1, why)
    text = listed_tokens(ids, "the text", model.config.vocab_size)
    count = len(text)
    if count < 2:
        raise MinigptError(
            f"the text has {counted(count, 'token')}, needed at least 2: the first is not scored, "
            f"so put the end-of-text token before it"
        )
    tokens = torch.tensor(text)  # (N,)
    log_probabilities = torch.empty(count - 1)
    done = 1  # tokens that are scored, or never will be: the first
    with evaluating(model), torch.inference_mode():
        for begin in range(0, count, stride):
            window = tokens[begin : begin + context].to(model.device)  # (T,)
            end = begin + len(window)
            fresh = end - done
            logits = model(window[None, :-1])[0, -fresh:]  # (fresh, V): of the tokens not scored
            scores = logits.float().log_softmax(-1).gather(-1, window[-fresh:, None])[:, 0]
            if scores.isnan().any():
                raise MinigptError(
                    f"the model's logits hold nan at tokens {done} to {end - 1}: its weights are "
                    f"damaged, or its dtype overflows; try dtype float32"
                )
            log_probabilities[done - 1 : end - 1] = scores
            progress(fresh)
            done = end
            if done == count:
                break
    return Score(text, log_probabilities)
