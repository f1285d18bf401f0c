"""A cache in a file: prefill a long prompt once, go on with it another day.

One safetensors file holds the positions in use (not the room for more), the token ids, and whose
keys and values they are. What cannot be continued with the same bits is refused: another model,
dtype or numerics, or a file that is not what was written.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from minigpt.cache.kvcache import CacheSpec, KVCache
from minigpt.cache.origin import FOREIGN, Origin, revision
from minigpt.checkpoint import weights
from minigpt.model import GPT, require_model
from minigpt.numerics.changes import checksum
from minigpt.support.checks import is_whole, path_of
from minigpt.support.errors import MinigptError, reason
from minigpt.support.files import aside, flush, locked, move

FORMAT, VERSION = "minigpt-kv-cache", 2


def save_cache(cache: KVCache, path: str | Path, notes: Mapping[str, Any] | None = None) -> None:
    """Write a cache to one safetensors file, in place of one already there.

    A crash at any moment leaves the old file or the new one, whole. Pages that rows share are
    written once for each row.

    Args:
        cache: of any kind, made by `model.new_cache()`.
        path: of the file, conventionally `*.safetensors`.
        notes: anything JSON can hold, to be read back by `describe_cache`.

    Raises:
        MinigptError: for a cache that was not filled by a model of ours, or by one that has gone or
            changed since; or when the file cannot be written: an old file there survives.
    """
    path = path_of(path)
    if not isinstance(cache, KVCache):
        raise MinigptError(f"cache is a {type(cache).__name__}, needed one from model.new_cache()")
    with cache.in_use():  # to the end: the tensors may be the cache's own memory
        about, tensors = _described(cache, dict(notes or {}))
        try:
            text = json.dumps(about)
        except (TypeError, ValueError) as error:
            raise MinigptError(f"the notes are not what JSON can hold: {error}") from error
        metadata = {"about": text, "checksum": _checksum(text, tensors)}
        try:
            with aside(path.parent) as staging:
                new = staging / path.name
                save_file(tensors, new, metadata)
                flush(new)
                with locked(path.parent):
                    move(new, path)
        except (OSError, SafetensorError) as error:
            raise MinigptError(
                f"the cache could not be written to {path} ({reason(error)}): a file "
                f"already there is still whole, so make room or choose another place"
            ) from error


def _described(cache: KVCache, notes: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What a file says of its cache, and what it holds."""
    tensors = {name: tensor.cpu().contiguous() for name, tensor in cache.state().items()}
    if cache.tokens is not None:
        ids = [token for row in cache.tokens for token in row]
        tensors["tokens"] = torch.tensor(ids, dtype=torch.int64)
    about = {
        "format": FORMAT,
        "version": VERSION,
        "kind": cache.kind,
        "settings": cache.settings,
        "capacity": cache.capacity,
        "lengths": cache.lengths,
        "fingerprint": _fingerprint(cache),
        "made": _made(cache.spec, cache.origin),
        "notes": notes,
    }
    return about, tensors


def _fingerprint(cache: KVCache) -> str | None:
    """Whose keys and values these are, as far as reading all weights tells; None: nobody's yet."""
    if not len(cache):
        return None
    if cache.origin is None:
        raise MinigptError(
            f"{cache!r} does not know which model its keys and values are from: save one that a "
            f"model of minigpt has filled"
        )
    held = cache.origin.weights
    model = held.model
    seen = held if model is None else revision(model, read=True)
    if held.fingerprint is None or not seen.same_as(held):
        raise MinigptError(
            "the model whose keys and values these are is gone, or its weights have changed since, "
            "and a file must tell whose they are: save a cache while its model is as it was"
        )
    return held.fingerprint


def _made(spec: CacheSpec, origin: Origin | None) -> dict[str, str]:
    """With what rows were computed, in words."""
    made: dict[str, str] = {}
    if origin is not None:
        processor = torch.backends.cpu.get_cpu_capability()
        if spec.device.type == "cuda":
            processor = torch.cuda.get_device_name(spec.device)
        made = {name: str(value) for name, value in origin.place._asdict().items()}
        made |= {"torch": torch.__version__, "processor": processor, "numerics": origin.numerics}
    return {
        **made,
        "dtype": str(spec.dtype).removeprefix("torch."),
        "device": spec.device.type,
    }


def load_cache(path: str | Path, model: GPT, max_length: int | None = None) -> KVCache:
    """A saved cache, of the kind it was, ready to go on with the same model.

    On the machine and torch version that it was saved with, it goes on with the same bits as the
    one that was saved. The file may be deleted afterwards.

    Args:
        path: of the file.
        model: the one it was saved from, or one with equal configuration, weights and numerics.
        max_length: positions to make room for; None: as many as when it was saved.

    Raises:
        MinigptError: when the file is missing, damaged, no cache, or another model's; or the cache
            does not fit in memory.
    """
    require_model(model)
    path = path_of(path)
    found, tensors = _read(path)
    try:
        return _restored(path, model, max_length, found, tensors)
    except MinigptError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise MinigptError(
            f"{path} holds something else than a cache of this model ({reason(error)}): "
            f"save the cache again"
        ) from error


def _restored(
    path: Path, model: GPT, max_length: int | None, found: dict[str, Any],
    tensors: dict[str, Tensor],
) -> KVCache:  # fmt: skip
    """The cache; whoever forges a file, checksum and all, may get any exception for it."""
    made, lengths = found["made"], found["lengths"]
    if not all(is_whole(length) and length >= 0 for length in lengths):
        raise ValueError(f"lengths are {lengths!r}")
    origin = Origin.of(model)
    here = _made(model.cache_spec, origin)
    if type(found["notes"]) is not dict or not all(str(v).isprintable() for v in made.values()):
        raise ValueError("it does not say what it was made with")
    binding = {"dtype", "device"}
    if max(lengths) and made["numerics"] == "exact":
        binding = {*here} - {"threads"}
    elif max(lengths) and made["numerics"] != FOREIGN:  # its bits are not promised
        binding.add("numerics")
    for name in sorted(binding):
        if made[name] != here[name]:
            raise MinigptError(
                f"the cache in {path} was made with {name} {made[name]}, here it is {here[name]}: "
                f"load the model as it was then, or prefill again"
            )
    weights = revision(model, read=True)
    if max(lengths) and found["fingerprint"] != weights.fingerprint:
        raise MinigptError(
            f"the cache in {path} was made by another model, whose weights or configuration are "
            f"not those of this one: load that model, or prefill again"
        )
    room = found["capacity"] if max_length is None else max_length
    cache = model.new_cache(len(lengths), room, found["kind"], **found["settings"])
    if cache.capacity < max(lengths):
        raise MinigptError(
            f"the cache in {path} holds {max(lengths)} positions and max_length is {max_length}, "
            f"needed at least as many"
        )
    ids, tokens = tensors.pop("tokens", None), None
    if ids is not None:
        if ids.dtype != torch.int64 or ((ids < 0) | (ids >= model.config.vocab_size)).any():
            raise ValueError("its tokens are not this model's")
        tokens = [row.tolist() for row in ids.split(lengths)]
    state = {name: tensor.to(model.device) for name, tensor in tensors.items()}
    numerics = str(made.get("numerics"))
    cache.restore(lengths, state, tokens, replace(origin, weights=weights, numerics=numerics))
    return cache


def describe_cache(path: str | Path) -> dict[str, Any]:
    """What a file says of its cache, from its first bytes alone: kind, lengths, notes, ...

    Raises:
        MinigptError: when the file is missing, or no cache.
    """
    return _header(Path(path), _open(Path(path)))[0]


# --- the file -------------------------------------------------------------------------------------


def _open(path: Path) -> Any:
    """The file, mapped; safetensors checks its size against what its header says."""
    try:
        weights.check_header(path)
        return safe_open(path, framework="pt")
    except FileNotFoundError as error:
        raise MinigptError(f"{path} does not exist, needed a file that holds a cache") from error
    except (SafetensorError, OSError) as error:
        raise MinigptError(
            f"{path} is not a whole safetensors file ({reason(error)}): save the cache again"
        ) from error


def _header(path: Path, file: Any) -> tuple[dict[str, Any], str, str]:
    """What the file says of its cache; the same as text; and the checksum it should have."""
    metadata = file.metadata() or {}
    text = metadata.get("about", "{}")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = {}
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise MinigptError(
            f"{path} does not hold a cache, needed a file that save_cache() or generate "
            f"--save-cache wrote"
        )
    if found.get("version") != VERSION:
        raise MinigptError(
            f"{path} holds a cache in version {found.get('version')!r} of the format, needed "
            f"{VERSION}: prefill again"
        )
    return found, text, metadata.get("checksum", "")


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """All of a file, checked to the last bit; the tensors are views of the mapped file."""
    with locked(path.parent, shared=True):  # safetensors opens it twice
        file = _open(path)
        found, text, expected = _header(path, file)
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if _checksum(text, tensors) != expected:
        raise MinigptError(f"{path} is damaged, its checksum is not that of its content: save the "
                           f"cache again")  # fmt: skip
    return found, tensors


def _checksum(text: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(checksum(tensor))
    return digest.hexdigest()
