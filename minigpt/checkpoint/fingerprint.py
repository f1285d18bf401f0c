"""Which model is this? A short name for a configuration and the bits of every weight.

What a model computed is of use to that model only, so what is kept on disk says whose it is.
Reading all weights once is all the time this may take, hence sums of integers: they come out the
same in whatever order, and by however many threads, they are added up.
"""

from __future__ import annotations

import hashlib
import json
import weakref
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from minigpt.numerics.packed import optimizer_steps

if TYPE_CHECKING:
    from minigpt.model import GPT

ROWS, COLUMNS = 251, 257  # primes, so that no matrix's rows repeat in step with them
PAGE = ROWS * COLUMNS


def fingerprint(model: GPT) -> str:
    """64 hexadecimal digits for the configuration and every weight, names and dtype included.

    Remembered until a weight changes, as far as torch tells (see `numerics.Packed`). Meant for
    mistakes, not for forgers: it misses changes that cancel in a `checksum`.
    """
    weights = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    state: list[Any] = [optimizer_steps()[0]]
    for name, weight in weights.items():
        version = 0 if weight.is_inference() else weight._version
        storage = weight.untyped_storage()
        state.append((name, id(storage), weight.data_ptr(), weight.dtype, version))
    # An address that came free may be given out again, so the storages must still be there too.
    known = _remembered().get(model)
    if known and known[0] == state and all(alive() is not None for alive in known[1]):
        return known[2]
    digest = hashlib.sha256(json.dumps(model.config.to_dict(), sort_keys=True).encode())
    for name, weight in weights.items():
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(checksum(weight))
    storages = [weakref.ref(weight.untyped_storage()) for weight in weights.values()]
    _remembered()[model] = state, storages, digest.hexdigest()
    return digest.hexdigest()


def checksum(tensor: Tensor) -> bytes:
    """4 KB that follow the bits of a tensor, at the speed of reading it.

    The bytes are laid out as 64-bit integers in pages of 251 rows and 257 columns; the pages are
    added up, modulo 2**64, and of their sum its rows and its columns. One number changed always
    shows, whichever bits of it did, and so do two numbers that change places, unless they lie a
    whole number of pages (516,056 bytes) apart. What cancels in the sums does not show.
    """
    raw = tensor.detach().contiguous().flatten().view(torch.uint8)
    if raw.storage_offset() % 8:  # 64-bit integers must lie at whole multiples of their size
        raw = raw.clone()
    whole = len(raw) // 8 * 8
    words, rest = raw[:whole].view(torch.int64), raw[whole:]
    full = len(words) // PAGE * PAGE
    total = words[:full].view(-1, PAGE).sum(0)
    total[: len(words) - full] += words[full:]
    total[: len(rest)] += rest
    page = total.view(ROWS, COLUMNS)
    return torch.cat([page.sum(0), page.sum(1)]).cpu().numpy().tobytes()


@lru_cache
def _remembered() -> weakref.WeakKeyDictionary[GPT, tuple[Any, list[Any], str]]:
    """[model]: the state its weights were in, their storages, and the fingerprint."""
    return weakref.WeakKeyDictionary()
