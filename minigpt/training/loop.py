"""The training loop, from the first step to the best checkpoint.

Everything that is random in a step (its windows, its dropout) is a function of the seed and the
step's number, so a run that is killed and resumed goes on bit for bit as if nothing had happened.
The numbers of a run are in `recipes.py`, its data in `sources.py`, its checkpoints in `state.py`;
what several processes share is in `parallel.py`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.utils.checkpoint import checkpoint as recomputed

from minigpt.checkpoint import weights
from minigpt.model import GPT
from minigpt.numerics.base import set_ops
from minigpt.numerics.half_precision import TrainingOps
from minigpt.support.checks import device_named
from minigpt.support.errors import MinigptError
from minigpt.support.files import write_text
from minigpt.training import lora
from minigpt.training.chart import told
from minigpt.training.curves import Log, read
from minigpt.training.data import IGNORED
from minigpt.training.display import Report, display_for
from minigpt.training.interruption import interrupts
from minigpt.training.losses import Evaluation, assess, cross_entropy
from minigpt.training.needs import require_compiler, require_room
from minigpt.training.parallel import Processes, gather, without_exchange
from minigpt.training.places import CHECKPOINTS, RECIPE, alone_in, claim
from minigpt.training.recipes import TrainConfig
from minigpt.training.sources import Beginning, Source
from minigpt.training.state import (
    State,
    gather_moments,
    load_checkpoint,
    save_checkpoint,
    trained,
)
from minigpt.training.writing import continue_beginning


class Step(NamedTuple):
    """What one step tells."""

    loss: float  # nats per token, before the update, over the whole batch
    norm: float  # of all gradients together, before clipping
    stop: bool  # some process was asked to
    seconds: float


def train(
    model: GPT,
    source: Source,
    config: TrainConfig,
    directory: str | Path,
    processes: Processes | None = None,
    resume: bool = False,
    report: Report = lambda line: None,
    evaluated: Callable[[], object] = lambda: None,
    timed: bool = False,
) -> State:
    """Train `model`: the best weights go to `directory`, checkpoints into a folder there.

    Args:
        model: where to start; with `resume` and a checkpoint there, only its shape counts.
        processes: those that train together; None: this one.
        resume: continue from the newest checkpoint in `directory`, if there is one.
        report: given a line of text at each evaluation, the first before the first step, and each
            sample.
        evaluated: called after each evaluation, when the log has its figures.
        timed: put the figures of the last step into the lines too, its speed among them.

    Returns:
        How far it got. The model has the weights of the last step.

    Raises:
        MinigptError: when the run in `directory` is another one or still going on, the disk is
            full, or the loss is no longer a number. The last checkpoint is then as it was.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, once a checkpoint is saved.
    """
    directory, processes = Path(directory), processes or Processes(device_named(config.device))
    writes = processes.rank == 0
    with ExitStack() as stack:
        if writes:
            stack.enter_context(alone_in(directory))
        run = Run(model, source, config, directory, processes, resume)
        first = run.state.step
        asked = stack.enter_context(interrupts())
        log = stack.enter_context(Log(directory, first, config.tensorboard)) if writes else None
        rows = read(directory) if writes else []
        display = stack.enter_context(
            closing(display_for(first, config.steps, rows, report, writes))
        )

        def tell(step: Step | None) -> None:
            """Evaluate; log and say what came out."""
            found, done = run.evaluate(), run.state.step
            row = {"held_out": found.loss}
            if source.bytes_per_token:
                row["bits_per_byte"] = found.loss / math.log(2) / source.bytes_per_token
            else:
                row["solved"] = found.right
            if log:
                log.append(done, **row)
            display.evaluated({"step": done, **row})
            after = {} if step is None else {"loss": run.state.average}
            if timed and step is not None:
                after |= run.figures(step)
            display.say(f"step {done}: {told({**row, **after})}")
            evaluated()

        if first == 0:
            tell(None)
        while run.state.step < config.steps:
            step = run.step(asked())
            done = run.state.step
            last = done == config.steps
            row = {"loss": step.loss, **run.figures(step)}
            if log:
                log.append(done, **row)
            display.step({"step": done, **row}, run.state.average or step.loss)
            if done % config.evaluate_every == 0 or last:
                tell(step)
            if config.sample_every and done % config.sample_every == 0 and not config.shard:
                if writes:
                    try:
                        display.say(f"step {done}: {run.sample()}")
                    except Exception as error:  # which is no reason to end a run
                        display.say(f"step {done}: no sample, and training goes on: {error!r}")
                processes.wait()
            if done % config.save_every == 0 or last or step.stop:
                run.save()
            if step.stop and not last:
                display.say(
                    f"stopped after step {done}, which is saved: --resume goes on from there"
                )
                raise KeyboardInterrupt
        if asked():  # in the last step: what is done with the result need not follow
            raise KeyboardInterrupt
        return run.state


class Run:
    """A model in training, with all that changes beside its weights."""

    def __init__(
        self,
        model: GPT,
        source: Source,
        config: TrainConfig,
        directory: Path,
        processes: Processes,
        resume: bool,
    ) -> None:
        self.model, self.source, self.config = model, source, config
        self.directory, self.processes = directory, processes
        self.shares = processes.share(config.batch_size, config.accumulate)

        # Where to begin: at step 0, or where a checkpoint of the same run on the same data ended.
        found, data = claim(directory, resume), source.fingerprint()
        saved = load_checkpoint(found, config) if found else None
        self.state = saved.state if saved else State(source=data)
        if self.state.source != data:
            raise MinigptError(
                f"the data have changed since {found} was saved, needed the same to resume: "
                f"bring them back, or train into another directory"
            )

        self.state.threads = torch.get_num_threads()

        lora.limit(model, config)
        if saved:
            saved.restore_weights(model)

        # How it is computed: on which devices, in what precision, compiled or not.
        if config.compile:
            require_compiler(processes.device)
        require_room(model, processes.device, processes.count if config.shard else 1)
        model.train().numerics = "fast"
        set_ops(model, TrainingOps())
        self.network = processes.wrap(model, config.shard)
        for block in model.h:
            if config.recompute:
                block.forward = partial(recomputed, block.forward, use_reentrant=False)
            if config.compile:
                block.compile()
        # The loss reads logits in half precision as often as its steps are many, unless compiled.
        self.loss = torch.compile(cross_entropy) if config.compile else cross_entropy
        kind, dtype = processes.device.type, getattr(torch, config.precision)
        self.autocast = partial(torch.autocast, kind, dtype, enabled=dtype != torch.float32)
        self.scaler = torch.amp.GradScaler(kind, enabled=dtype == torch.float16)

        self.optimizer = adamw(model, config, processes.device)
        if saved:
            saved.restore_optimizer(model, self.optimizer, self.scaler)

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
                    part = self.loss(logits, targets.to(loss.device)) / count
                loss += part.detach()
                # Processes average their gradients; this loss is to be added up over them.
                self.scaler.scale(part * self.processes.count).backward()
        self.scaler.unscale_(self.optimizer)
        limit = config.clip or math.inf
        norm_before = gather(clip_grad_norm_(trained(self.model).values(), limit))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        # Looking at numbers waits for the device, so it comes when all has been asked for.
        norm = norm_before.item()
        [total] = self.processes.sums(loss.item())
        if not math.isfinite(total) or not (math.isfinite(norm) or self.scaler.is_enabled()):
            raise MinigptError(
                f"the loss at step {state.step + 1} is {total} and its gradient {norm}, needed "
                f"numbers: the last checkpoint and the best model in {self.directory} are as they "
                f"were, so lower learning_rate, or warm up for longer"
            )
        state.step += 1
        average = total if state.average is None else state.average
        state.average = average + 0.05 * (total - average)
        seconds = time.perf_counter() - began
        state.seconds += seconds
        return Step(total, norm, stops > 0, seconds)

    def figures(self, step: Step) -> dict[str, float]:
        """What the log says of the step that was taken last, besides its loss."""
        config = self.config
        return {
            "norm": step.norm,
            "learning_rate": config.learning_rate * rate(self.state.step - 1, config),
            "tokens_per_second": config.batch_size * self.source.width / step.seconds,
        }

    def evaluate(self) -> Evaluation:
        """On held-out text; the model is kept in the run's directory if its loss is the lowest."""
        state = self.state
        found = assess(
            self.model, self.source.held_out(self.config.evaluate_windows), self.processes
        )
        loss = found.loss
        if math.isfinite(loss) and (state.best is None or loss < state.best):
            state.best, state.best_step = loss, state.step
            tensors = self.tensors()
            if self.processes.rank == 0:
                self._keep_best(tensors)
        return found

    def _keep_best(self, tensors: dict[str, Tensor]) -> None:
        plain = lora.merged(tensors, self.config.lora_scale)
        try:
            self.source.tokenizer.save_pretrained(self.directory)
            stored = getattr(torch, self.config.stored)
            weights.save(self.directory, self.model.config, plain, stored)
            write_text(self.directory / RECIPE, self.config.to_toml())
        except OSError as error:
            raise MinigptError(
                f"the best model so far, of step {self.state.step}, could not be written to "
                f"{self.directory} ({error}): make room and resume from the last checkpoint"
            ) from error

    def save(self) -> None:
        """A checkpoint of this step, from which `resume` goes on."""
        tensors = self.tensors()
        moments = gather_moments(self.model, self.optimizer)
        self.state.scaler = self.scaler.state_dict()
        if self.processes.rank == 0:
            save_checkpoint(
                self.directory / CHECKPOINTS,
                self.state,
                self.config,
                self.model.config,
                model=lora.merged(tensors, self.config.lora_scale),
                tensors={**moments, **lora.adapted(tensors)},
                save_tokenizer=self.source.tokenizer.save_pretrained,
            )
        self.processes.wait()

    def tensors(self) -> dict[str, Tensor]:
        """All weights, each whole. Every process must ask."""
        tensors = {name: gather(p) for name, p in self.model.state_dict().items()}
        if self.model.config.tie_word_embeddings:
            del tensors["lm_head.weight"]
        return tensors

    def sample(self) -> str:
        """Text as the model writes it now: it may differ at every step, and not between runs."""
        source, prompt = self.source, self.source.prompt()
        wanted = "" if source.bytes_per_token else "an answer"
        text = continue_beginning(
            self.model,
            source,
            Beginning(prompt, wanted),
            self.config.sample_tokens,
            self.state.step,
        )
        return source.tokenizer.decode(prompt) + text


def adamw(model: GPT, config: TrainConfig, device: torch.device) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019), with decay on matrices only."""
    parameters = trained(model).values()
    matrices = [p for p in parameters if p.ndim >= 2]
    others = [p for p in parameters if p.ndim < 2]
    groups: list[dict[str, Any]] = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        groups,
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        weight_decay=config.weight_decay,
        fused=device.type in ("cpu", "cuda"),
    )


def rate(step: int, config: TrainConfig) -> float:
    """Learning rate as a part of the largest: linear warm-up, then cosine down, or constant."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    if config.schedule == "constant":
        return 1.0
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.final_rate + (1 - config.final_rate) * 0.5 * (1 + math.cos(math.pi * done))
