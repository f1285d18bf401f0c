"""Where a computation happens: everything but the shape that decides which kernel runs, and how.

A certificate holds for one place (`certificates.py`), and so does what a layer has ready for it. A
pass through a model finds out once where it is, and its layers compare one object.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache, lru_cache
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

Found = TypeVar("Found")


class Place(NamedTuple):
    """Two equal ones are the same object when they come from `here` or `of`.

    How many threads OpenMP really gives (`OMP_THREAD_LIMIT`) cannot be asked, and cannot change in
    a process: probes run with what they get, and find out what is right with that.
    """

    dtype: torch.dtype
    device: torch.device
    threads: int
    precision: str  # of float32 products: "highest", or faster and less exact
    switches: tuple[object, ...] = ()  # of torch's backends

    @classmethod
    def of(cls, x: Tensor) -> Place:
        """That of a computation on x: of the pass that is going on, or found out now."""
        return cls.now(x.dtype, x.device)

    @classmethod
    def now(cls, dtype: torch.dtype, device: torch.device) -> Place:
        """The same, without a tensor."""
        place = going_on().place
        if place is not None and place.dtype is dtype and place.device == device:
            return place
        return cls.here(dtype, device)

    @classmethod
    def here(cls, dtype: torch.dtype, device: torch.device) -> Place:
        """That of a computation in this dtype on this device, as things are now."""
        switches = _on_cuda() if device.type == "cuda" else _on_cpu()
        return _one(cls(dtype, device, torch.get_num_threads(), _precision(), switches))


def one_place(dtype: torch.dtype, device: torch.device) -> AbstractContextManager[Place | None]:
    """Inside the block this thread computes here: nobody asks again. (A compiler never asks.)"""
    return nullcontext() if torch.compiler.is_compiling() else _settled(Place.here(dtype, device))


@contextmanager
def _settled(place: Place) -> Iterator[Place]:
    held = going_on()
    before = held.place, held.notes
    held.place, held.notes = place, {}
    try:
        yield place
    finally:
        held.place, held.notes = before


@contextmanager
def weights_seen(revision: object) -> Iterator[None]:
    """Inside the block this thread's pass goes through one model, whose weights were looked at and
    belong to this revision: nobody looks again. (None: somebody may change them on the way.)"""
    held = going_on()
    before, held.revision = held.revision, revision
    try:
        yield
    finally:
        held.revision = before


@cache
def tied_to_threads() -> dict[Place, set[frozenset[int]]]:
    """For each place the sizes of weights and heads whose bits were found to be those of its
    number of threads only."""
    return {}


@lru_cache(maxsize=4096)
def _one(place: Place) -> Place:
    return place  # of equal ones, the first that came


class GoingOn(threading.local):
    """What this thread's pass has found out; None: no pass, or it has not."""

    place: Place | None = None
    revision: object = None  # of the weights
    notes: dict[Hashable, Any] | None = None  # of what every layer would find out again


def noted(key: Hashable, find: Callable[[], Found]) -> Found:
    """What `find` returns, called once for a key in the pass that is going on."""
    notes = going_on().notes
    if notes is None:
        return find()
    if key not in notes:
        notes[key] = find()
    found: Found = notes[key]
    return found


@cache
def going_on() -> GoingOn:
    """This thread's pass."""
    return GoingOn()


def _precision() -> str:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # set for one backend alone, which only that backend will tell
        backends = torch.backends.mkldnn, torch.backends.cuda
        return "/".join(backend.matmul.fp32_precision for backend in backends)


def flushes_denormals() -> bool:
    """Does this thread of the CPU take numbers too small to be normal for zeros? Torch will not
    say (`torch.set_flush_denormal`), but Python's own numbers go through the same arithmetic."""
    return SMALLEST * 1.0 == 0.0


SMALLEST = 5e-324  # above 0


def _on_cpu() -> tuple[object, ...]:
    cuda = torch.backends.cuda  # home of switches for attention's kernels everywhere
    return (
        flushes_denormals(),
        torch._C._get_mkldnn_enabled(),  # torch.backends.mkldnn.enabled takes ten times as long
        torch.are_deterministic_algorithms_enabled(),
        cuda.flash_sdp_enabled(),
        cuda.mem_efficient_sdp_enabled(),
        cuda.math_sdp_enabled(),
    )


def _on_cuda() -> tuple[object, ...]:
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    return (
        *_on_cpu(),
        torch.backends.cuda.cudnn_sdp_enabled(),
        matmul.allow_fp16_reduced_precision_reduction,
        matmul.allow_bf16_reduced_precision_reduction,
        matmul.allow_fp16_accumulation if hasattr(matmul, "allow_fp16_accumulation") else None,
        str(torch.backends.cuda.preferred_blas_library()),
        cudnn.enabled,
        cudnn.benchmark,
        cudnn.deterministic,
        cudnn.allow_tf32,
    )
