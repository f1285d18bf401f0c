"""Numbers for probes, on which another order of summation shows (see `certificates.py`)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from minigpt.numerics.place import Place


class Draw:
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
