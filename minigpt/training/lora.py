"""Training a part of a model: some of its weights, or small products beside them.

LoRA (Hu et al. 2021): a matrix W (in, out) becomes W + scale · A B with A (in, r) and B (r, out),
and only A and B are trained. B starts at zero, so training starts from the model as it was. Saving
adds the product to W, and the result is a plain GPT-2 checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from minigpt.config import GPTConfig
from minigpt.model import GPT, Linear
from minigpt.numerics.copies import Copies
from minigpt.support.errors import MinigptError
from minigpt.training.recipes import TrainConfig


def limit(model: GPT, config: TrainConfig) -> None:
    """Leave to train what a run's configuration says: all of a model, a part, or products beside.

    Raises:
        MinigptError: as `freeze`.
    """
    if config.lora_rank:
        adapt(model, config.lora_on.split(","), config.lora_rank, config.lora_scale)
    freeze(model, filter(None, config.freeze.split(",")))


def trainable(shape: GPTConfig, config: TrainConfig) -> int:
    """How many numbers a run trains of a model of this shape; nothing is made for it.

    Raises:
        MinigptError: as `freeze`.
    """
    with torch.device("meta"):
        model = GPT(shape)
        limit(model, config)
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def freeze(model: GPT, parts: Iterable[str]) -> None:
    """Leave parts of a model as they are.

    Args:
        parts: names of modules or parameters, such as "wte" or "h.0.mlp".

    Raises:
        MinigptError: when a name is none, or nothing is left to train.
    """
    for part in parts:
        inside = [p for n, p in model.named_parameters() if f"{n}.".startswith(f"{part}.")]
        if not inside:
            known = ", ".join(name for name, _ in model.named_children())
            raise MinigptError(f"freeze names {part!r}, needed a part of {known}, such as h.0")
        for parameter in inside:
            parameter.requires_grad_(False)
    if not any(p.requires_grad for p in model.parameters()):
        raise MinigptError("freeze leaves nothing to train: name fewer parts")


class Adapted(Linear):
    """A linear layer with a trained product beside its frozen matrix."""

    def __init__(self, plain: Linear, rank: int, scale: float) -> None:
        nn.Module.__init__(self)
        self.weight, self.bias, self.copies = plain.weight, plain.bias, plain.copies
        self.ops, self.training = plain.ops, plain.training
        n_in, n_out = plain.weight.shape
        self.lora_a = nn.Parameter(torch.randn(n_in, rank) * n_in**-0.5)
        self.lora_b = nn.Parameter(torch.zeros(rank, n_out))
        self.scale = scale
        self.lora_copies = Copies(), Copies()

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        for factor, copies in zip((self.lora_a, self.lora_b), self.lora_copies, strict=True):
            x = self.ops.linear(x, factor, None, copies)
        return y + x * self.scale


def adapt(model: GPT, names: Iterable[str], rank: int, scale: float) -> None:
    """Freeze the model, and give the named matrices of each block a product to train.

    Args:
        names: such as "attn.c_attn", within a block.
        rank: r; the product has r (in + out) numbers where the matrix has in · out.
    """
    model.requires_grad_(False)
    for block in model.h:
        for name in names:
            parent, child = name.split(".")
            plain = getattr(getattr(block, parent), child)
            setattr(getattr(block, parent), child, Adapted(plain, rank, scale))


def merged(tensors: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """The tensors of an adapted model as those of a plain one: each product added to its matrix."""
    plain = {name: tensor for name, tensor in tensors.items() if ".lora_" not in name}
    for name, a in tensors.items():
        if name.endswith(".lora_a"):
            layer = name.removesuffix(".lora_a")
            product = a @ tensors[f"{layer}.lora_b"]  # (in, r) x (r, out) -> (in, out)
            plain[f"{layer}.weight"] = plain[f"{layer}.weight"] + product * scale
    return plain


def adapted(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What merging cannot undo: the frozen matrices and their products, of all the tensors."""
    layers = [name.removesuffix(".lora_a") for name in tensors if name.endswith(".lora_a")]
    names = [f"{layer}.{part}" for layer in layers for part in ("weight", "lora_a", "lora_b")]
    return {name: tensors[name] for name in names}
