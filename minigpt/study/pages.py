"""The page on which decoding can be watched: a recording, or the model itself, in one HTML file.

`page/` holds the page's parts: markup, style, and the scripts that run GPT-2 and draw it. Here they
are joined with what is to be shown. The file needs nothing from the network and asks for nothing.
"""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from minigpt.generation.sampling import Sampler
from minigpt.model import GPT, require_model
from minigpt.support.checks import whole
from minigpt.support.errors import MinigptError
from minigpt.support.files import write_text
from minigpt.tokenizer import CharTokenizer, Tokenizer

PARTS = Path(__file__).with_name("page")
SCRIPTS = ("tokenizer", "engine", "caches", "live", "recorded", "picture", "closer", "viewer")
LARGEST_LIVE_PAGE = 8 * 10**6  # bytes
SEEDS = 2**31  # the page's random numbers have 32 bits, and JavaScript's are signed
HOTTEST = 5.0  # temperature; the page's own control ends there
PROMPT = "Once upon a time"


def write_page(path: str | Path, content: Mapping[str, Any], weights: str = "") -> None:
    """Write a page that shows `content`, whole or not at all.

    Args:
        content: a trace's `to_dict()`, or what `live_content` gives.
        weights: of a live page: 16-bit numbers, base64.

    Raises:
        MinigptError: when the file cannot be written; an old file there survives.
    """
    path = Path(path)
    try:
        write_text(path, page(content, weights))
    except OSError as error:
        raise MinigptError(
            f"the page could not be written to {path} ({error.strerror}): choose another file"
        ) from error


def page(content: Mapping[str, Any], weights: str = "") -> str:
    """The page as text; see `write_page`."""
    data = json.dumps(content, separators=(",", ":"))  # ASCII: the rest as \uXXXX
    for mark in "<>&":  # so that no text in it can end the element that it stands in
        data = data.replace(mark, f"\\u{ord(mark):04x}")
    scripts = (_part(f"{name}.js") for name in SCRIPTS)
    slots = {
        "style": _part("page.css"),
        "content": data,
        "weights": weights,
        "script": "\n".join(scripts),
    }
    pieces = _part("page.html").split("{{")
    made = [pieces[0]]
    for piece in pieces[1:]:  # cut once, so that a slot's name in a text stays text
        name, rest = piece.split("}}", 1)
        made += [slots[name], rest]
    return "".join(made)


def _part(name: str) -> str:
    return (PARTS / name).read_text(encoding="utf-8").rstrip("\n")


# --- the model itself ------------------------------------------------------------------------


def write_live(
    model: GPT,
    tokenizer: Tokenizer,
    path: str | Path,
    prompt: str = PROMPT,
    temperature: float = 0.0,
    seed: int = 0,
) -> None:
    """Write a page in which the model runs: prompt, temperature and seed can be changed there.

    The weights travel as 16-bit numbers: bfloat16 where that is what they are, else rounded to
    float16; the page computes with them in float32.

    Args:
        prompt, temperature, seed: what the page begins with; its draws are its own, so a seed
            means another text there than in `generate`.

    Raises:
        MinigptError: for a model too large for a page, weights or a tokenizer that the page cannot
            use, arguments out of range, or a file that cannot be written.
    """
    require_model(model)
    given = tokenizer.encode(prompt)  # or it is refused
    if len(given) > model.config.n_positions:
        raise MinigptError(
            f"the prompt has {len(given)} tokens, but this model's context is "
            f"{model.config.n_positions}: shorten it"
        )
    Sampler(temperature)  # or it is refused
    if temperature > HOTTEST:
        raise MinigptError(f"temperature is {temperature}, needed at most {HOTTEST} in a live page")
    whole("seed", seed, 0, SEEDS - 1)
    if not given and model.config.eos_token_id is None:
        raise MinigptError(
            "the prompt is empty and this model has no end-of-text token to start from: give at "
            "least one token"
        )
    content = live_content(model, tokenizer)
    content |= {"prompt": prompt, "temperature": temperature, "seed": seed}
    weights = packed_weights(model, content["dtype"])
    size = len(page(content)) + len(weights)
    if size > LARGEST_LIVE_PAGE:
        raise MinigptError(
            f"this model makes a live page of {size / 10**6:,.0f} MB, needed at most "
            f"{LARGEST_LIVE_PAGE // 10**6} MB: record it, without --live"
        )
    write_page(path, content, weights)


def live_content(model: GPT, tokenizer: Tokenizer) -> dict[str, Any]:
    """What the page must know of a model beside its weights: the shape, the order of the tensors,
    the vocabulary with its merges."""
    dtype = sixteen_bits(model)
    kept = model.dtype == dtype or dtype == torch.bfloat16
    rounded = "" if kept else f", rounded from {_name(model.dtype)}"
    shapes = model.config.tensors()
    return {
        "config": asdict(model.config),
        "dtype": _name(dtype),
        "tensors": [[name, list(shape)] for name, shape in shapes.items()],
        "tokenizer": _vocabulary(tokenizer),
        "about": f"weights in {_name(dtype)}{rounded}, computed in float32",
    }


def sixteen_bits(model: GPT) -> torch.dtype:
    """The dtype in which a model's weights travel: bfloat16 where nothing is lost by it, as for
    weights that were stored so and widened; else float16, which is the finer one."""
    lossless = all(torch.equal(w, w.bfloat16().to(w.dtype)) for w in model.state_dict().values())
    return torch.bfloat16 if lossless else torch.float16


def packed_weights(model: GPT, dtype: str) -> str:
    """All tensors one after another, 16-bit little-endian numbers, base64.

    Raises:
        MinigptError: for weights beyond float16, or a model whose weights were turned into int8.
    """
    tensors = model.state_dict()
    names = list(model.config.tensors())
    if not set(names) <= tensors.keys():
        raise MinigptError(
            "a live page needs weights of 16 or 32 bits: load the model without weights='int8'"
        )
    parts = []
    for name in names:
        numbers = tensors[name].detach().cpu().to(getattr(torch, dtype)).contiguous()
        if not numbers.isfinite().all():
            raise MinigptError(
                f"{name} holds numbers beyond {dtype}: convert the model with "
                f"model.to(torch.bfloat16) first"
            )
        parts.append(numbers.view(torch.int16).numpy().astype("<i2").tobytes())
    return base64.b64encode(b"".join(parts)).decode("ascii")


def _vocabulary(tokenizer: Tokenizer) -> dict[str, Any]:
    """The two files that a checkpoint has, as the tokenizer writes them."""
    if isinstance(tokenizer, CharTokenizer):
        raise MinigptError(
            "this model's tokens are characters, and a live page knows byte pairs only: record it, "
            "without --live"
        )
    with tempfile.TemporaryDirectory() as directory:
        tokenizer.save_pretrained(directory)
        if not Path(directory, "vocab.json").is_file():
            raise MinigptError(
                "this model's tokenizer has settings that GPT-2's has not, and a live page knows "
                "GPT-2's only: record it, without --live"
            )
        vocab, merges = (
            Path(directory, name).read_text(encoding="utf-8")
            for name in ("vocab.json", "merges.txt")
        )
    return {"vocab": json.loads(vocab), "merges": merges.rstrip("\n").split("\n")[1:]}


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
