"""Every number of a training run, documented in one place, and the recipes that set them.

A run is its `TrainConfig`: the defaults, changed by a preset, then by a TOML file, then on the
command line. It is saved beside each checkpoint, so that a run can be told and repeated. What the
numbers do is in `loop.py`.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from minigpt.config import GPTConfig
from minigpt.support.checks import is_number, path_of, whole
from minigpt.support.errors import MinigptError
from minigpt.training.tasks import TASKS, Task

PRECISIONS = ("float32", "bfloat16", "float16")
STORED = ("float32", "bfloat16")
SCHEDULES = ("cosine", "constant")
METHODS = ("supervised", "grpo", "reinforce")
PROJECTIONS = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")


OF_NEW_MODELS = ("n_layer", "n_head", "n_embd", "initializer_range", "tokenizer")
OF_DATA = ("data", "tokenizer", "held_out", "documents", "openings")
OF_REWARDS = ("group", "updates", "clip_ratio", "kl", "numerics")


def setting(default: Any, about: str, choices: tuple[str, ...] = (), later: bool = False) -> Any:
    """A field with its documentation; `later`: may be changed when a run is resumed."""
    return field(default=default, metadata={"about": about, "choices": choices, "later": later})


@dataclass(frozen=True)
class TrainConfig:
    """Every number of a training run. The defaults are for a laptop: little stories, half an hour.

    Raises:
        MinigptError: when a value is of the wrong type or out of range.
    """

    # What to learn from
    data: str = setting(
        "stories:41000",
        "text, JSONL (each also .gz), a folder, or stories:N, made up; several: a.txt:2 b/:1, with "
        "how often each is drawn",
        (),
        True,
    )
    task: str = setting("", "a built-in task to learn instead; it needs no data")
    tokenizer: str = setting("bpe:1024", "char, byte, gpt2, or bpe:N to learn N tokens")
    held_out: float = setting(0.025, "part of the data that is never trained on")
    documents: bool = setting(False, "keep each window to one document")
    openings: bool = setting(False, "begin each window where a document begins")
    # The model: shaped here, or continued from a checkpoint
    start: str = setting("", "checkpoint to start from: a directory, or a name such as gpt2")
    n_layer: int = setting(5, "blocks of attention and MLP")
    n_head: int = setting(5, "attention heads in each")
    n_embd: int = setting(160, "width: channels")
    n_positions: int = setting(256, "context: tokens in a window")
    dropout: float = setting(0.0, "probability, after embeddings, attention and MLP")
    initializer_range: float = setting(0.02, "standard deviation of new weights")
    freeze: str = setting("", "parameters left as they are: prefixes such as wte,wpe,h.0")
    lora_rank: int = setting(0, "above 0: train only products of this rank, added to matrices")
    lora_scale: float = setting(2.0, "what the products are multiplied by")
    lora_on: str = setting("attn.c_attn", f"matrices that get one, of {','.join(PROJECTIONS)}")
    # The steps
    steps: int = setting(2_000, "updates of the weights", (), True)
    batch_size: int = setting(16, "windows in one step, over all processes and pieces")
    accumulate: int = setting(1, "pieces that a step is cut into where memory is short")
    learning_rate: float = setting(2e-3, "the largest, after the warm-up")
    schedule: str = setting("cosine", "after the warm-up: falling or constant", SCHEDULES)
    warmup: int = setting(100, "steps of linear warm-up")
    final_rate: float = setting(
        0.1, "where the cosine ends, as a part of the largest rate", (), True
    )
    weight_decay: float = setting(0.1, "on matrices only")
    beta1: float = setting(0.9, "AdamW's memory of the gradient")
    beta2: float = setting(0.98, "... and of its square; shorter than 0.999 suits short runs")
    clip: float = setting(1.0, "largest norm of all gradients together; 0: any")
    seed: int = setting(1, "of the weights, the windows, the dropout and the task's problems")
    # Learning from rewards instead of answers: a batch is then so many answers of the model's own
    method: str = setting(
        "supervised",
        "from answers (supervised), or from rewards for answers of its own",
        METHODS,
    )
    group: int = setting(8, "grpo, reinforce: answers to each problem, compared with each other")
    updates: int = setting(4, "grpo: updates of the weights with each batch of answers")
    clip_ratio: float = setting(
        0.2, "grpo: a token's probability may move by this part before its gradient stops"
    )
    kl: float = setting(0.0, "weight of the divergence from the model started from; 0: none")
    numerics: str = setting(
        "exact", "grpo, reinforce: exact: sampler and trainer agree to the bit; or fast",
        ("exact", "fast"),
    )  # fmt: skip
    # How to compute them
    device: str = setting("auto", "cpu, cuda, mps, ...; auto: cuda if there is one", (), True)
    precision: str = setting("float32", "of products; the weights stay in float32", PRECISIONS)
    compile: bool = setting(False, "compile the blocks: a slow first step, then faster ones")
    recompute: bool = setting(False, "compute activations again going back, to save memory")
    shard: bool = setting(False, "under torchrun: weights in parts, one for each process", (), True)
    # Watching and keeping
    evaluate_every: int = setting(
        250, "steps between evaluations; each may leave a new best", (), True
    )
    evaluate_windows: int = setting(1_000, "held-out windows in each of them", (), True)
    sample_every: int = setting(
        0, "steps between samples of text; 0: none (nor when sharded)", (), True
    )
    sample_tokens: int = setting(
        400, "tokens in each of them at most, where the text does not end before", (), True
    )
    save_every: int = setting(250, "steps between checkpoints to resume from", (), True)
    keep: int = setting(2, "checkpoints kept, the latest", (), True)
    stored: str = setting("float32", "dtype of the best model's file", STORED)
    tensorboard: bool = setting(False, "write curves for TensorBoard as well", (), True)

    def __post_init__(self) -> None:
        for f in fields(self):
            _check_type(f.name, getattr(self, f.name), str(f.type))
            choices = f.metadata["choices"]
            if choices and getattr(self, f.name) not in choices:
                raise MinigptError(
                    f"{f.name} is {getattr(self, f.name)!r}, needed one of {', '.join(choices)}"
                )
        for name in ("lora_rank", "warmup", "sample_every", "sample_tokens"):
            whole(name, getattr(self, name), 0)
        for name in ("steps", "batch_size", "accumulate", "evaluate_every", "save_every", "keep"):
            whole(name, getattr(self, name))
        whole("group", self.group, 2)  # one alone is as good as its mean, and nothing is learned
        whole("updates", self.updates)
        whole("evaluate_windows", self.evaluate_windows)
        for name in ("held_out", "beta1", "beta2"):
            if not 0 < getattr(self, name) < 1:
                raise MinigptError(f"{name} is {getattr(self, name)}, needed between 0 and 1")
        for name in ("clip", "weight_decay", "final_rate", "kl"):
            if not 0 <= getattr(self, name) < math.inf:
                raise MinigptError(f"{name} is {getattr(self, name)}, needed a number from 0 on")
        for name in ("learning_rate", "lora_scale", "clip_ratio"):
            if not 0 < getattr(self, name) < math.inf:
                raise MinigptError(f"{name} is {getattr(self, name)}, needed a positive number")
        whole("seed", self.seed, 0, 2**63 - 2)
        if self.task and self.task not in TASKS:
            raise MinigptError(f"task is {self.task!r}, needed one of {', '.join(TASKS)}")
        unknown = [name for name in self.lora_on.split(",") if name not in PROJECTIONS]
        if unknown:
            raise MinigptError(
                f"lora_on names {unknown[0]!r}, needed some of {', '.join(PROJECTIONS)}"
            )
        if self.shard and self.precision == "float16":
            raise MinigptError("float16 cannot be sharded: choose precision bfloat16 or float32")
        self.shape(1, None)  # refuses a width that the heads cannot share, and the like

    def shape(self, vocab_size: int, end_of_text: int | None) -> GPTConfig:
        """The configuration of a new model with this vocabulary."""
        return GPTConfig(
            vocab_size, self.n_positions, self.n_embd, self.n_layer, self.n_head,
            eos_token_id=end_of_text, embd_pdrop=self.dropout, attn_pdrop=self.dropout,
            resid_pdrop=self.dropout, initializer_range=self.initializer_range,
        )  # fmt: skip

    def to_toml(self) -> str:
        """A file that `read_toml` reads back, each line with its documentation."""
        lines = (
            f"{f.name} = {json.dumps(getattr(self, f.name), ensure_ascii=False)}  "
            f"# {f.metadata['about']}\n"
            for f in fields(self)
        )
        return "".join(lines)


def differences(before: TrainConfig, now: TrainConfig) -> list[str]:
    """What keeps a run with one configuration from being continued with another, by field."""
    return [
        f"{f.name} was {getattr(before, f.name)!r} and is {getattr(now, f.name)!r}"
        for f in fields(TrainConfig)
        if not f.metadata["later"] and getattr(before, f.name) != getattr(now, f.name)
    ]


def contradictions(config: TrainConfig, given: Mapping[str, Any]) -> list[str]:
    """Of the fields that were set by hand, those that a run with this configuration ignores."""
    ignored = [*(OF_DATA if config.task else ()), *(OF_NEW_MODELS if config.start else ())]
    ignored += OF_REWARDS if config.method == "supervised" else ()
    return [name for name in ignored if name in given]


def for_rewards(config: TrainConfig, method: str) -> TrainConfig:
    """The same model and task with numbers that suit learning from rewards."""
    return replace(
        config, method=method, steps=240, batch_size=128, learning_rate=2e-3, schedule="cosine",
        warmup=5, weight_decay=0.0, evaluate_every=20, save_every=40,
        updates=4 if method == "grpo" else 1,  # only the clipped ratio can bear more than one
    )  # fmt: skip


def configure(base: TrainConfig, changes: Mapping[str, Any], where: str) -> TrainConfig:
    """`base` with fields changed; `where` they come from is said when one does not exist.

    Raises:
        MinigptError: for a name that is no field, or a value that is out of range.
    """
    if not isinstance(changes, Mapping):
        raise MinigptError(f"{where} sets {changes!r}, needed names and values")
    names = [f.name for f in fields(TrainConfig)]
    unknown = [name for name in changes if name not in names]
    if unknown:
        raise MinigptError(f"{where} sets {unknown[0]!r}, needed one of {', '.join(names)}")
    floats = {f.name for f in fields(TrainConfig) if f.type == "float"}
    exact: dict[str, Any] = {
        name: float(value) if name in floats and type(value) is int and is_number(value) else value
        for name, value in changes.items()
    }  # so that 1 and 1.0, written in a file, are the same
    return replace(base, **exact)


def read_toml(path: str | Path) -> dict[str, Any]:
    """The fields that a TOML file sets.

    Raises:
        MinigptError: when it cannot be read, or this Python cannot read TOML.
    """
    if sys.version_info < (3, 11):
        raise MinigptError(
            f"{path} is TOML, which Python reads from 3.11 on, and this is "
            f"{sys.version.split()[0]}: pass the fields on the command line"
        )
    else:
        import tomllib

        try:
            return tomllib.loads(path_of(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise MinigptError(
                f"{path} cannot be read as TOML ({error}): write lines such as steps = 100"
            ) from error


def preset(name: str) -> TrainConfig:
    """A recipe by name.

    Raises:
        MinigptError: for a name that is not in `PRESETS`.
    """
    if not isinstance(name, str) or name not in PRESETS:
        raise MinigptError(f"no recipe is called {name!r}, needed one of {', '.join(PRESETS)}")
    return PRESETS[name]


def _check_type(name: str, value: object, kind: str) -> None:
    kinds: dict[str, Any] = {"str": str, "bool": bool, "int": int, "float": (float, int)}
    right = isinstance(value, kinds[kind]) and (kind == "bool" or not isinstance(value, bool))
    if not right or (kind in ("int", "float") and not is_number(value)):
        raise MinigptError(f"{name} is {value!r}, needed a {kind}")
    try:
        str(value).encode()
    except UnicodeEncodeError:  # half of a character, which train.toml cannot hold
        raise MinigptError(f"{name} is {value!r}, needed whole characters") from None


def _for_task(task: Task) -> TrainConfig:
    """A run of the task's own recipe."""
    recipe, shape = task.recipe, task.config()
    return TrainConfig(
        task=task.name, n_layer=recipe.n_layer, n_embd=recipe.n_embd, n_head=recipe.n_head,
        n_positions=shape.n_positions, initializer_range=shape.initializer_range,
        steps=recipe.steps, learning_rate=recipe.learning_rate, batch_size=recipe.batch_size,
        weight_decay=recipe.weight_decay, evaluate_every=100, save_every=100,
    )  # fmt: skip


PRESETS: dict[str, TrainConfig] = {
    # The bundled model, weights/toy: three minutes on an H100, days on a CPU.
    "toy": TrainConfig(
        data="stories:1200000", tokenizer="bpe:2048", held_out=0.005, openings=True, n_layer=5,
        n_head=6, n_embd=192, steps=3_000, batch_size=512, learning_rate=3e-3, warmup=200,
        final_rate=0.0, device="cuda", precision="bfloat16", compile=True, evaluate_every=750,
        evaluate_windows=2_000, save_every=1_500, stored="bfloat16",
    ),
    # A smaller one of its kind, for a laptop: the defaults.
    "stories": TrainConfig(),
    # nanoGPT's two settings for one text at the level of characters: a laptop's and a GPU's.
    "laptop": TrainConfig(
        tokenizer="char", held_out=0.1, n_layer=4, n_head=4, n_embd=128, n_positions=64,
        batch_size=12, learning_rate=2e-3, beta2=0.99,
    ),
    "gpu": TrainConfig(
        tokenizer="char", held_out=0.1, n_layer=6, n_head=6, n_embd=384, n_positions=256,
        batch_size=64, steps=5_000, learning_rate=1e-3, dropout=0.2, device="cuda",
        precision="bfloat16", compile=True, beta2=0.99,
    ),
    # Small data, large model: gentle steps, dropout, and few of them.
    "finetune": TrainConfig(
        start="gpt2", held_out=0.1, steps=200, batch_size=8, accumulate=4, learning_rate=3e-5,
        warmup=20, schedule="constant", dropout=0.1, evaluate_every=20, save_every=100,
        sample_tokens=200, beta2=0.99,
    ),
    # Products beside every matrix of the blocks. They start at zero and so take a rate a hundred
    # times that of the weights; few steps, for small data are soon known by heart.
    "lora": TrainConfig(
        start="gpt2", held_out=0.1, steps=300, batch_size=8, accumulate=4, learning_rate=5e-3,
        warmup=30, dropout=0.05, weight_decay=0.0, lora_rank=8, lora_on=",".join(PROJECTIONS),
        evaluate_every=20, save_every=100, sample_tokens=200, beta2=0.99,
    ),
    **{name: _for_task(task) for name, task in TASKS.items()},
}  # fmt: skip
