"""What the notebooks share: where the models are, and the checking of answers.

Nothing here teaches anything; the lessons are in `notebooks/`, and what they explain is in the
other modules.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from minigpt.checkpoint.hub import BUNDLED, WEIGHTS_DIR, cached, resolve
from minigpt.checkpoint.weights import CONFIG
from minigpt.study.spoken import say, speak

__all__ = ["check", "compare", "find", "speak"]

CHECKOUT = Path(__file__).resolve().parents[2]


def find(name: str = BUNDLED) -> Path | None:
    """The directory of a model that is here, from whichever folder a lesson is run.

    "toy" is always there; "gpt2" after `minigpt download gpt2`, or when the hub's client has it in
    its cache; None for one that is not. Nothing is fetched.
    """
    if name == BUNDLED:
        return resolve(name)
    places = (WEIGHTS_DIR / name, CHECKOUT / WEIGHTS_DIR / name)
    with warnings.catch_warnings():  # of progress bars, which we do not need
        warnings.filterwarnings("ignore", message="IProgress")
        return next((place for place in places if (place / CONFIG).exists()), None) or cached(name)


def gpt2() -> tuple[Path, str]:
    """The directory of GPT-2, or of its stand-in when it is not here, and a title for it."""
    if place := find("gpt2"):
        return place, "GPT-2"
    return resolve(BUNDLED), (
        "GPT-2 is not here (`minigpt download gpt2` fetches it): in its place, the bundled model"
    )


def check(test: Callable[[], None]) -> None:
    """Say at once whether an exercise is solved: a decorator for a function of asserts.

    An assert that fails is shown as its message, any other error as itself: a learner who has not
    begun yet, or is half way, goes on reading instead of being stopped.
    """
    try:
        test()
    except AssertionError as error:
        print(say("not yet: {hint}", hint=error))
    except Exception as error:
        print(say("not yet: {hint}", hint=f"{type(error).__name__}: {error}"))
    else:
        print(say("right!"))


def compare(
    mine: object, right: Tensor, wrong: Mapping[str, Tensor | float], otherwise: str
) -> None:
    """Refuse an answer that is not the right tensor, with the hint for the mistake made.

    Args:
        mine: what the learner's code returned.
        right: what it should have been; rounding may differ.
        wrong: results of typical mistakes, by the hint that each deserves.
        otherwise: the hint for any other result.

    Raises:
        AssertionError: with the hint.
    """
    assert mine is not None and mine is not ..., say("put your answer in place of ...")
    kind = type(mine).__name__
    assert isinstance(mine, Tensor), say("a {kind}, needed a tensor", kind=kind)
    for hint, result in wrong.items():
        assert not close(mine, torch.as_tensor(result)), hint
    found, needed = tuple(mine.shape), tuple(right.shape)
    assert found == needed, say("shape {found}, needed {needed}", found=found, needed=needed)
    assert not mine.isnan().any(), say("NaN: a row of -inf only, or a division of 0 by 0")
    assert close(mine, right), otherwise


def close(one: Tensor, other: Tensor) -> bool:
    """The same but for rounding, beside the largest number of either."""
    if one.shape != other.shape:
        return False
    most = float(other.abs().nan_to_num(posinf=0.0).max())
    return torch.allclose(one, other.to(one.dtype), rtol=0, atol=2e-5 * max(most, 1e-30))
