"""All kinds of cache by name, and what each asks of memory."""

from __future__ import annotations

from minigpt.cache.growing import GrowingCache
from minigpt.cache.kvcache import CacheSpec, KVCache
from minigpt.cache.lossy import QuantizedCache, WindowCache
from minigpt.cache.paged import PagedCache
from minigpt.cache.plain import StaticCache
from minigpt.support.errors import MinigptError

KINDS: dict[str, type[KVCache]] = {
    kind.kind: kind for kind in (StaticCache, GrowingCache, PagedCache, QuantizedCache, WindowCache)
}
LOSSLESS = tuple(name for name, kind in KINDS.items() if not kind.lossy)
LOSSY = tuple(name for name, kind in KINDS.items() if kind.lossy)


def make_cache(
    kind: str, spec: CacheSpec, batch_size: int, capacity: int, **settings: int
) -> KVCache:
    """An empty cache of a kind.

    Raises:
        MinigptError: for an unknown kind, a setting that it does not have, or sizes out of range.
    """
    if not isinstance(kind, str) or kind not in KINDS:
        raise MinigptError(f"cache kind is {kind!r}, needed one of {', '.join(KINDS)}")
    known = KINDS[kind].setting_names
    for name in settings:
        if name not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise MinigptError(f"a {kind} cache has no setting {name!r}: {has}")
    return KINDS[kind](spec, batch_size, capacity, **settings)
