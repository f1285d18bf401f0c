"""Everything that is made from one weight to multiply by it faster, in one object beside it.

Two kinds of copy, both made when inference first needs them, and both only where they work:

*packed*: the weight in oneDNN's own layout. On x86 CPUs its product is the quicker one from two
rows on. The operators are not a public interface of torch.

*bags*: the weight as a table of which `embedding_bag` adds up rows: y = Σ x[k] · W[k], one chain of
fused multiply-adds over k. That is a matrix · vector product whose order of summation is known,
where the usual one's is nobody's business; `exact.py` says what that is good for.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import reduce
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from minigpt.numerics.changes import Sample, count_fused_steps, totals
from minigpt.numerics.place import going_on

COPY_FROM = 2**19  # numbers in a weight; below, it stays in the CPU's caches as it lies
PANEL = 384  # columns of a table that are read as one stream, at most: more fill the registers

LinearKernel = Callable[[Tensor, Tensor | None], Tensor]  # (..., in), bias (out,) -> (..., out)
Made = TypeVar("Made")
NOT_READY = (None,) * 7


class Copies:
    """What was made from one weight (in, out), which it follows.

    Moved, converted, exchanged or changed, the weight is copied anew. What torch counts (changes in
    place, optimizers' steps) is noticed at once, and so is, at every use, what changes some of a
    few dozen numbers spread over the weight, through `weight.data` for instance. A change of single
    numbers behind torch's back is noticed by `recheck`.
    """

    def __init__(self) -> None:
        self._made: dict[Hashable, Any] = {}
        self._source: tuple[Hashable, ...] = ()
        self._sample: Sample | None = None
        self._totals: list[int] = []
        self.bound: Any = None  # what a set of operations keeps here, ready for this weight
        self._ready: tuple[Any, ...] = NOT_READY

    def ready(self, ops: object, x: Tensor, weight: Tensor) -> LinearKernel | None:
        """What `ops` made ready for an x like this and this weight, if the pass that is going on
        has found weights and place to be what they were then. Looking again takes as long as a
        small product."""
        shape, dtype, revision, place, owner, its_weight, product = self._ready
        if its_weight is not weight or owner is not ops or x.shape != shape or x.dtype is not dtype:
            return None
        now = going_on()
        same = now.revision is revision and now.place is place and x.is_contiguous()
        return product if same else None

    def make_ready(
        self, ops: object, x: Tensor, weight: Tensor, product: LinearKernel
    ) -> LinearKernel:
        """Keep a product for `ready`. It may hold copies, but not ask for them."""
        now = going_on()
        # A weight that is no parameter may be one that no revision knows of.
        if now.revision is not None and now.place is not None and isinstance(weight, nn.Parameter):
            self._ready = x.shape, x.dtype, now.revision, now.place, ops, weight, product
        return product

    def get(self, weight: Tensor, key: Hashable, make: Callable[[], Made]) -> Made:
        """What `make` returns, made once for a key as long as the weight is the same."""
        if self._source != _source(weight) or not (
            self._sample is None or self._sample.still_holds()
        ):
            self._forget(weight)
        made = self._made
        if key not in made:
            made[key] = make()
        found: Made = made[key]
        return found

    def packed(self, weight: Tensor) -> Packed | None:
        """The packed product, or None where there is none."""
        if weight.device.type != "cpu" or torch.compiler.is_compiling():
            return None
        return self.get(weight, "packed", lambda: self._copied(weight, pack))

    def bags(self, weight: Tensor, chains: Chains) -> LinearKernel:
        """The product of one row, in these chains."""

        def make() -> LinearKernel:
            if weight.numel() < COPY_FROM:
                return Bags(weight, chains)  # over the weight as it lies
            return self._copied(weight, lambda weight: Bags(weight, chains))

        return self.get(weight, chains, make)

    def stacked(self, weight: Tensor) -> Tensor:
        """The weight as a stack of one, (1, in, out): itself, or a copy if it lies by columns."""

        def make() -> Tensor:
            if weight.is_contiguous():
                return weight.detach()[None]
            return self._copied(weight, lambda weight: weight.detach().contiguous()[None])

        return self.get(weight, "stacked", make)

    def recheck(self, weight: Tensor) -> None:
        """Read all of the weight, and forget the copies if it is not what they were made from."""
        if self._sample is not None and self._totals != totals(weight):
            self._forget(weight)

    def _forget(self, weight: Tensor) -> None:
        self._made, self._source, self._sample, self._totals = {}, _source(weight), None, []
        self._ready = NOT_READY

    def _copied(self, weight: Tensor, copy: Callable[[Tensor], Made]) -> Made:
        if self._sample is None:
            count_fused_steps()
            # It keeps the memory alive, so that its address cannot come to mean another weight.
            self._sample, self._totals = Sample(weight), totals(weight)
        return copy(weight)

    def __deepcopy__(self, memo: object) -> Copies:
        return Copies()

    def __reduce__(self) -> tuple[type[Copies], tuple[()]]:
        return Copies, ()


def recheck(model: nn.Module) -> None:
    """Have every copy of a model's weights compared with its weight, number by number.

    It takes as long as reading the weights, so it is for the beginning of things.
    """
    for module in model.modules():
        for copies in vars(module).values():
            if isinstance(copies, Copies) and isinstance(weight := module.weight, Tensor):
                copies.recheck(weight)


def _source(weight: Tensor) -> tuple[Hashable, ...]:
    version = 0 if weight.is_inference() else weight._version
    return weight.data_ptr(), version, weight.dtype, weight.shape, weight.stride()


# --- packed ---------------------------------------------------------------------------------------


class Packed:
    """x W + b over a copy in oneDNN's layout: on request with an activation, in the same call."""

    # Not "relu", which makes a zero of what is no number.
    THEN: ClassVar[dict[str, tuple[str, list[float], str]]] = {
        "gelu_new": ("gelu", [], "tanh"),
        "gelu_pytorch_tanh": ("gelu", [], "tanh"),
        "gelu": ("gelu", [], "none"),
    }

    def __init__(self, weight: Tensor) -> None:
        self.product = torch.ops.mkldnn._linear_pointwise
        self.copy = torch.ops.mkldnn._reorder_linear_weight(weight.detach().T.contiguous(), 128)

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return self.product(x, self.copy, bias, "none", [], "")

    def activated(self, x: Tensor, bias: Tensor | None, name: str) -> Tensor:
        """The activation, one of `THEN`, of x W + b."""
        return self.product(x, self.copy, bias, *self.THEN[name])


def pack(weight: Tensor) -> Packed | None:
    """The product with a copy in oneDNN's layout; None where torch has none for this weight."""
    if not torch.backends.mkldnn.is_available():
        return None
    try:
        packed = Packed(weight)
        packed(weight.new_zeros(1, weight.shape[0]), None)
    except (RuntimeError, AttributeError, TypeError):
        return None
    return packed


# --- bags -----------------------------------------------------------------------------------------


class Chains(NamedTuple):
    """An order of summation: chains of `block` terms, whose sums are then added in turn."""

    block: int
    bias_first: bool = False  # is it added to the first chain's sum, or to the last sum of all?


class Bags:
    """The product of one row, over a copy in panels of columns, or over the weight as it lies.

    Each bag is a block of terms in a panel. All bags of a panel stand together: torch gives each
    thread a run of bags, and blocks may be of two lengths.
    """

    def __init__(self, weight: Tensor, chains: Chains) -> None:
        (n_in, n_out), block = weight.shape, chains.block
        blocks = [torch.arange(start, min(start + block, n_in)) for start in range(0, n_in, block)]
        width = n_out
        if weight.numel() >= COPY_FROM:
            width = panel_width(n_out, [len(terms) for terms in blocks], torch.get_num_threads())
        with torch.inference_mode(False), torch.no_grad():
            panels = weight.detach().split(width, 1)  # (in, width) each
            self.table = torch.cat(panels) if len(panels) > 1 else panels[0]  # (panels · in, width)
            every = [(terms, n_in * panel) for panel in range(len(panels)) for terms in blocks]
            self.index = torch.cat([terms + first for terms, first in every])  # rows of the table
            self.offsets = torch.tensor([0, *(len(terms) for terms, _ in every)]).cumsum(0)[:-1]
        self.sums = len(panels), len(blocks), width
        self.bias_first = chains.bias_first

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """(..., in) of one row -> (..., out)."""
        panels, blocks, _ = self.sums
        factors = x.reshape(-1) if x.is_contiguous() else x.flatten().contiguous()
        if panels > 1:
            factors = torch.cat([factors] * panels)
        # What F.embedding_bag calls, with mode 0, "sum"; its checks take longer than small weights.
        y, *_ = torch.embedding_bag(self.table, self.index, self.offsets, False, 0, False, factors)
        if blocks > 1:
            sums = y.view(self.sums)
            if self.bias_first and bias is not None:
                first, *rest = sums.unbind(1)  # (panels, width) each
                y, bias = reduce(torch.add, rest, first + bias.view(first.shape)), None
            else:
                # Torch's own sum adds up to three in turn, more of them in an order of its own.
                y = sums.sum(1) if blocks <= 3 else reduce(torch.add, sums.unbind(1))
        y = y.view(*x.shape[:-1], -1)
        return y if bias is None else y + bias


def panel_width(columns: int, blocks: Sequence[int], threads: int) -> int:
    """The widest that cuts so many columns evenly and gives every thread about as much to do.

    Args:
        blocks: the terms in each block.
    """

    def longest(width: int) -> float:
        """The busiest thread's share, where 1 is a fair one."""
        bags = list(blocks) * (columns // width)
        run = -(-len(bags) // threads)
        shares = [sum(bags[first : first + run]) for first in range(0, len(bags), run)]
        return round(max(shares) * threads / sum(bags), 1)

    even = [width for width in range(16, PANEL + 1, 16) if columns % width == 0]
    return min(even, key=lambda width: (longest(width), -width), default=columns)
