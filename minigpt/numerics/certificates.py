"""Certificates: which calls of a kernel give a row the bits that it has in the reference call.

`exact.py` says what they are for. A probe runs the very kernel that a model will run, on the very
shape, dtype, device and number of threads, with numbers on which another order of summation shows,
and compares the results bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from minigpt.numerics.base import ACTIVATION, KEY_BLOCK, plain_linear
from minigpt.numerics.packed import PACK_FROM, Packed

TILE = 16  # rows in the reference call
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)  # rows a call may have, once certified
PROBE_LIMIT = 2.5e9  # multiplications in the largest call probed; wider ones gain nothing more


class Place(NamedTuple):
    """Everything but the shape that decides which kernel runs, and how."""

    dtype: torch.dtype
    device: torch.device
    threads: int
    precision: str  # of float32 products: "highest", or faster and less exact

    @classmethod
    def of(cls, x: Tensor) -> Place:
        try:
            precision = torch.get_float32_matmul_precision()
        except RuntimeError:  # set for one backend alone, which only that backend will tell
            backends = torch.backends.mkldnn, torch.backends.cuda
            precision = "/".join(backend.matmul.fp32_precision for backend in backends)
        return cls(x.dtype, x.device, torch.get_num_threads(), precision)


# --- the kernels that are certified -----------------------------------------------------------


def attention_scores(q: Tensor, k: Tensor) -> Tensor:
    """(N, R, M, D) queries, (N, S, D) keys -> (N, R·M, S)."""
    return torch.bmm(q.flatten(1, 2), k.transpose(1, 2))


def attention_mix(weights: Tensor, v: Tensor) -> Tensor:
    """(N, R·M, S) weights, (N, S, D) values -> (N, R·M, D).

    One product alone is split between threads within its sums; two or more are shared out whole.
    """
    if weights.shape[0] > 1:
        return torch.bmm(weights, v)
    return torch.bmm(weights.expand(2, -1, -1), v.expand(2, -1, -1))[:1]


# --- certificates -----------------------------------------------------------------------------


class LinearShape(NamedTuple):
    n_in: int
    n_out: int
    by_column: bool  # how the weight lies in memory
    has_bias: bool
    place: Place


class LinearCalls(NamedTuple):
    """How to compute a product exactly."""

    reference: str  # the kernel of the reference call, "packed" or "plain"
    kernel: dict[int, str]  # for each certified number of rows, the kernel that has its bits
    sizes: tuple[int, ...]  # the certified numbers of rows


class AttentionShape(NamedTuple):
    batch_size: int
    kv_heads: int
    group: int  # query heads per key/value head
    keys: int
    head_dim: int
    place: Place


class RowwiseShape(NamedTuple):
    name: str  # "layer_norm", or an activation
    width: int
    place: Place


@cache
def certified_calls(shape: LinearShape) -> LinearCalls:
    """The kernel of the reference call for a product, and the numbers of rows with its bits.

    The packed kernel is the reference where there is one, for its sums are the same on any number
    of threads. For small weights the plain one is quicker, and is taken if it is as steady.
    """
    with torch.no_grad():
        draw, probes = _Draw(shape.place), []
        for _ in range(-(-ENOUGH // shape.n_out)):  # few columns tell little, so draw again
            probes.append(_LinearProbe(shape, draw))
        names = [name for name in ("packed", "plain") if name in probes[0].calls]
        small = shape.n_in * shape.n_out < PACK_FROM
        if small and len(names) > 1 and all(probe.steady("plain") for probe in probes):
            names = ["plain"]
        references = [probe.reference(names[0]) for probe in probes]
        kernel: dict[int, str] = {}
        largest = max(TILE, PROBE_LIMIT / (shape.n_in * shape.n_out))
        for size in SIZES:
            if None in references or size > largest:
                break
            for name in names:
                if all(probe.agrees(name, size) for probe in probes):
                    kernel[size] = name
                    break
    return LinearCalls(names[0], kernel, tuple(kernel))


ENOUGH = 128  # columns, of all draws together


class _LinearProbe:
    """A weight, a bias and `TILE` rows on which another order of summation shows."""

    def __init__(self, shape: LinearShape, draw: _Draw) -> None:
        self.place = shape.place
        columns = min(shape.n_out, 2 * ENOUGH - 1)  # the rest repeats them: quicker to make
        self.rows, weight = draw.telling_product(TILE, shape.n_in, columns)
        bias = None
        if shape.has_bias:  # column j's sum for row j, but negative: where the bias comes in, shows
            sums = (self.rows.double() @ weight.double())[
                torch.arange(columns) % TILE, range(columns)
            ]
            bias = self._repeated(-sums.to(weight.dtype), shape.n_out)
        weight = self._repeated(weight, shape.n_out)
        weight = weight.T.contiguous().T if shape.by_column else weight.contiguous()
        packed = Packed().kernel(weight)
        self.calls: dict[str, Callable[[Tensor], Tensor]] = {}
        if packed is not None:
            self.calls["packed"] = lambda rows: packed(rows, bias)
        self.calls["plain"] = lambda rows: plain_linear(rows, weight, bias)
        self.want: Tensor | None = None

    @staticmethod
    def _repeated(x: Tensor, columns: int) -> Tensor:
        times = [1] * (x.ndim - 1) + [-(-columns // x.shape[-1])]
        return x.repeat(times)[..., :columns].contiguous()

    def reference(self, name: str) -> Tensor | None:
        self.want = _reference(self.calls[name], self.rows, 0, self.place)
        return self.want

    def agrees(self, name: str, size: int) -> bool:
        """Does a call of this many rows give the reference's bits?"""
        assert self.want is not None
        return torch.equal(self.calls[name](_tiled(self.rows, size, 0)), _tiled(self.want, size, 0))

    def steady(self, name: str) -> bool:
        """Does the reference call give the same bits on other numbers of threads?"""
        results = []
        for count in (1, 2, 3, 8):
            with _threads(count, self.place.device):
                results.append(self.calls[name](self.rows))
        return all(torch.equal(result, results[0]) for result in results)


@cache
def rowwise_sizes(shape: RowwiseShape) -> tuple[int, ...]:
    """The numbers of rows for which a norm or an activation does what it does to one row."""
    draw = _Draw(shape.place)
    call: Callable[[Tensor], Tensor]
    if shape.name == "layer_norm":
        weight, bias = draw.normal(shape.width), draw.normal(shape.width)
        call = lambda rows: F.layer_norm(rows, (shape.width,), weight, bias)  # noqa: E731
        rows = 256 + 4 * draw.normal(TILE, shape.width)  # small beside its mean: sums must round
    else:
        call = ACTIVATION[shape.name]
        rows = draw.telling(call, TILE * shape.width).view(TILE, shape.width)
    sizes = [1]  # one row is the reference, and needs no padding
    with torch.no_grad():
        with _threads(1, shape.place.device):
            alone = torch.cat([call(row) for row in rows.split(1)])
        for size in SIZES[1:]:
            if size * shape.width > PROBE_LIMIT / 500:
                break
            if torch.equal(call(_tiled(rows, size, 0)), _tiled(alone, size, 0)):
                sizes.append(size)
    return tuple(sizes)


@cache
def attention_sizes(shape: AttentionShape) -> tuple[int, ...]:
    """The numbers of queries per head for which a call gets the bits of the reference.

    The reference is one sequence alone with `TILE` queries per head. Scores, softmax and the
    weighted sum of values are compared one by one, each on data that would show a difference.
    """
    draw = _Draw(shape.place)
    B, G, R, S, D = shape[:5]
    q, k = draw.telling_product(G * R * TILE, D, G * S)
    q, k = q.view(G, R, TILE, D), k.T.contiguous().view(G, S, D)
    weights, v = draw.telling_product(G * R * TILE, S, G * D)
    weights, v = weights.view(G, R, TILE, S), v.view(S, G, D).transpose(0, 1).contiguous()
    scores = 4 * draw.normal(G, R, TILE, S)
    stages: list[tuple[Callable[[Tensor, Tensor], Tensor], Tensor, Tensor]] = [
        (attention_scores, q, k),
        (lambda rows, _: rows.flatten(1, 2).softmax(-1), scores, k),
        (lambda rows, v: attention_mix(rows.flatten(1, 2), v), weights, v),
    ]
    sizes = [size for size in SIZES if size <= KEY_BLOCK]
    with torch.no_grad():
        for call, rows, other in stages:
            reference = _reference(_by_rows(call, other), rows, 2, shape.place)
            if reference is None:
                return ()
            batch = _by_rows(call, other.repeat(B, 1, 1))
            sizes = [
                size
                for size in sizes
                if torch.equal(
                    batch(_tiled(rows, size, 2).repeat(B, 1, 1, 1)),
                    _tiled(reference, size, 2).repeat(B, 1, 1, 1),
                )
            ]
    return tuple(sizes)


def _by_rows(call: Callable[[Tensor, Tensor], Tensor], other: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda rows: call(rows, other).unflatten(1, rows.shape[1:3])


def _reference(
    call: Callable[[Tensor], Tensor], rows: Tensor, dim: int, place: Place
) -> Tensor | None:
    """What `TILE` rows give in one call, if that is what each gives alone in the first place.

    All places are alike if moving every row one place on moves the results and changes none, and
    neighbours do not matter if zeros in place of every other row change nothing. The call is made
    on one thread where threads are ours to set, so that equality with it also means that the
    number of threads does not matter; where only that fails, the promise holds for a fixed number.
    """
    for threads in (1, place.threads):
        with _threads(threads, place.device):
            together = call(rows)
            moved = call(rows.roll(1, dim)).roll(-1, dim)
            lonely = rows.clone()
            lonely.transpose(0, dim)[1::2] = 0
            alone = call(lonely)
        even = slice(0, None, 2)
        same = torch.equal(
            alone.transpose(0, dim)[even], together.transpose(0, dim)[even]
        ) and torch.equal(together, moved)
        if not same:
            return None
        if threads == place.threads or torch.equal(call(rows), together):
            return together
    return None


def _tiled(rows: Tensor, size: int, dim: int) -> Tensor:
    """The same `TILE` rows again and again, `size` in all: every place of a wide call is tried."""
    times = [1] * rows.ndim
    times[dim] = -(-size // rows.shape[dim])
    return rows.repeat(times).narrow(dim, 0, size).contiguous()


class _threads:
    """Run a block on `count` CPU threads, then return to as many as before.

    Each Python thread has a count of its own, which begins as the last that any of them set. One
    that starts within the block goes on with `count`: the same bits, perhaps at another speed. So
    run a model once, which makes its certificates, before starting threads that share it.
    """

    def __init__(self, count: int, device: torch.device) -> None:
        self.count = count if device.type == "cpu" else torch.get_num_threads()

    def __enter__(self) -> None:
        self.before = torch.get_num_threads()
        if self.count != self.before:
            torch.set_num_threads(self.count)

    def __exit__(self, *_: object) -> None:
        if self.count != self.before:
            torch.set_num_threads(self.before)


class _Draw:
    """Numbers for a probe, from a generator of its own: the user's seeds are not touched."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.generator = torch.Generator().manual_seed(0)

    def normal(self, *shape: int) -> Tensor:
        x = torch.randn(shape, generator=self.generator)
        return x.to(self.place.device, self.place.dtype)

    def telling_product(self, rows: int, width: int, columns: int) -> tuple[Tensor, Tensor]:
        """Two matrices to multiply. Half of the columns cancel; sums of two or three terms leave
        nothing to see of that, so the other half are ordinary numbers."""
        x, w = self.cancelling(rows, width, columns)
        w[:, 1::2] = self.normal(width, len(range(1, columns, 2)))
        return x, w

    def cancelling(self, rows: int, width: int, columns: int) -> tuple[Tensor, Tensor]:
        """(rows, width) and (width, columns) whose product is zero, but for rounding.

        Every term of every sum meets its negative somewhere else in the sum, so what comes out is
        the rounding errors alone. Another order of summation makes other errors, and here they are
        not hidden behind a large result: half precision would round them away.
        """
        half = width // 2
        order = torch.randperm(half, generator=self.generator).to(self.place.device)
        x, w = 4 * self.normal(rows, half), 4 * self.normal(half, columns)
        rest_x, rest_w = self.normal(rows, width % 2), w.new_zeros(width % 2, columns)
        return torch.cat([x, -x[:, order], rest_x], 1), torch.cat([w, w[order], rest_w])

    def telling(self, function: Callable[[Tensor], Tensor], count: int) -> Tensor:
        """`count` inputs at which scalar and vector code of an elementwise function differ, if any.

        A strided input goes through scalar code. In half precision every number there is is tried.
        """
        if self.place.dtype.itemsize == 2:
            bits = torch.arange(-(2**15), 2**15, dtype=torch.int16)
            candidates = bits.view(self.place.dtype)
            candidates = candidates[candidates.isfinite()].to(self.place.device)
        else:
            candidates = 3 * self.normal(2**16)
        strided = torch.stack([candidates, candidates], 1)[:, 0]
        differ = candidates[function(strided) != function(candidates)]
        found = differ if len(differ) else candidates
        return found.repeat(-(-count // len(found)))[:count].contiguous()
