"""Certificates: which calls of a kernel give a row the bits that it has in the reference call; long
because every kind of kernel needs a probe of its own.

`exact.py` says what they are for. A probe runs the very kernel that a model will run, on the very
shape, dtype, device and number of threads, with numbers on which another order of summation shows,
and compares the results bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from minigpt.numerics.base import ACTIVATION, KEY_BLOCK, plain_linear, whole_blocks
from minigpt.numerics.calls import TILE
from minigpt.numerics.certificate_file import Kind, kept
from minigpt.numerics.copies import COPY_FROM, Bags, Chains, pack
from minigpt.numerics.place import Place
from minigpt.numerics.probe_numbers import Draw

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)  # rows a call may have, once certified
QUERIES = (1, 2, 3, *(size for size in SIZES if 2 < size <= KEY_BLOCK))  # for attention
PROBE_LIMIT = 2.5e9  # multiplications in the largest call probed; wider ones gain nothing more


# --- the kernels that are certified -----------------------------------------------------------


def fused_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Torch's kernel that never writes the weights down; arguments as `plain_attention`'s."""
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, mask, scale=scale, enable_gqa=grouped)


def plain_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Attention in two products: (B, H, M, D), (B, G, S, D) twice, (B or 1, 1, M, S) to be added
    to the scores -> (B, H, M, D)."""
    B, H, M, _ = q.shape
    weights = (plain_scores(q * scale, k) + mask).softmax(-1)  # (B, H, M, S)
    N, S = k.shape[0] * k.shape[1], k.shape[2]
    return attention_mix(weights.view(N, -1, S), v.flatten(0, 1)).view(B, H, M, -1)


def plain_scores(q: Tensor, k: Tensor) -> Tensor:
    """(B, H, M, D) queries, (B, G, S, D) keys -> (B, H, M, S)."""
    (B, H, M, D), (_, G, S, _) = q.shape, k.shape
    queries = q.reshape(B * G, -1, D)  # (N, R·M, D), with N = B·G and R = H / G
    return torch.bmm(queries, k.flatten(0, 1).transpose(1, 2)).view(B, H, M, S)


def attention_mix(weights: Tensor, v: Tensor) -> Tensor:
    """(N, R·M, S) weights, (N, S, D) values -> (N, R·M, D).

    One product alone is split between threads within its sums; two or more are shared out whole.
    """
    if weights.shape[0] > 1:
        return torch.bmm(weights, v)
    return torch.bmm(weights.expand(2, -1, -1), v.expand(2, -1, -1))[:1]


AttentionKernel = Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]
ATTENTION: dict[str, AttentionKernel] = {"fused": fused_attention, "plain": plain_attention}


def paired_linear(x: Tensor, stack: Tensor, bias: Tensor | None) -> Tensor:
    """x W + b for one row, (..., in), which is computed twice: (1, in, out) -> (..., out).

    Two rows go to a kernel for many, and what this costs more than one is little as long as the
    weight is small: then a step is nothing but calls, and this is one.
    """
    rows = x if x.ndim == 3 else x.reshape(1, 1, -1)
    pair = torch.cat((rows, rows), -2)
    y = torch.bmm(pair, stack) if bias is None else torch.baddbmm(bias, pair, stack)
    y = y.narrow(-2, 0, 1)
    return y if x.ndim == 3 else y.view(*x.shape[:-1], -1)


# --- certificates -----------------------------------------------------------------------------


class LinearShape(NamedTuple):
    n_in: int
    n_out: int
    by_column: bool  # how the weight lies in memory
    has_bias: bool
    place: Place

    @property
    def sizes(self) -> frozenset[int]:
        """By which a model that has such a weight is known, however the weight lies."""
        return frozenset((self.n_in, self.n_out))


class LinearCalls(NamedTuple):
    """How to compute a product exactly."""

    reference: str  # the kernel of the reference call, "packed" or "plain"
    kernel: dict[int, str]  # for each certified number of rows, the kernel that has its bits
    # For one row alone: these have the reference's bits.
    chains: Chains | None = None  # bags in this order
    in_pairs: bool = False  # the row together with itself
    any_threads: bool = True  # are these the bits of every number of threads?

    @property
    def sizes(self) -> tuple[int, ...]:
        """The certified numbers of rows."""
        return tuple(self.kernel)


class AttentionShape(NamedTuple):
    batch_size: int
    kv_heads: int
    group: int  # query heads per key/value head
    keys: int  # whole blocks; or fewer, where the rest of the last block is hidden from all queries
    head_dim: int
    place: Place

    @property
    def sizes(self) -> frozenset[int]:
        """By which a model with such heads is known."""
        return frozenset((self.head_dim,))


class RowwiseShape(NamedTuple):
    name: str  # "layer_norm", "log_softmax", or an activation
    width: int
    place: Place


class PackedShape(NamedTuple):
    n_in: int
    n_out: int
    place: Place


def _linear_holds(shape: LinearShape, calls: LinearCalls, chance: Random) -> bool:
    """Do the reference, one of the sizes and what one row has hold?"""
    sizes = [chance.choice(list(calls.kernel))] if calls.kernel else []
    probes = _LinearProbe.enough(shape)
    return (
        all(probe.refer_to(calls.reference) for probe in probes)
        and all(probe.any_threads for probe in probes) >= calls.any_threads
        and all(probe.agrees(calls.kernel[size], size) for size in sizes for probe in probes)
        and (calls.chains is None or all(probe.has_order(calls.chains) for probe in probes))
        and (not calls.in_pairs or all(probe.agrees_in_pairs() for probe in probes))
    ) or calls == LinearCalls(calls.reference, {}, any_threads=False)  # says nothing


def _read_linear(said: Any) -> LinearCalls:
    reference, kernel, chains, *rest = said
    if not {reference, *kernel.values()} <= {"packed", "plain"}:
        raise ValueError
    sizes = {int(size): name for size, name in kernel.items()}
    return LinearCalls(reference, sizes, None if chains is None else Chains(*chains), *rest)


@kept(
    "linear",
    Kind(LinearShape, _read_linear, _linear_holds, lambda shape: shape.n_in * shape.n_out),
)
@torch.no_grad()
def certified_calls(shape: LinearShape) -> LinearCalls:
    """The kernel of the reference call for a product, and the numbers of rows with its bits.

    The packed kernel is the reference where there is one, for its sums are the same on any number
    of threads. For small weights the plain one is quicker, and is taken if it is as steady; over
    one that lies by columns it often has an order of its own for few rows.
    """
    probes = _LinearProbe.enough(shape)
    names = [name for name in ("packed", "plain") if name in probes[0].calls]
    small = shape.n_in * shape.n_out < COPY_FROM
    if small and len(names) > 1 and all(probe.steady("plain") for probe in probes):
        names = ["plain", "packed"]
    while not all(probe.refer_to(names[0]) for probe in probes):
        if len(names) == 1:
            return LinearCalls(names[0], {}, any_threads=False)
        del names[0]  # wrong here, or not the same for every row
    kernel: dict[int, str] = {}
    largest = max(TILE, PROBE_LIMIT / (shape.n_in * shape.n_out))
    for size in SIZES:
        if size > largest:
            break
        for name in names:
            if all(probe.agrees(name, size) for probe in probes):
                kernel[size] = name
                break
    calls = LinearCalls(names[0], kernel, any_threads=all(probe.any_threads for probe in probes))
    # Half precision adds by twos; a large weight that lies by columns is not copied again.
    if shape.place.device.type != "cpu" or shape.place.dtype != torch.float32:
        return calls
    if small and all(probe.agrees_in_pairs() for probe in probes):
        return calls._replace(in_pairs=True)
    return calls if shape.by_column else calls._replace(chains=_certified_chains(shape, probes))


def _certified_chains(shape: LinearShape, probes: list[_LinearProbe]) -> Chains | None:
    """The order of summation that the reference has, if it is one of chains.

    A kernel for many rows keeps its sums in registers over blocks of terms as long as its makers
    found best. A few columns tell quickly which lengths may be meant; the whole weight decides.
    """
    lengths = [shape.n_in, *range(shape.n_in - shape.n_in % 16, 63, -16)]
    for length in dict.fromkeys(lengths):
        for bias_first in (False, True) if shape.has_bias and length < shape.n_in else (False,):
            chains = Chains(length, bias_first)
            likely = probes[0].has_order(chains, columns=16)
            if likely and all(probe.has_order(chains) for probe in probes):
                return chains
    return None


ENOUGH = 128  # columns, of all draws together


class _LinearProbe:
    """A weight, a bias and `TILE` rows on which another order of summation shows."""

    @classmethod
    def enough(cls, shape: LinearShape) -> list[_LinearProbe]:
        """One; few columns tell little, so then more."""
        draw = Draw(shape.place)
        return [cls(shape, draw) for _ in range(-(-ENOUGH // shape.n_out))]

    def __init__(self, shape: LinearShape, draw: Draw) -> None:
        self.place = shape.place
        columns = min(shape.n_out, 2 * ENOUGH - 1)  # the rest repeats them: quicker to make
        self.rows, weight = draw.telling_product(TILE, shape.n_in, columns)
        bias = None
        truth = self.rows.double() @ weight.double()
        sizes = self.rows.double().abs() @ weight.double().abs()
        if shape.has_bias:  # column j's sum for row j, but negative: where the bias comes in, shows
            bias = -truth[torch.arange(columns) % TILE, range(columns)].to(weight.dtype)
            truth += bias
            bias = repeated(bias, shape.n_out)
        self.truth, self.error = truth, 0.01 * sizes + 1e-6  # of this only nonsense is capable
        if shape.by_column:
            times = -(-shape.n_out // columns)
            self.weight = weight.T.repeat(times, 1)[: shape.n_out].T
        else:
            self.weight = repeated(weight, shape.n_out)
        self.bias = bias
        weight = self.weight  # calls must not hold the probe, nor it stay in a cycle
        packed = pack(weight) if shape.place.device.type == "cpu" else None
        self.calls: dict[str, Callable[[Tensor], Tensor]] = {}
        if packed is not None:
            self.calls["packed"] = lambda rows: packed(rows, bias)
        self.calls["plain"] = lambda rows: plain_linear(rows, weight, bias)
        self.want: Tensor | None = None
        self.any_threads = False

    def refer_to(self, name: str) -> bool:
        """Take this kernel's results as those wanted, if they are steady and no nonsense."""
        spoilt = self.weight.new_full((TILE, self.weight.shape[1]), torch.nan)
        del spoilt  # what a kernel does not write is now likely to hold what was there: no number
        reference = _reference(self.calls[name], self.rows, 0, self.place)
        if reference is None:
            return False
        found, self.any_threads = reference
        truth = repeated(self.truth.to(found.device), found.shape[1])
        off = (found.double() - truth).abs()
        if not (off <= repeated(self.error.to(found.device), found.shape[1])).all():
            return False
        self.want = found
        return True

    def agrees(self, name: str, size: int) -> bool:
        """Does a call of this many rows give the reference's bits?"""
        assert self.want is not None
        return torch.equal(self.calls[name](_tiled(self.rows, size, 0)), _tiled(self.want, size, 0))

    def has_order(self, chains: Chains, columns: int | None = None) -> bool:
        """Do bags in this order give the reference's bits, in the first columns or all?"""
        assert self.want is not None
        part = slice(0, columns)
        bags = Bags(self.weight[:, part].contiguous(), chains)
        bias = None if self.bias is None else self.bias[part]
        rows = self.rows if columns is None else self.rows[:2]
        return all(
            torch.equal(bags(row, bias), want[part])
            for row, want in zip(rows, self.want[: len(rows)], strict=True)
        )

    def agrees_in_pairs(self) -> bool:
        """Does a row have the reference's bits when it goes together with itself?"""
        assert self.want is not None
        stack = self.weight.contiguous()[None]
        return all(
            torch.equal(paired_linear(row[None, None], stack, self.bias)[0, 0], want)
            for row, want in zip(self.rows, self.want, strict=True)
        )

    def steady(self, name: str) -> bool:
        """Does the reference call give the same bits on other numbers of threads?"""
        results = []
        for count in (1, 2, 3, 8):
            with _threads(count, self.place.device):
                results.append(self.calls[name](self.rows))
        return all(torch.equal(result, results[0]) for result in results)


def repeated(x: Tensor, columns: int) -> Tensor:
    """The same columns again and again, so many in all."""
    times = [1] * (x.ndim - 1) + [-(-columns // x.shape[-1])]
    return x.repeat(times)[..., :columns].contiguous()


@torch.no_grad()
def _packed_works(shape: PackedShape) -> bool:
    few = min(shape.n_out, 4096)  # how threads share the work does not change beyond
    linear = LinearShape(shape.n_in, few, False, False, shape.place)
    probe = _LinearProbe(linear, Draw(shape.place))
    return "packed" in probe.calls and probe.refer_to("packed")


@kept(
    "packed",
    Kind(
        PackedShape,
        bool,
        lambda shape, works, chance: _packed_works(shape) == works,
        lambda shape: shape.n_in * shape.n_out,
    ),
)
def packed_works(shape: PackedShape) -> bool:
    """Is the packed product right here, whatever its order of summation?

    It is not where OpenMP gives fewer threads than it was asked for: then a part is left undone.
    """
    return _packed_works(shape)


class _RowwiseProbe:
    """A norm, a softmax or an activation, and what it does to `TILE` rows alone, on one thread."""

    def __init__(self, shape: RowwiseShape) -> None:
        draw = Draw(shape.place)
        self.call: Callable[[Tensor], Tensor]
        if shape.name == "layer_norm":
            weight, bias = draw.normal(shape.width), draw.normal(shape.width)
            self.call = lambda rows: F.layer_norm(rows, (shape.width,), weight, bias)
            # Small beside their mean: sums must round.
            self.rows = 256 + 4 * draw.normal(TILE, shape.width)
        elif shape.name == "log_softmax":
            self.call = lambda rows: rows.log_softmax(-1)
            self.rows = 4 * draw.normal(TILE, shape.width)
        else:
            self.call = ACTIVATION[shape.name]
            self.rows = draw.telling(self.call, TILE * shape.width).view(TILE, shape.width)
        with _threads(1, shape.place.device):
            self.alone = torch.cat([self.call(row) for row in self.rows.split(1)])

    def agrees(self, size: int) -> bool:
        return torch.equal(self.call(_tiled(self.rows, size, 0)), _tiled(self.alone, size, 0))


def _rowwise_holds(shape: RowwiseShape, sizes: tuple[int, ...], chance: Random) -> bool:
    return _RowwiseProbe(shape).agrees(chance.choice(sizes))


@kept("rowwise", Kind(RowwiseShape, tuple, _rowwise_holds, lambda shape: shape.width))
@torch.no_grad()
def rowwise_sizes(shape: RowwiseShape) -> tuple[int, ...]:
    """The numbers of rows for which a norm, a softmax or an activation does what it does to one."""
    probe = _RowwiseProbe(shape)
    few = [size for size in SIZES if size * shape.width <= PROBE_LIMIT / 500]
    # One row is the reference, and needs no padding.
    return tuple(size for size in SIZES if size == 1 or (size in few and probe.agrees(size)))


class AttentionCalls(NamedTuple):
    """How to compute the attention of queries whose keys are so many."""

    kernel: str  # one of ATTENTION
    sizes: tuple[int, ...]  # the certified numbers of queries per head
    any_threads: bool = True  # are these the bits of every number of threads?


def _read_attention(said: Any) -> AttentionCalls:
    kernel, sizes, any_threads = said
    if kernel not in ATTENTION:
        raise ValueError
    return AttentionCalls(kernel, tuple(sizes), any_threads)


def _attention_holds(shape: AttentionShape, calls: AttentionCalls, chance: Random) -> bool:
    if calls == AttentionCalls(calls.kernel, (), any_threads=False):
        return True  # says nothing
    sizes = (chance.choice(calls.sizes),) if calls.sizes else ()
    found = _attention_by(calls.kernel, shape, sizes)
    return found is not None and found.sizes == sizes and found.any_threads >= calls.any_threads


@kept(
    "attention",
    Kind(
        AttentionShape,
        _read_attention,
        _attention_holds,
        lambda shape: shape.batch_size * shape.kv_heads * shape.group * shape.keys * shape.head_dim,
    ),
)
@torch.no_grad()
def attention_calls(shape: AttentionShape) -> AttentionCalls:
    """The kernel, and the numbers of queries per head for which it has the reference's bits.

    The reference is one sequence alone with `TILE` queries per head; it also decides the kernel,
    which on CPUs is the fused one where that treats every query alike. (On a GPU neither is clearly
    quicker, and the plain one has been tried more.)

    Fewer keys than whole blocks are compared with whole blocks, of which the rest is hidden: for a
    few queries and the fused kernel, which reads the keys most of the time then.
    """
    kernels, sizes = tuple(ATTENTION), QUERIES
    if shape.keys % KEY_BLOCK:
        kernels, sizes = ("fused",), tuple(size for size in sizes if size <= TILE)
    for kernel in kernels if shape.place.device.type == "cpu" else ("plain",):
        calls = _attention_by(kernel, shape, sizes)
        if calls is not None:
            return calls
    return AttentionCalls("plain", (), any_threads=False)


def _attention_by(
    kernel: str, shape: AttentionShape, sizes: tuple[int, ...]
) -> AttentionCalls | None:
    """Those of these sizes with the reference's bits; None where there is no reference."""
    stages = list(_attention_stages(kernel, shape, Draw(shape.place)))
    B, any_threads = shape.batch_size, True
    for call, rows, in_batch in stages:
        found = _reference(call, rows, 2, shape.place)
        if found is None:
            return None
        reference, alike = found
        any_threads &= alike
        sizes = tuple(
            size
            for size in sizes
            if torch.equal(
                in_batch(_tiled(rows, size, 2).repeat(B, 1, 1, 1)),
                _tiled(reference, size, 2).repeat(B, 1, 1, 1),
            )
        )
    return AttentionCalls(kernel, sizes, any_threads)


Stage = tuple[Callable[[Tensor], Tensor], Tensor, Callable[[Tensor], Tensor]]


def _attention_stages(kernel: str, shape: AttentionShape, draw: Draw) -> Iterator[Stage]:
    """Calls that would show another order of summation: for one sequence, their rows (1, H, TILE,
    numbers), and the same for a batch.

    The first two go through the whole kernel. In one the scores are rounding errors, and scaled up
    until they matter. In the other keys come twice, with values that cancel, so what comes out is
    rounding errors. Where weights are written down, all three steps are looked at one by one too.
    The sequence alone meets whole blocks of keys.
    """
    B, G, R, S, D = shape[:5]
    H, half, hidden = G * R, S // 2, whole_blocks(S) - S
    attention = ATTENTION[kernel]

    def alone(k: Tensor, v: Tensor, scale: float) -> Callable[[Tensor], Tensor]:
        k, v = (torch.cat([x, draw.normal(1, G, hidden, D)], 2) for x in (k, v))
        shown = k.new_zeros(1, 1, 1, S)
        mask = F.pad(shown, (0, hidden), value=-torch.inf)
        return lambda q: attention(q, k, v, mask.repeat(1, 1, q.shape[2], 1), scale)

    def in_batch(k: Tensor, v: Tensor, scale: float) -> Callable[[Tensor], Tensor]:
        k, v = k.repeat(B, 1, 1, 1), v.repeat(B, 1, 1, 1)
        return lambda q: attention(q, k, v, q.new_zeros(1, 1, q.shape[2], S), scale)

    q, k = draw.cancelling(H * TILE, D, G * S)
    q, k = q.view(1, H, TILE, D), k.T.contiguous().view(1, G, S, D)
    noise = float((q.float() @ k.float().repeat_interleave(R, 1).mT).std())
    v = draw.normal(1, G, S, D)
    scale = min(1 / noise, 1e3 if q.dtype == torch.float16 else 1e12) if noise > 0 else 1.0
    yield alone(k, v, scale), q, in_batch(k, v, scale)
    order = torch.randperm(half, generator=draw.generator).to(k.device)
    k, v = draw.normal(1, G, half, D), 4 * draw.normal(1, G, half, D)
    k, v = torch.cat([k, k[:, :, order]], 2), torch.cat([v, -v[:, :, order]], 2)
    v[..., 1::2] = draw.normal(1, G, S, D)[..., 1::2]
    yield alone(k, v, D**-0.5), draw.normal(1, H, TILE, D), in_batch(k, v, D**-0.5)
    if kernel == "plain":
        q, k = draw.telling_product(H * TILE, D, G * S)
        q, k = q.view(1, H, TILE, D), k.T.contiguous().view(1, G, S, D)
        weights, v = draw.telling_product(H * TILE, S, G * D)
        weights, v = weights.view(1, H, TILE, S), v.view(1, S, G, D).transpose(1, 2).contiguous()

        def scores(count: int) -> Callable[[Tensor], Tensor]:
            keys = k.repeat(count, 1, 1, 1)
            return lambda q: plain_scores(q, keys)

        def mix(count: int) -> Callable[[Tensor], Tensor]:
            values = v.repeat(count, 1, 1, 1).flatten(0, 1)
            return lambda w: attention_mix(w.reshape(count * G, -1, S), values).view(
                *w.shape[:3], D
            )

        yield scores(1), q, scores(B)
        softmax = lambda rows: rows.softmax(-1)  # noqa: E731
        yield softmax, 4 * draw.normal(1, H, TILE, S), softmax
        yield mix(1), weights, mix(B)


def _reference(
    call: Callable[[Tensor], Tensor], rows: Tensor, dim: int, place: Place
) -> tuple[Tensor, bool] | None:
    """What `TILE` rows give in one call, if that is what each gives alone in the first place; and
    whether it is that on any number of threads.

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
            break
    for others in {1, 2, 8} - {threads} if place.device.type == "cpu" else ():
        with _threads(others, place.device):
            if not torch.equal(call(rows), together):
                return together, False
    return together, True


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
