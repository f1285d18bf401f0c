"""A model from a checkpoint, and a checkpoint from a model.

Loading takes three steps: `hub.py` finds the directory, `weights.py` reads what is in it, and here
a model is built of that.
"""

from __future__ import annotations

from pathlib import Path

import torch

from minigpt.checkpoint import hub, weights
from minigpt.model import GPT, Head, Linear
from minigpt.numerics import row_ops
from minigpt.numerics.int8 import Int8Linear
from minigpt.support.checks import device_named
from minigpt.support.errors import MinigptError
from minigpt.support.memory import MODEL_ADVICE, require_memory


def load(
    source: str | Path,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    numerics: str | None = None,
    quantized: str | None = None,
) -> GPT:
    """A trained model, in evaluation mode, from a directory or a hub name such as "gpt2".

    Weights are memory-mapped: on the CPU, in the file's dtype, nothing is copied.

    Args:
        source: a directory with `config.json` and safetensors, or a name on the hub.
        dtype: float32, float16 or bfloat16; None: float32 where `config.json` names it (the bundled
            model does, and is stored in half the bytes), else what the file has.
        device: where the weights go: "cpu", "cuda", ...
        numerics: "exact" or "fast"; None: exact in evaluation mode, fast in training.
        quantized: "int8" for a quarter of the bytes and other logits, see `numerics/int8.py`; None:
            the weights as they are. (`GPT.from_pretrained` calls it `weights`.)

    Raises:
        MinigptError: when the checkpoint is missing, damaged or not a GPT-2, or there is no such
            device.
    """
    row_ops(numerics or "exact")  # refuse a wrong name before reading anything
    if quantized not in (None, "int8"):
        raise MinigptError(f"weights is {quantized!r}, needed 'int8', or None for those there are")
    device = device_named(device)
    config, tensors = weights.load(hub.resolve(source), dtype)
    with torch.device("meta"):  # shapes without memory: the tensors read take their places
        model = GPT(config, numerics)
    if device.type != "cpu":  # where the tensors stay in their file
        need = sum(tensor.nbytes for tensor in tensors.values())
        require_memory(need, device, f"the model {source}", MODEL_ADVICE)
    state = {name: tensor.to(device) for name, tensor in tensors.items()}
    model.load_state_dict(state, assign=True, strict=False)
    if config.tie_word_embeddings:
        model.lm_head.weight = model.wte.weight
    if quantized == "int8":
        quantize(model)
    return model.eval()


def save(model: GPT, directory: str | Path) -> None:
    """Write `config.json` and `model.safetensors`, which transformers loads as they are.

    (Not with grouped key/value heads, which its GPT-2 does not have: it refuses the family's name.)

    Raises:
        MinigptError: for 8-bit weights, a head that was untied behind the configuration's back,
            or when the directory cannot be written; an old checkpoint
            there survives.
    """
    tensors = dict(model.state_dict())
    if "h.0.attn.c_attn.weight" not in tensors:
        raise MinigptError(
            "this model has int8 weights, which GPT-2's file format does not know: save the "
            "model that they were made from"
        )
    if model.config.tie_word_embeddings:
        head = tensors.pop("lm_head.weight")
        if head is not model.wte.weight and not torch.equal(head, model.wte.weight):
            raise MinigptError(
                "the output head (lm_head.weight) is no longer the token embedding (wte.weight), "
                "but the configuration ties them and only one would be saved: set model.config = "
                "dataclasses.replace(model.config, tie_word_embeddings=False) first"
            )
    weights.save(directory, model.config, tensors)


def quantize(model: GPT) -> None:
    """Put 8-bit weights in place of every linear layer's and the head's; embeddings stay.

    In float32 124M parameters take 498 MB, of which each token reads all but the positions;
    afterwards 124 MB, and of the token embeddings, which stay where they are, a row. What stays
    records no gradients either.
    """
    model.requires_grad_(False)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, Linear):
                setattr(module, name, Int8Linear(child.weight, child.bias))
            elif isinstance(child, Head):
                setattr(module, name, Int8Linear(child.weight.T, None))
