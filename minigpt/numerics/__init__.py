"""How rows are computed: quickly, or exactly. `base.py` has attention's formula; begin there."""

from minigpt.numerics.base import RowOps
from minigpt.numerics.exact import ExactOps
from minigpt.numerics.fast import FastOps
from minigpt.support.errors import MinigptError

_SETS: dict[str, RowOps] = {"fast": FastOps(), "exact": ExactOps()}
NUMERICS = tuple(_SETS)


def row_ops(name: str) -> RowOps:
    """The set called "fast" or "exact": one for all, as it has no state.

    Raises:
        MinigptError: for any other name.
    """
    if name not in _SETS:
        raise MinigptError(f"numerics is {name!r}, needed 'fast' or 'exact'")
    return _SETS[name]
