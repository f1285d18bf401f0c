"""Who takes part: minigpt with both numerics, and whoever else can run the same checkpoint here."""

from __future__ import annotations

from pathlib import Path

import torch

from minigpt.bench.ctranslate2_process import ctranslate2_entrant
from minigpt.bench.entrants import (
    Entrant,
    installed,
    minigpt_entrant,
    transformers_entrants,
    why_no_transformers,
)
from minigpt.model import GPT
from minigpt.numerics import NUMERICS


def load_entrants(model: GPT, directory: Path) -> list[Entrant]:
    """Who can run this checkpoint here: minigpt twice, and the others where they can."""
    ours = [minigpt_entrant(model, name) for name in NUMERICS]
    if why_no_transformers(model.config):
        return ours
    theirs = transformers_entrants(directory, model.dtype, model.device)
    return [*ours, *theirs, *_ctranslate2(model, directory, "float32")]


def load_int8_entrants(model: GPT, directory: Path) -> list[Entrant]:
    """Who can run it with 8-bit weights; each rounds them, and the activations, in its own way."""
    small = GPT.from_pretrained(directory, model.dtype, model.device, weights="int8")
    ours = [minigpt_entrant(small, name, "minigpt int8") for name in NUMERICS]
    return [*ours, *_ctranslate2(model, directory, "int8")]


def _ctranslate2(model: GPT, directory: Path, weights: str) -> list[Entrant]:
    """CTranslate2, if it is installed and our model is in float32 on the CPU."""
    usual = model.dtype == torch.float32 and model.device.type == "cpu"
    if not usual or why_no_transformers(model.config) or not installed("ctranslate2"):
        return []
    return [ctranslate2_entrant(directory, weights)]
