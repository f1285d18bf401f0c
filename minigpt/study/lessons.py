"""What the notebooks share: where the models are, and the checking of answers.

Nothing here teaches anything; the lessons are in `notebooks/`, and what they explain is in the
other modules.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from minigpt.checkpoint.hub import BUNDLED, WEIGHTS_DIR, resolve
from minigpt.checkpoint.weights import CONFIG

CHECKOUT = Path(__file__).resolve().parents[2]


def find(name: str = BUNDLED) -> Path | None:
    """The directory of a model that is here, from whichever folder a lesson is run.

    "toy" is always there; "gpt2" after `minigpt download gpt2`; None for one that is not.
    """
    if name == BUNDLED:
        return resolve(name)
    places = (WEIGHTS_DIR / name, CHECKOUT / WEIGHTS_DIR / name)
    return next((place for place in places if (place / CONFIG).exists()), None)


def check(test: Callable[[], None]) -> None:
    """Say at once whether an exercise is solved: a decorator for a function of asserts.

    An assert that fails is shown as its message, any other error as itself: a learner who has not
    begun yet, or is half way, goes on reading instead of being stopped.
    """
    try:
        test()
    except AssertionError as error:
        print(f"not yet: {error}")
    except Exception as error:
        print(f"not yet: {type(error).__name__}: {error}")
    else:
        print("right!")
