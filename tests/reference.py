"""A GPT-2 in plain loops and float64, written from the paper and not from `minigpt/`.

It shares no code with the model under test: one position of one text at a time, dictionaries of
weights, no cache, no batch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def reference_logits(weights: dict[str, Tensor], config: object, tokens: list[int]) -> Tensor:
    """Logits (T, V) of one text, every position from scratch."""
    w = {name: tensor.double() for name, tensor in weights.items()}
    heads, width = config.n_head, config.n_embd // config.n_head
    groups = config.n_kv_head or heads
    x = [w["wte.weight"][token] + w["wpe.weight"][at] for at, token in enumerate(tokens)]
    for n in range(config.n_layer):
        layer = {k.removeprefix(f"h.{n}."): v for k, v in w.items() if k.startswith(f"h.{n}.")}

        def apply(name: str, row: Tensor, layer: dict[str, Tensor] = layer) -> Tensor:
            return row @ layer[f"{name}.weight"] + layer[f"{name}.bias"]

        queries, keys, values = [], [], []
        for row in x:
            out = apply("attn.c_attn", norm(row, layer, "ln_1", config))
            queries.append(out[: heads * width].view(heads, width))
            keys.append(out[heads * width :][: groups * width].view(groups, width))
            values.append(out[(heads + groups) * width :].view(groups, width))
        for at, row in enumerate(x):
            mixed = []
            for head in range(heads):
                group = head * groups // heads
                scores = [float(queries[at][head] @ keys[s][group]) for s in range(at + 1)]
                scale = math.sqrt(width) if config.scale_attn_weights else 1.0
                if config.scale_attn_by_inverse_layer_idx:
                    scale *= n + 1
                top = max(scores)
                parts = [math.exp((score - top) / scale) for score in scores]
                total = sum(parts)
                terms = [values[s][group] * (part / total) for s, part in enumerate(parts)]
                mixed.append(torch.stack(terms).sum(0))
            x[at] = row + apply("attn.c_proj", torch.cat(mixed))
        for at, row in enumerate(x):
            inner = apply("mlp.c_fc", norm(row, layer, "ln_2", config))
            cubic = math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)
            x[at] = row + apply("mlp.c_proj", inner * 0.5 * (1 + torch.tanh(cubic)))
    final = {"ln_f.weight": w["ln_f.weight"], "ln_f.bias": w["ln_f.bias"]}
    out = w["lm_head.weight"] if "lm_head.weight" in w else w["wte.weight"]
    return torch.stack([out @ norm(row, final, "ln_f", config) for row in x])


def norm(row: Tensor, weights: dict[str, Tensor], name: str, config: object) -> Tensor:
    centred = row - row.mean()
    spread = torch.sqrt((centred**2).mean() + config.layer_norm_epsilon)
    return centred / spread * weights[f"{name}.weight"] + weights[f"{name}.bias"]
