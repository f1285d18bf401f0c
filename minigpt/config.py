"""The shape of a model: every number that fixes its mathematics, and GPT-2's published values.

Field names are those of GPT-2's `config.json`, so a checkpoint and the code use one vocabulary.
Reading and writing that JSON is here too, and what follows from a shape alone: which tensors a
model of it has, and whether they fit in memory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from minigpt.support.checks import is_number, whole
from minigpt.support.errors import MinigptError

ACTIVATIONS = ("gelu_new", "gelu_pytorch_tanh", "gelu", "relu")
_OPTIONAL = ("n_kv_head", "n_inner")  # sizes that may be None


@dataclass(frozen=True)
class GPTConfig:
    """A GPT-2-style decoder. The defaults are GPT-2 124M as published.

    Raises:
        MinigptError: when a value is out of range or two of them do not fit together.
    """

    vocab_size: int = 50257  # V: 256 bytes, 50,000 merges, end of text
    n_positions: int = 1024  # context length: learned position embeddings, so it is a hard limit
    n_embd: int = 768  # C: width of the residual stream
    n_layer: int = 12
    n_head: int = 12  # H: query heads
    n_kv_head: int | None = None  # G: key/value heads; None: H, as in GPT-2; fewer shrink the cache
    n_inner: int | None = None  # width of the MLP's hidden layer; None: 4 C
    activation_function: str = "gelu_new"  # tanh form of GELU (Hendrycks & Gimpel 2016), GPT-2's
    embd_pdrop: float = 0.1  # dropout after the embeddings ...
    attn_pdrop: float = 0.1  # ... on the attention weights ...
    resid_pdrop: float = 0.1  # ... and before each addition to the residual stream
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02  # standard deviation of the initial weights
    scale_attn_weights: bool = True  # divide the scores by sqrt(D)
    scale_attn_by_inverse_layer_idx: bool = False  # ... and by (layer + 1), as Mistral's GPT-2s do
    tie_word_embeddings: bool = True  # the output head is the token embedding
    eos_token_id: int | None = None  # the end-of-text token, where the vocabulary has one
    other_eos_token_ids: tuple[int, ...] = ()  # further tokens that end a text, as chat models have

    def __post_init__(self) -> None:
        for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", *_OPTIONAL):
            value = getattr(self, name)
            if value is not None or name not in _OPTIONAL:
                # Far beyond any GPT-2: a garbled file shall not ask for all the memory.
                size = whole(name, value, high=10_000 if name == "n_layer" else 2**24)
                object.__setattr__(self, name, size)  # which may have been numpy's
        if self.n_embd % self.n_head:
            raise MinigptError(
                f"n_embd is {self.n_embd} and n_head is {self.n_head}, but every head needs the "
                f"same whole number of channels: make n_embd a multiple of n_head"
            )
        if self.n_head % self.kv_heads:
            raise MinigptError(
                f"n_head is {self.n_head} and n_kv_head is {self.kv_heads}, but each key/value "
                f"head serves the same number of query heads: make n_kv_head a divisor of n_head"
            )
        if self.activation_function not in ACTIVATIONS:
            raise MinigptError(
                f"activation_function is {self.activation_function!r}, needed one of "
                f"{', '.join(ACTIVATIONS)}: this model cannot be run here"
            )
        for name in ("embd_pdrop", "attn_pdrop", "resid_pdrop"):
            value = getattr(self, name)
            if not is_number(value) or not 0.0 <= value < 1.0:
                raise MinigptError(f"{name} is {value!r}, needed a probability in [0, 1)")
        for name in ("layer_norm_epsilon", "initializer_range"):
            value = getattr(self, name)
            if not is_number(value) or not 0.0 < value < float("inf"):
                raise MinigptError(f"{name} is {value!r}, needed a positive number")
        if self.eos_token_id is not None and type(self.eos_token_id) is not int:
            raise MinigptError(f"eos_token_id is {self.eos_token_id!r}, needed a token or None")
        if self.other_eos_token_ids and self.eos_token_id is None:
            raise MinigptError(
                f"other_eos_token_ids is {self.other_eos_token_ids!r} and eos_token_id None, "
                f"needed the first of them as eos_token_id"
            )
        for field in fields(self):
            if field.type == "bool" and not isinstance(getattr(self, field.name), bool):
                found = getattr(self, field.name)
                raise MinigptError(f"{field.name} is {found!r}, needed true or false")

    @property
    def head_dim(self) -> int:
        """D: channels per head."""
        return self.n_embd // self.n_head

    @property
    def kv_heads(self) -> int:
        """G: key/value heads, which is what the cache stores."""
        return self.n_head if self.n_kv_head is None else self.n_kv_head

    @property
    def stop_tokens(self) -> tuple[int, ...]:
        """Every token that ends a text."""
        first = () if self.eos_token_id is None else (self.eos_token_id,)
        return first + self.other_eos_token_ids

    @property
    def inner(self) -> int:
        """Width of the MLP's hidden layer."""
        return 4 * self.n_embd if self.n_inner is None else self.n_inner

    def multiplications(self, positions: int, keys: int) -> int:
        """Of a pass over so many positions, and the logits of the last one.

        Args:
            keys: how many all its queries read together: T (T + 1) / 2 of a text from its start.
        """
        kv_width = self.kv_heads * self.head_dim
        matrices = self.n_embd * (2 * self.n_embd + 2 * kv_width + 2 * self.inner)
        attention = 2 * keys * self.n_embd  # each query with its keys, each weight with its value
        return self.n_layer * (positions * matrices + attention) + self.n_embd * self.vocab_size

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor of a model, in the order of the forward pass.

        Matrices are (in, out), as GPT-2 stores them. `lm_head.weight` is there only when untied.
        """
        C, inner = self.n_embd, self.inner
        qkv = C + 2 * self.kv_heads * self.head_dim
        shapes: dict[str, tuple[int, ...]] = {
            "wte.weight": (self.vocab_size, C),
            "wpe.weight": (self.n_positions, C),
        }
        for layer in range(self.n_layer):
            block: dict[str, tuple[int, ...]] = {
                "ln_1.weight": (C,),
                "ln_1.bias": (C,),
                "attn.c_attn.weight": (C, qkv),
                "attn.c_attn.bias": (qkv,),
                "attn.c_proj.weight": (C, C),
                "attn.c_proj.bias": (C,),
                "ln_2.weight": (C,),
                "ln_2.bias": (C,),
                "mlp.c_fc.weight": (C, inner),
                "mlp.c_fc.bias": (inner,),
                "mlp.c_proj.weight": (inner, C),
                "mlp.c_proj.bias": (C,),
            }
            shapes.update({f"h.{layer}.{name}": shape for name, shape in block.items()})
        shapes.update({"ln_f.weight": (C,), "ln_f.bias": (C,)})
        if not self.tie_word_embeddings:
            shapes["lm_head.weight"] = (self.vocab_size, C)
        return shapes

    @classmethod
    def preset(cls, name: str, **changes: Any) -> GPTConfig:
        """A published (or toy) shape by name, with fields changed by keyword.

        Raises:
            MinigptError: for a name that is not in `PRESETS`.
        """
        if not isinstance(name, str) or name not in PRESETS:
            raise MinigptError(f"no preset is called {name!r}, needed one of {', '.join(PRESETS)}")
        return replace(PRESETS[name], **changes)

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> GPTConfig:
        """Read the content of a `config.json`.

        Keys that do not change the logits (token ids, task heads, library versions) are ignored.

        Raises:
            MinigptError: for another model family, or a key that would change the mathematics in a
                way this code does not implement; the key is named.
        """
        if not isinstance(config, Mapping):
            raise MinigptError(
                f"the configuration is {config!r}, needed the content of a config.json"
            )
        family = config.get("model_type", "gpt2")
        if family not in ("gpt2", "minigpt"):
            raise MinigptError(
                f"config.json says model_type {family!r}, needed 'gpt2': only GPT-2-style "
                f"checkpoints can be loaded"
            )
        for key, harmless in _REFUSED.items():
            if config.get(key) not in (None, harmless):
                raise MinigptError(
                    f"config.json sets {key} to {config[key]!r}, which changes the mathematics and "
                    f"is not implemented: needed {harmless!r} or no such key"
                )
        # JSON's null means "the default", which for the optional fields is None as well.
        names = {field.name for field in fields(cls)}
        known = {key: config[key] for key in names if config.get(key) is not None}
        end_of_text = known.pop("eos_token_id", None)
        known.pop("other_eos_token_ids", None)  # in a file they are one list
        for alias, name in _ALIASES.items():
            value = config.get(alias)
            if value is not None and known.setdefault(name, value) != value:
                raise MinigptError(
                    f"config.json says {alias} {value!r} and {name} {known[name]!r}, which mean "
                    f"the same thing: needed one number, so correct the file"
                )
        shape = cls(**known)
        # Small models often keep GPT-2's 50256 in their file, which is none of their tokens.
        ends = end_of_text if isinstance(end_of_text, list) else [end_of_text]
        ends = [token for token in ends if type(token) is int and token in range(shape.vocab_size)]
        if not ends:
            return shape
        return replace(shape, eos_token_id=ends[0], other_eos_token_ids=tuple(ends[1:]))

    def to_dict(self) -> dict[str, Any]:
        """The content of a `config.json` that `from_dict` and transformers read.

        With grouped key/value heads the family is "minigpt", so that a program which knows only
        plain GPT-2 refuses by name instead of failing on a shape.
        """
        config = asdict(self)
        del config["n_kv_head"], config["other_eos_token_ids"]
        if self.other_eos_token_ids:
            config["eos_token_id"] = list(self.stop_tokens)
        if self.kv_heads == self.n_head:
            return {
                "model_type": "gpt2",
                "architectures": ["GPT2LMHeadModel"],
                **config,
                "n_ctx": self.n_positions,
                **_PUBLISHED_BESIDE,
            }
        return {"model_type": "minigpt", "n_kv_head": self.kv_heads, **config}


def refuse_unbuildable(config: object) -> None:
    """Refuse what is no configuration, or one whose model would not fit in memory.

    The memory is that of torch's default device, and numbers are in its default dtype.
    """
    import torch  # here: to show a shape takes no torch, and it takes a second to import

    from minigpt.support.memory import available_memory

    if not isinstance(config, GPTConfig):
        raise MinigptError(
            f"config is {config!r}, needed a GPTConfig: a trained model comes from "
            f"GPT.from_pretrained()"
        )
    device = torch.get_default_device()
    free = available_memory(device)
    count = sum(map(math.prod, config.tensors().values()))
    need = count * torch.get_default_dtype().itemsize
    if free is not None and need > free:
        raise MinigptError(
            f"a model of {count:,} parameters needs {need:,} bytes, and {device} has {free:,} "
            f"free: make n_embd, n_layer, vocab_size or n_positions smaller"
        )


# Second names under which a configuration may give a size: transformers reads all but `n_ctx`,
# which GPT-2's own files carry beside `n_positions`. Unread, a size would fall to its default.
_ALIASES: dict[str, str] = {
    "n_ctx": "n_positions",
    "max_position_embeddings": "n_positions",
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
}

# What else GPT-2's published file carries: it does not touch the logits, but some programs want
# every key to be there (llama.cpp's converter stops without `n_ctx`).
_PUBLISHED_BESIDE: dict[str, Any] = {
    "summary_activation": None,
    "summary_first_dropout": 0.1,
    "summary_proj_to_labels": True,
    "summary_type": "cls_index",
    "summary_use_proj": True,
}

# Keys of GPT-2's configuration that change the logits in ways not implemented, with the one value
# that does not. `reorder_and_upcast_attn` (Stanford's GPT-2s) is not among them: it computes the
# same function in another precision, and is ignored.
_REFUSED: dict[str, Any] = {
    "add_cross_attention": False,
    "is_encoder_decoder": False,
    "pruned_heads": {},
    "quantization_config": None,
}

# Shapes as published with GPT-2 (Radford et al. 2019) and DistilGPT2 (Sanh et al. 2019).
PRESETS: dict[str, GPTConfig] = {
    "gpt2": GPTConfig(eos_token_id=50256),
    "gpt2-medium": GPTConfig(n_embd=1024, n_layer=24, n_head=16, eos_token_id=50256),
    "gpt2-large": GPTConfig(n_embd=1280, n_layer=36, n_head=20, eos_token_id=50256),
    "gpt2-xl": GPTConfig(n_embd=1600, n_layer=48, n_head=25, eos_token_id=50256),
    "distilgpt2": GPTConfig(n_layer=6, eos_token_id=50256),
    "nano": GPTConfig(
        vocab_size=257, n_positions=64, n_embd=48, n_layer=3, n_head=3, eos_token_id=256,
        embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0,
    ),
    "toy": GPTConfig(
        vocab_size=2048, n_positions=256, n_embd=192, n_layer=5, n_head=6, eos_token_id=2047,
        embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0,
    ),
}  # fmt: skip
