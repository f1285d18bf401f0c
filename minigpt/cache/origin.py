"""Whose keys and values are these, and how were they computed?

A cache is of use to the weights that filled it, as they were then; and its logits are exact only if
all its rows were computed so, in surroundings where kernels give the same bits. So every pass tells
where its rows come from, and a cache refuses what does not go with what it holds.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from weakref import WeakKeyDictionary, ref

from torch import Tensor, nn

from minigpt.config import GPTConfig
from minigpt.numerics.base import RowModule
from minigpt.numerics.changes import Glance, Sample, checksum, weights_and_hooks, weights_in
from minigpt.numerics.copies import recheck
from minigpt.numerics.place import Place, tied_to_threads
from minigpt.support.errors import MinigptError

FOREIGN = "another program's"  # numerics of rows that were not computed here
DROPOUT = "dropout"  # of rows that were computed with some of their numbers left out


class Revision:
    """A model's weights as they are until something changes them: after that there is another."""

    def __init__(self, model: nn.Module) -> None:
        weights, self.hooked = weights_and_hooks(model)
        self.dtype, self.device = weights[0].dtype, weights[0].device
        self._model = ref(model)
        self._glance = Glance(weights)
        self._fingerprint: str | None = None
        self._over = False  # was a change seen by other means?

    @property
    def model(self) -> nn.Module | None:
        """The model, if it is still there and no change of its weights is seen."""
        model = self._model()
        if model is None or self._over:
            return None
        weights, self.hooked = weights_and_hooks(model)
        return model if self._glance.still_holds(weights) else None

    def was_of(self, model: nn.Module | None) -> bool:
        """Is this the very model, whatever became of its weights?"""
        return model is not None and self._model() is model

    @property
    def fingerprint(self) -> str | None:
        """See `fingerprint` below; None when the weights are gone and nobody had asked."""
        if self._fingerprint is None and (model := self.model) is not None:
            self._fingerprint = _digest(model)
        return self._fingerprint

    def same_as(self, other: Revision) -> bool:
        """Are these the same bits? Unless it is one revision, both models are read, once."""
        if self is other:
            return True
        mine = self.fingerprint
        return mine is not None and mine == other.fingerprint


def revision(model: nn.Module, read: bool = False) -> Revision:
    """A model's present one: the same object as long as no weight is seen to have changed.

    What torch counts is seen, and so is what is written through `weight.data` to a whole matrix, of
    which a few dozen numbers are looked at.

    Args:
        read: look at every number, where there is time for that.
    """
    known, lock = _revisions()
    with lock:
        found, samples = known.get(model, (None, []))
        if found is not None and not all(map(Sample.still_holds, samples)):
            found._over = True
        if found is None or found.model is None:
            found, samples = Revision(model), _samples(model)
        if read:
            recheck(model)
            digest = _digest(model)
            if found._fingerprint not in (None, digest):
                found._over = True
                found, samples = Revision(model), _samples(model)
            found._fingerprint = digest
        known[model] = found, samples
        return found


def _samples(model: nn.Module) -> list[Sample]:
    """Of each of its matrices. They keep the memory alive, so they stay with the model."""
    matrices = {
        weight.data_ptr(): weight
        for weight in weights_in(model)
        if type(weight) in (Tensor, nn.Parameter) and weight.is_cpu and weight.ndim == 2
    }
    return [Sample(weight) for weight in matrices.values()]


@lru_cache
def _revisions() -> tuple[
    WeakKeyDictionary[nn.Module, tuple[Revision, list[Sample]]], threading.Lock
]:
    return WeakKeyDictionary(), threading.Lock()


def fingerprint(model: nn.Module) -> str:
    """64 hexadecimal digits for the configuration and every weight, names and dtype included.

    Remembered until torch counts a change of a weight; of weights made in inference mode it counts
    none, so those are read again. Meant for mistakes, not for forgers: it misses changes that
    cancel in a `checksum`.
    """
    uncounted = any(weight.is_inference() for weight in weights_in(model))
    found = revision(model, read=uncounted).fingerprint
    assert found is not None  # the model is there
    return found


def _digest(model: nn.Module) -> str:
    config: GPTConfig = model.config  # type: ignore[assignment]
    digest = hashlib.sha256(json.dumps(config.to_dict(), sort_keys=True).encode())
    for name, weight in {**dict(model.named_parameters()), **dict(model.named_buffers())}.items():
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(checksum(weight))
    return digest.hexdigest()


@dataclass(frozen=True)
class Origin:
    """What rows were computed by."""

    weights: Revision
    numerics: str  # "fast", "exact", or one of the above
    place: Place

    @classmethod
    def of(cls, model: RowModule) -> Origin:
        """What a pass of this model now computes rows by."""
        config: GPTConfig = model.config  # type: ignore[assignment]
        random = model.training and max(config.embd_pdrop, config.attn_pdrop, config.resid_pdrop)
        numerics = DROPOUT if random else model.ops.name
        weights = revision(model)
        return cls(weights, numerics, Place.now(weights.dtype, weights.device))


def followed(held: Origin | None, new: Origin | None) -> Origin | None:
    """What the rows of a cache are by when a pass has added its own; None is not known.

    Rows of different numerics may follow each other, but never exact ones those that are not.

    Raises:
        MinigptError: for rows of other weights, or exact ones that would not be.
    """
    if held is None:
        return None
    if new is None:
        return replace(held, numerics=FOREIGN)
    if not held.weights.same_as(new.weights):
        raise MinigptError(_whose(held.weights, new.weights))
    if held.numerics == FOREIGN:
        return replace(new, numerics=FOREIGN)
    if new.numerics == "exact" and (told := _unlike(held, new)):
        raise MinigptError(
            f"this cache was filled {told}, so exact logits would not be those without a cache: "
            f"reset() it, or go on with model.numerics = 'fast'"
        )
    return new


def joined(origins: Sequence[Origin | None]) -> Origin | None:
    """What rows of several caches are by, side by side in one.

    Raises:
        MinigptError: for rows of different weights, or exact ones that do not go together.
    """
    known = [origin for origin in origins if origin is not None]
    known.sort(key=lambda origin: origin.numerics != "exact")
    result = known[0] if len(known) == len(origins) > 0 else None
    for origin in known[1:]:
        result = followed(result, origin)
    return result


def _whose(held: Revision, new: Revision) -> str:
    if held.was_of(new.model):
        return (
            "the weights that this cache's keys and values come from have changed since: reset() "
            "it, which forgets them"
        )
    return (
        "this cache was filled by another model, whose weights or configuration are not those of "
        "this one: make one with model.new_cache(), or reset() this one"
    )


def _unlike(held: Origin, new: Origin) -> str:
    """What keeps rows from being exact beside those held; the number of threads seldom does."""
    if held.numerics == new.numerics and held.place is new.place:  # as in every step but the first
        return ""
    if held.numerics != new.numerics:
        return f"with {held.numerics} numerics and the model has {new.numerics} ones now"
    before, now = held.place._asdict(), new.place._asdict()
    if not _tied(new.weights.model, held.place, new.place):
        del before["threads"]
    return ", ".join(
        f"with {name} {before[name]} and now there is {now[name]}"
        for name in before
        if before[name] != now[name]
    )


def _tied(model: nn.Module | None, *places: Place) -> bool:
    """Has the model a weight or heads whose bits here are those of one number of threads only?"""
    tied = tied_to_threads()
    sizes = set().union(*(tied.get(place, ()) for place in places))
    if not sizes or model is None:
        return bool(sizes)
    config: GPTConfig = model.config  # type: ignore[assignment]
    here = {frozenset(weight.shape) for weight in weights_in(model) if weight.ndim == 2}
    return bool(sizes & {*here, frozenset((config.head_dim,))})
