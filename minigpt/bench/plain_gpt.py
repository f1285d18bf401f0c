"""GPT-2 as a tutorial writes it for training: what our training step is held against.

nn.Linear, PyTorch's fused attention, bfloat16 by autocast; no cache, no numerics of its own. The
loops are what nanoGPT's comes to, on one GPU, where the whole model is compiled, and on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minigpt.config import GPTConfig


class PlainBlock(nn.Module):
    """`bias`: whether layers have one; without it GELU is the exact one, as in nanoGPT."""

    def __init__(self, config: GPTConfig, bias: bool = True) -> None:
        super().__init__()
        width, self.heads = config.n_embd, config.n_head
        self.ln_1, self.ln_2 = nn.LayerNorm(width, bias=bias), nn.LayerNorm(width, bias=bias)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias), nn.Linear(width, width, bias)
        self.up, self.down = nn.Linear(width, 4 * width, bias), nn.Linear(4 * width, width, bias)
        self.gelu = "tanh" if bias else "none"

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.shape
        q, k, v = (
            part.view(B, T, self.heads, -1).transpose(1, 2)
            for part in self.qkv(self.ln_1(x)).split(C, 2)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(B, T, C))
        return x + self.down(F.gelu(self.up(self.ln_2(x)), approximate=self.gelu))


class PlainGPT(nn.Module):
    """(B, T) tokens and targets -> the mean loss in nats."""

    def __init__(self, config: GPTConfig, bias: bool = True) -> None:
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.blocks = nn.ModuleList(PlainBlock(config, bias) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, bias=bias)
        self.head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.head.weight = self.wte.weight
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=config.initializer_range)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        x = self.wte(tokens) + self.wpe.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return F.cross_entropy(self.head(self.ln_f(x)).flatten(0, 1), targets.flatten())


def plain_step(
    config: GPTConfig, device: torch.device, batch_size: int, compiled: bool
) -> Callable[[], object]:
    """One update on random tokens, to be called again and again."""
    with torch.device(device):
        model: nn.Module = PlainGPT(config)
        tokens = torch.randint(config.vocab_size, (batch_size, config.n_positions))
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=6e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    network = torch.compile(model) if compiled else model

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            loss = network(tokens, tokens.roll(-1, 1))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()

    return step
