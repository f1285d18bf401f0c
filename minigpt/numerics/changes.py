"""Has a weight changed? What torch tells of it at no cost, and a checksum for all the rest.

What was computed from weights (keys in a cache, a file of them) must be told from what the same
weights would give later. Torch counts the changes of a tensor in place, and a tensor that is
exchanged for another brings other memory along; both are looked at before every pass. A tensor that
was made in inference mode has no such count, so a few dozen of its numbers stand in for it. What is
written through `weight.data` is not counted either, and shows in a checksum alone.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from operator import is_
from typing import Any
from weakref import ref

import numpy
import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version
from torch.nn.modules import module as everywhere
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

ROWS, COLUMNS = 251, 257  # primes, so that no matrix's rows repeat in step with them
PAGE = ROWS * COLUMNS
SMALL = 2**14  # bytes
SAMPLE = 64  # numbers


def weights_in(model: nn.Module) -> list[Tensor]:
    """Every parameter and buffer of a model, a tied one as often as it is used."""
    return weights_and_hooks(model)[0]


def weights_and_hooks(model: nn.Module) -> tuple[list[Tensor], bool]:
    """The weights, and whether anything but our own code has a part in a pass and may change them.

    Written out because it runs before every pass: `model.parameters()` takes five times as long.
    """
    found: list[Tensor | None] = []
    modules: list[nn.Module | None] = [model]
    kinds: set[type[nn.Module]] = set()
    hooked = any_global_hooks()
    for module in modules:  # it grows
        if module is not None:
            found += module._parameters.values()
            found += module._buffers.values() if module._buffers else ()
            modules += module._modules.values() if module._modules else ()
            if module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__:
                hooked = True
            kinds.add(type(module))
    hooked = hooked or not all(_known(kind.forward) for kind in kinds)
    return [weight for weight in found if weight is not None], hooked


def may_interfere(module: nn.Module) -> bool:
    """Does anything but the code of this package or torch run where this module does? (What it
    holds is not asked.)"""
    own = module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__
    return bool(own) or any_global_hooks() or not _known(type(module).forward)


def any_global_hooks() -> bool:
    """Does anything listen in on every module there is?"""
    return bool(everywhere._global_forward_hooks or everywhere._global_forward_pre_hooks)


@lru_cache(maxsize=1024)
def _known(forward: Callable[..., Any]) -> bool:
    # Not its `__module__`, which a wrapper takes over from what it wraps.
    where = getattr(forward, "__globals__", {}).get("__name__", "")
    return where.partition(".")[0] in ("minigpt", "torch")


class Glance:
    """What is seen of weights without reading them all."""

    def __init__(self, weights: list[Tensor]) -> None:
        self.places = [weight.data_ptr() for weight in weights]
        self.versions = versions(weights)
        self.counted = not any(map(Tensor.is_inference, weights))
        # An address that came free may be given out again, so the memory must still be there too.
        self.memory = [ref(weight.untyped_storage()) for weight in weights]

    def still_holds(self, weights: list[Tensor]) -> bool:
        """Are these the same weights, with no change seen?"""
        memory = map(Tensor.untyped_storage, weights)
        return (
            self.places == [weight.data_ptr() for weight in weights]
            and all(map(is_, memory, [held() for held in self.memory]))
            # The memory is the same, and so torch counts for it or does not, as before.
            and self.versions
            == ([weight._version for weight in weights] if self.counted else versions(weights))
        )


def versions(weights: list[Tensor]) -> list[int] | list[bytes | int]:
    """How often each was changed in place; or some of its numbers, where torch does not count."""
    count_fused_steps()
    if any(map(Tensor.is_inference, weights)):
        return [_some(weight) if weight.is_inference() else weight._version for weight in weights]
    return [weight._version for weight in weights]


def _some(weight: Tensor) -> bytes:
    numbers = weight.detach().flatten()
    some = numbers[:: 1 + len(numbers) // SAMPLE].contiguous()
    return bytes(some.view(torch.uint8).tolist())


@lru_cache
def count_fused_steps() -> None:
    """Have torch count what fused optimizers change, which it does not by itself."""

    def count(optimizer: Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            for weight in group["params"]:
                if not weight.is_inference():
                    increment_version(weight)

    register_optimizer_step_post_hook(count)


def checksum(tensor: Tensor) -> bytes:
    """A few KB that follow the bits of a tensor, at the speed of reading it: of a small one, all.

    The bytes are laid out as 64-bit integers in pages of 251 rows and 257 columns; the pages are
    added up, modulo 2**64, and of their sum its rows and its columns. One number changed always
    shows, whichever bits of it did, and so do two numbers that change places, unless they lie a
    whole number of pages (516,056 bytes) apart. What cancels in the sums does not show.
    """
    raw = tensor.detach().contiguous().flatten().view(torch.uint8)
    if len(raw) <= SMALL:
        return raw.cpu().numpy().tobytes()
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


def totals(weight: Tensor) -> list[int]:
    """Its bits as whole numbers, added up piece by piece, at the speed of memory: a changed number
    always shows. For copies that are compared with their weight often; a `checksum` tells more."""
    lies = weight if weight.is_contiguous() else weight.mT
    raw = lies.detach().contiguous().flatten().view(torch.uint8)
    if raw.storage_offset() % 8:  # 64-bit integers must lie at whole multiples of their size
        raw = raw.clone()
    words = raw[: len(raw) // 512 * 512].view(torch.int64).view(64, -1)
    return [*words.sum(1).tolist(), *raw[words.nbytes :].tolist()]


class Sample:
    """A few dozen numbers of a weight, by which a change of all of it shows whoever made it.

    They lie a golden ratio of a row apart: whole rows, whole columns and blocks of either, a head's
    for instance, hold some of them. Numpy looks at them, in the weight's own memory, where they are
    so many numbers apart: at every pass that is a hundredth of what it would cost through torch.
    """

    def __init__(self, weight: Tensor) -> None:
        numbers = as_integers(weight).numpy()
        lines = numbers if weight.is_contiguous() else numbers.T
        apart, width = max(1, numbers.size // SAMPLE), lines.shape[1]
        if apart >= width:
            apart += int(width * GOLDEN) - apart % width
        self._some = lines.reshape(-1)[::apart]
        if not numpy.shares_memory(self._some, numbers):  # no line: a part of something larger
            self._some = numbers[:: -(-len(numbers) // SAMPLE)]
        self._was = self._some.tobytes()

    def still_holds(self) -> bool:
        return self._some.tobytes() == self._was


GOLDEN = 0.6180339887498949


def as_integers(weight: Tensor) -> Tensor:
    """The bits of a weight, which lie where they did."""
    kinds = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return weight.detach().view(kinds[weight.dtype.itemsize])
