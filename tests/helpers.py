"""Models, paths and texts that several test files need and that are no fixtures."""

from __future__ import annotations

from pathlib import Path

import torch

from minigpt import GPT

ROOT = Path(__file__).parent.parent
TOY = ROOT / "weights" / "toy"

SCRIPTS = [
    "Hello, world!",
    "Où est le café ? Straße, smörgåsbord, İstanbul",
    "Съешь ещё этих мягких французских булок",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία",
    "素早い茶色の狐 快速的棕色狐狸 빠른 갈색 여우",
    "सभी मनुष्य जन्म से स्वतंत्र हैं",
    "نص عربي و עברית",
    "👩‍👩‍👧‍👦 🏳️‍🌈 🇺🇦 e\u0301 \U0001f600\U0001f3fd",
    "\x00\x01\x7f\x80\xa0\xad\u2028\ufeff\uffff\U0010ffff",
    "  two  spaces\n\n\ttab \r\n   ",
    "don't I'll you've 123 4567 3.14 a_b-c #include <x>",
    "",
]


def ending_in(model: GPT, token: int) -> GPT:
    """The same model, whose end-of-text token is this one."""
    state = model.state_dict()
    config = type(model.config)(**{**model.config.__dict__, "eos_token_id": token})
    model = GPT(config, numerics="exact").eval()
    model.load_state_dict(state)
    return model


def random_gpt2(directory: Path, **shape: object) -> torch.nn.Module:
    """transformers' small GPT-2 with random weights, which it has written to `directory`."""
    from transformers import GPT2Config, GPT2LMHeadModel  # slow, and few tests need it

    torch.manual_seed(0)
    sizes = {"vocab_size": 97, "n_positions": 128, "n_embd": 48, "n_head": 4}
    model = GPT2LMHeadModel(GPT2Config(**sizes, **shape, bos_token_id=None, eos_token_id=None))
    model.eval().save_pretrained(directory)
    return model
