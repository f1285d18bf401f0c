"""What a model with this vocabulary and context can read, and how much of it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from minigpt.support.checks import is_whole, listed
from minigpt.support.errors import MinigptError


def check_tokens(tokens: object, vocab_size: int, longest: int, device: torch.device) -> None:
    """Refuse anything but (B, T) integers of the vocabulary, on the device, T up to `longest`.

    Raises:
        MinigptError: then.
    """
    if not isinstance(tokens, Tensor) or tokens.dtype not in (torch.int64, torch.int32):
        found = tokens.dtype if isinstance(tokens, Tensor) else type(tokens).__name__
        raise MinigptError(f"tokens are {found}, needed a (B, T) tensor of int64")
    if tokens.ndim != 2 or tokens.numel() == 0:
        raise MinigptError(
            f"tokens have shape {tuple(tokens.shape)}, needed (B, T) with at least one row and "
            f"one token"
        )
    if tokens.device != device:
        raise MinigptError(
            f"tokens are on {tokens.device} and the model is on {device}: "
            f"move them with tokens.to(model.device)"
        )
    low, high = map(int, tokens.aminmax())
    if low < 0 or high >= vocab_size:
        raise MinigptError(
            f"token {low if low < 0 else high} is outside the vocabulary, "
            f"needed ids from 0 to {vocab_size - 1}"
        )
    if tokens.shape[1] > longest:
        raise MinigptError(
            f"{tokens.shape[1]} tokens do not fit the context of {longest} positions: pass at most "
            f"{longest}"
        )


def listed_tokens(values: Iterable[int] | Tensor, name: str, vocab_size: int) -> list[int]:
    """One text's tokens, from a list, a range, a row of a tensor or of an array.

    Raises:
        MinigptError: for anything but whole numbers of the vocabulary.
    """
    tokens = listed(values, name, "a list of token ids")
    for token in tokens:
        if not is_whole(token) or not 0 <= token < vocab_size:
            raise MinigptError(
                f"{name} holds {token!r}, needed whole numbers from 0 to {vocab_size - 1}"
            )
    return tokens


def within_context(length: int | None, longest: int) -> int:
    """The positions to make room for: `longest` unless told otherwise, and never more.

    Raises:
        MinigptError: for more.
    """
    if isinstance(length, int) and length > longest:
        raise MinigptError(f"max_length is {length}, but this model has {longest} positions")
    return longest if length is None else length
