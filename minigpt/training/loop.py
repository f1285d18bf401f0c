"""The training loop, from the first step to the best checkpoint.

Everything that is random in a step (its windows, its dropout) is a function of the seed and the
step's number, so a run that is killed and resumed goes on bit for bit as if nothing had happened.
The numbers of a run are in `recipes.py`, its data in `sources.py`; what is saved, `checkpoint.py`;
what several processes share, `parallel.py`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed
from tqdm import tqdm

from minigpt.checkpoint import weights
from minigpt.generation.decoding import generate
from minigpt.model import GPT
from minigpt.numerics.base import set_ops
from minigpt.numerics.training import TrainingOps
from minigpt.support.errors import MinigptError
from minigpt.support.files import locked, write_text
from minigpt.training import lora
from minigpt.training import state as checkpoint
from minigpt.training.curves import Log
from minigpt.training.data import IGNORED
from minigpt.training.interruption import interrupts
from minigpt.training.losses import cross_entropy, evaluate, uncompiled
from minigpt.training.parallel import Processes, like, whole, without_exchange
from minigpt.training.recipes import TrainConfig
from minigpt.training.sources import Source
from minigpt.training.state import State

Report = Callable[[str], object]
CHECKPOINTS = "checkpoints"  # in a run's directory; the directory itself holds the best model


class Step(NamedTuple):
    """What one step tells."""

    loss: float  # nats per token, before the update, over the whole batch
    norm: float  # of all gradients together, before clipping
    stop: bool  # some process was asked to


def train(
    model: GPT,
    source: Source,
    config: TrainConfig,
    directory: str | Path,
    processes: Processes | None = None,
    resume: bool = False,
    report: Report = lambda line: None,
) -> State:
    """Train `model`: the best weights go to `directory`, checkpoints into a folder there.

    Args:
        model: where to start; with `resume` and a checkpoint there, only its shape counts.
        processes: those that train together; None: this one.
        resume: continue from the newest checkpoint in `directory`, if there is one.
        report: given a line of text at each evaluation, and each sample.

    Returns:
        How far it got. The model has the weights of the last step.

    Raises:
        MinigptError: when the run in `directory` is another one or still going on, the disk is
            full, or the loss is no longer a number. The last checkpoint is then as it was.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, once a checkpoint is saved.
    """
    directory, processes = Path(directory), processes or Processes(torch.device(config.device))
    with alone_in(directory) if processes.rank == 0 else nullcontext():
        return _steps(Run(model, source, config, directory, processes, resume), report)


def _steps(run: Run, report: Report) -> State:
    config, processes = run.config, run.processes
    writes = processes.rank == 0
    bar = tqdm(
        initial=run.state.step, total=config.steps, desc="training", unit="step",
        disable=None if writes else True, dynamic_ncols=True,  # None: a bar on terminals only
    )  # fmt: skip
    tokens, began = config.batch_size * run.source.width, run.state.seconds
    first = run.state.step
    with (
        interrupts() as asked,
        Log(run.directory, run.state.step, config.tensorboard) if writes else nullcontext() as log,
        bar,
    ):
        while run.state.step < config.steps:
            step = run.step(asked())
            done = run.state.step
            speed = tokens * (done - first) / (run.state.seconds - began)
            bar.set_postfix(loss=f"{run.state.average:.3f}", tokens_per_s=f"{speed:,.0f}")
            bar.update()
            last = done == config.steps
            if log:
                log.append(done, loss=step.loss, norm=step.norm, rate=rate(done - 1, config),
                           tokens_per_second=speed)  # fmt: skip
            if done % config.evaluate_every == 0 or last:
                loss = run.evaluate()
                report(f"step {done}: held-out loss {loss:.4f}")
                if log:
                    log.append(done, held_out=loss)
            if config.sample_every and done % config.sample_every == 0 and not config.shard:
                if writes:
                    report(f"step {done}: {run.sample()}")
                processes.wait()
            if done % config.save_every == 0 or last or step.stop:
                run.save()
            if step.stop and not last:
                report(f"stopped after step {done}, which is saved: --resume goes on from there")
                raise KeyboardInterrupt
        if asked():  # in the last step: what is done with the result need not follow
            raise KeyboardInterrupt
    return run.state


def claim(directory: Path, resume: bool) -> Path | None:
    """The checkpoint to go on from in a run's directory, which is made when missing.

    Raises:
        MinigptError: when it cannot be written, or holds a run that is not to be resumed: better
            now than after ten minutes of training.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MinigptError(f"cannot save in {directory} ({error}): choose another place") from error
    found = checkpoint.newest(directory / CHECKPOINTS)
    if found and not resume:
        raise MinigptError(
            f"{directory} holds a run already, up to {found.name}: resume it (--resume), "
            f"choose another directory, or delete {directory / CHECKPOINTS}"
        )
    return found


@contextmanager
def alone_in(directory: Path) -> Iterator[None]:
    """While one process trains into a directory, no other does."""
    try:
        (directory / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MinigptError(f"cannot save in {directory} ({error}): choose another place") from error
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(directory / CHECKPOINTS, wait=False))
        except BlockingIOError:
            raise MinigptError(
                f"another process is training into {directory}: wait for it, stop it, or choose "
                f"another directory"
            ) from None
        yield


class Run:
    """A model in training, with all that changes beside its weights."""

    def __init__(
        self, model: GPT, source: Source, config: TrainConfig, directory: Path,
        processes: Processes, resume: bool,
    ) -> None:  # fmt: skip
        self.model, self.source, self.config = model, source, config
        self.directory, self.processes = directory, processes
        self.shares = processes.share(config.batch_size, config.accumulate)
        self.state = State()
        stored: dict[str, Tensor] = {}
        moments: dict[str, Tensor] = {}
        found = claim(directory, resume)
        if found:
            self.state, stored, moments = checkpoint.load(found, config)
            if self.state.source != source.fingerprint():
                raise MinigptError(
                    f"the data have changed since {found} was saved, needed the same to resume: "
                    f"bring them back, or train into another directory"
                )
        self.state.source = source.fingerprint()
        if config.lora_rank:
            lora.adapt(model, config.lora_on.split(","), config.lora_rank, config.lora_scale)
        lora.freeze(model, filter(None, config.freeze.split(",")))
        if stored:
            in_model = {name: moments.pop(name) for name in list(moments) if ".adam" not in name}
            self._check_restored(found, {**stored, **in_model}, moments)
            model.load_state_dict({**stored, **in_model}, strict=False)
        model.train().numerics = "fast"
        set_ops(model, TrainingOps())
        if config.precision == "float16" and config.shard:
            raise MinigptError("float16 cannot be sharded: choose precision bfloat16 or float32")
        self.network = processes.wrap(model, config.shard)
        for block in model.h:
            if config.recompute:
                block.forward = partial(recomputed, block.forward, use_reentrant=False)
            if config.compile:
                block.compile()
        self.optimizer = adamw(model, config, processes.device)
        kind = processes.device.type
        self.scaler = torch.amp.GradScaler(kind, enabled=config.precision == "float16")
        self.autocast = partial(
            torch.autocast, kind, getattr(torch, config.precision),
            enabled=config.precision != "float32",
        )  # fmt: skip
        if self.state.scaler:
            try:
                self.scaler.load_state_dict(self.state.scaler)
            except (KeyError, TypeError, ValueError, RuntimeError) as error:
                raise _not_of_this_run(found, f"scaler: {error}") from error
        for name, parameter in self.trained().items():
            for key in ("step", "exp_avg", "exp_avg_sq") if moments else ():
                value = moments[f"{name}.adam.{key}"]
                self.optimizer.state[parameter][key] = (
                    value.to(processes.device) if key == "step" else like(value, parameter)
                )

    def _check_restored(
        self, found: Path | None, weights: dict[str, Tensor], moments: dict[str, Tensor]
    ) -> None:
        """Refuse tensors of other names or shapes than this run saved, before any is used."""
        model = dict(self.model.state_dict())
        for name, tensor in weights.items():
            if name not in model or model[name].shape != tensor.shape:
                raise _not_of_this_run(found, name)
        for name, parameter in self.trained().items() if moments else ():
            for key in ("step", "exp_avg", "exp_avg_sq"):
                tensor = moments.get(f"{name}.adam.{key}", torch.empty(0, dtype=torch.bool))
                shape = () if key == "step" else parameter.shape
                if tensor.shape != shape or tensor.dtype != torch.float32:
                    raise _not_of_this_run(found, f"{name}.adam.{key}")

    def trained(self) -> dict[str, nn.Parameter]:
        return {n: p for n, p in self.model.named_parameters() if p.requires_grad}

    def step(self, stop: bool = False) -> Step:
        """One update of the weights, from all windows of one step."""
        began, config, state = time.perf_counter(), self.config, self.state
        mixed = np.random.SeedSequence((config.seed, state.step, self.processes.rank))
        torch.manual_seed(int(mixed.generate_state(1, np.uint64)[0] >> np.uint64(1)))  # of dropout
        batches = [self.source.batch(state.step, rows) for rows in self.shares]
        counted = sum(int((targets != IGNORED).sum()) for _, targets in batches)
        count, stops = self.processes.sums(counted, stop)  # over the whole batch
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * rate(state.step, config)
        loss = torch.zeros((), device=self.processes.device)
        for piece, (inputs, targets) in enumerate(batches, start=1):
            with without_exchange(self.network, piece == len(batches)):
                with self.autocast():
                    logits = self.network(inputs.to(loss.device))  # (R, T, V)
                    part = cross_entropy(logits, targets.to(loss.device)) / count
                loss += part.detach()
                # Processes average their gradients; this loss is to be added up over them.
                self.scaler.scale(part * self.processes.count).backward()
        self.scaler.unscale_(self.optimizer)
        norm = whole(clip(self.trained().values(), config.clip)).item()
        [total] = self.processes.sums(loss.item())
        if not math.isfinite(total) or not (math.isfinite(norm) or self.scaler.is_enabled()):
            raise MinigptError(
                f"the loss at step {state.step + 1} is {total} and its gradient {norm}, needed "
                f"numbers: the last checkpoint and the best model in {self.directory} are as they "
                f"were, so lower learning_rate, or warm up for longer"
            )
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        state.step += 1
        average = total if state.average is None else state.average
        state.average = average + 0.05 * (total - average)
        state.seconds += time.perf_counter() - began
        return Step(total, norm, stops > 0)

    def evaluate(self) -> float:
        """The held-out loss; the model is kept in the run's directory if it is the lowest yet."""
        state = self.state
        loss = evaluate(
            self.model, self.source.held_out(self.config.evaluate_windows), self.processes
        )
        if math.isfinite(loss) and (state.best is None or loss < state.best):
            state.best, state.best_step = loss, state.step
            tensors = self.tensors()
            if self.processes.rank == 0:
                self._keep_best(tensors)
        return loss

    def _keep_best(self, tensors: dict[str, Tensor]) -> None:
        plain = lora.merged(tensors, self.config.lora_scale)
        try:
            self.source.tokenizer.save_pretrained(self.directory)
            stored = getattr(torch, self.config.stored)
            weights.save(self.directory, self.model.config, plain, stored)
            write_text(self.directory / "train.toml", self.config.to_toml())
        except OSError as error:
            raise MinigptError(
                f"the best model so far, of step {self.state.step}, could not be written to "
                f"{self.directory} ({error}): make room and resume from the last checkpoint"
            ) from error

    def save(self) -> None:
        """A checkpoint of this step, from which `resume` goes on."""
        tensors, moments = self.tensors(), {}
        for name, parameter in self.trained().items():
            for key, value in self.optimizer.state[parameter].items():
                moments[f"{name}.adam.{key}"] = whole(value)
        self.state.scaler = self.scaler.state_dict()
        if self.processes.rank == 0:
            checkpoint.save(
                self.directory / CHECKPOINTS, self.state, self.config, self.model.config,
                lora.merged(tensors, self.config.lora_scale), {**moments, **lora.adapted(tensors)},
                self.source.tokenizer.save_pretrained,
            )  # fmt: skip
        self.processes.wait()

    def tensors(self) -> dict[str, Tensor]:
        """All weights, each whole. Every process must ask."""
        tensors = {name: whole(p) for name, p in self.model.state_dict().items()}
        if self.model.config.tie_word_embeddings:
            del tensors["lm_head.weight"]
        return tensors

    def sample(self) -> str:
        """Text as the model writes it now: it may differ at every step, and not between runs."""
        prompt, limit = self.source.prompt(), self.model.config.n_positions
        count = max(0, min(self.config.sample_tokens, limit - len(prompt)))
        with uncompiled():
            text = generate(self.model, prompt, count, temperature=0.8, seed=self.state.step)
        return self.source.tokenizer.decode([*prompt, *text.tokens])


def _not_of_this_run(found: Path | None, what: str) -> MinigptError:
    return MinigptError(
        f"{found} does not fit the model of this run ({what}): delete it, and the one before it "
        f"counts"
    )


def adamw(model: GPT, config: TrainConfig, device: torch.device) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019), with decay on matrices only."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(
        [{"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
         {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0}],
        lr=config.learning_rate, betas=(config.beta1, config.beta2),
        fused=device.type in ("cpu", "cuda"),
    )  # fmt: skip


def clip(parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
    """The norm of all gradients together; beyond the limit they shrink to it. 0: no limit."""
    return torch.nn.utils.clip_grad_norm_(list(parameters), limit or math.inf)


def rate(step: int, config: TrainConfig) -> float:
    """Learning rate as a part of the largest: linear warm-up, then cosine down, or constant."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    if config.schedule == "constant":
        return 1.0
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.final_rate + (1 - config.final_rate) * 0.5 * (1 + math.cos(math.pi * done))
