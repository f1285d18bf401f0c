"""Learning from rewards: answers are sampled, judged, and the better ones made likelier.

Group-relative policy optimisation (GRPO, Shao et al. 2024): several answers to each problem, each
as good as its reward above the group's mean, and PPO's clipped objective (Schulman et al. 2017).
REINFORCE (Williams 1992) is the same with one line less.

The theory wants the sampler's probabilities in the trainer's hands. The sampler decodes with a
cache, the trainer computes whole answers at once, so nearly everywhere their last bits differ; with
exact numerics they do not, and in the first update of a batch the ratio of the two is 1, no more
and no less. What a checkpoint is, and how a run is resumed, is the training loop's (`loop.py`).
"""

from __future__ import annotations

import math
import random
import time
from contextlib import ExitStack
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from minigpt.model import GPT
from minigpt.support.checks import device_named
from minigpt.support.errors import MinigptError
from minigpt.support.modes import evaluating
from minigpt.training.answers import SHOWN, Answers, Questions, recomputed, sample
from minigpt.training.curves import Log
from minigpt.training.data import draws
from minigpt.training.display import Report
from minigpt.training.interruption import interrupts
from minigpt.training.loop import Run, rate
from minigpt.training.parallel import Processes
from minigpt.training.places import alone_in
from minigpt.training.recipes import TrainConfig
from minigpt.training.state import State, trained


def advantages(rewards: Tensor, normalised: bool) -> Tensor:
    """How much better each answer is than its group: (P, G) -> (P, G), in standard deviations."""
    above = rewards - rewards.mean(1, keepdim=True)
    return above / (rewards.std(1, correction=0, keepdim=True) + 1e-4) if normalised else above


def objective(new: Tensor, old: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """What is to grow, for each token: (M,), (M,), (M,) -> (M,).

    The ratio says how much likelier the token has become since it was sampled. Beyond 1 ± clip
    there is nothing more to gain, so one batch serves several updates without running away.
    """
    ratio = (new - old).exp()
    return torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)


def divergence(difference: Tensor) -> Tensor:
    """KL(p || q) from tokens that p drew, estimated from log q - log p; never below 0, and 0 only
    where all are equal (Schulman 2020)."""
    return (difference.expm1() - difference).mean()


class PolicyRun(Run):
    """A run that learns from rewards. Answers to every problem come from the model itself."""

    def __init__(
        self,
        model: GPT,
        source: Questions,
        config: TrainConfig,
        directory: Path,
        processes: Processes,
        resume: bool,
    ) -> None:
        _require(config, source, model)
        reference = deepcopy(model) if config.kl else None
        super().__init__(model, source, config, directory, processes, resume)  # type: ignore[arg-type]  # no windows
        self.questions, self.told = source, dict[str, float]()
        model.eval().numerics = config.numerics
        if reference is not None:
            reference.to(model.device).eval().requires_grad_(False).numerics = config.numerics
        self.reference = reference

    def sampler(self) -> GPT:
        """The model that answers: the one in training."""
        return self.model

    def step(self, stop: bool = False) -> Any:
        """Sample and judge one batch of answers, and update the weights some times with it."""
        began, config, state, ask = time.perf_counter(), self.config, self.state, self.questions
        rows = draws(config.seed, state.step, range(config.batch_size)).tolist()
        problems = [ask.draw(random.Random(row)) for row in rows[:: config.group]]
        seeds = [row >> 1 for row in rows]
        answers = sample(self.sampler(), ask, [q for q, _ in problems], seeds, config.group)
        rewards = ask.judged([p for p in problems for _ in range(config.group)], answers)  # (N,)
        above = advantages(rewards.view(-1, config.group), config.method == "grpo").flatten()
        advantage = above.repeat_interleave(answers.sampled.sum(1))  # (M,)
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate * rate(state.step, config)
        first, *later = [self.update(answers, advantage) for _ in range(config.updates)]
        clipped = [told.pop("clipped") for told in (first, *later)]
        state.step += 1
        state.average = rewards.mean().item()
        seconds, count = time.perf_counter() - began, len(advantage)
        state.seconds += seconds
        self.told = {
            "reward": state.average, **first, "clipped": sum(clipped) / config.updates,
            "length": count / len(rewards), "tokens_per_second": count / seconds,
        }  # fmt: skip
        return stop

    def update(self, answers: Answers, advantage: Tensor) -> dict[str, float]:
        """One update of the weights; what was found before it."""
        config, old = self.config, answers.log_probabilities
        new = recomputed(self.model, answers)  # (M,)
        gain = objective(new, old, advantage, config.clip_ratio)
        if config.method == "reinforce":
            gain = new * advantage
        loss, found = -gain.mean(), new.detach() - old
        off = (found.exp() - 1).abs()
        told = {
            "ratio_error": off.max().item(), "sampler_kl": divergence(found.double()).item(),
            "clipped": (off > config.clip_ratio).float().mean().item(),
        }  # fmt: skip
        if self.reference is not None:
            with torch.no_grad():
                theirs = recomputed(self.reference, answers)
            away = divergence(theirs - new)
            loss, told["kl"] = loss + config.kl * away, away.item()
        loss.backward()
        norm = clip_grad_norm_(trained(self.model).values(), config.clip or math.inf).item()
        if not math.isfinite(loss.item()) or not math.isfinite(norm):
            raise MinigptError(
                f"the loss at step {self.state.step + 1} is {loss.item()} and its gradient {norm}, "
                f"needed numbers: the last checkpoint is as it was, so lower learning_rate"
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        return {"loss": loss.item(), "norm": norm, **told}

    def solved(self, model: GPT | None = None) -> float:
        """The part of the unseen problems whose answer, sampled as in training, has reward 1."""
        unseen = list(self.questions.unseen)
        with evaluating(model or self.model):
            seeds = range(SHOWN, SHOWN + len(unseen))
            answers = sample(model or self.model, self.questions, [q for q, _ in unseen], seeds, 1)
        return (self.questions.judged(unseen, answers) >= 1).float().mean().item()

    def evaluate(self) -> Any:
        """Measure on unseen problems; the model is kept if none was better yet."""
        solved, state = self.solved(), self.state
        if state.best is None or 1 - solved < state.best:
            state.best, state.best_step = 1 - solved, state.step
            self._keep_best(self.tensors())
        return solved


def improve(
    model: GPT,
    questions: Questions,
    config: TrainConfig,
    directory: str | Path,
    resume: bool = False,
    report: Report = lambda line: None,
    run_class: type[PolicyRun] = PolicyRun,
) -> State:
    """Train `model` by its rewards: log, checkpoints and the best model are as those of `train`.

    Args:
        model: where to start, and what `config.kl` keeps close to; to resume, the same again.
        questions: `Questions.of(task)`, or your own with a reward of your own.
        config: with method "grpo" or "reinforce".
        resume: continue from the newest checkpoint in `directory`, to the bit.
        report: given a line at each evaluation.
        run_class: to change what a run does, such as who samples.

    Raises:
        MinigptError: as `train`; and for settings that the method cannot have.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, once a checkpoint is saved.
    """
    directory, processes = Path(directory), Processes(device_named(config.device))
    with ExitStack() as stack:
        stack.enter_context(alone_in(directory))
        run = run_class(model, questions, config, directory, processes, resume)
        state, asked = run.state, stack.enter_context(interrupts())
        log = stack.enter_context(Log(directory, state.step, config.tensorboard))

        def measure() -> None:
            solved = run.evaluate()
            log.append(state.step, solved=solved)
            report(f"step {state.step}: {_in_words(solved, run.told)}")

        if state.step == 0:
            measure()
        while state.step < config.steps:
            stop = bool(run.step(asked()))
            log.append(state.step, **run.told)
            last = state.step == config.steps
            if state.step % config.evaluate_every == 0 or last:
                measure()
            if state.step % config.save_every == 0 or last or stop:
                run.save()
            if stop:
                if not last:
                    report(f"stopped after step {state.step}, which is saved: --resume goes on")
                raise KeyboardInterrupt
        return state


def _in_words(solved: float, told: dict[str, float]) -> str:
    line = f"solves {solved:.1%} of unseen problems"
    if not told:
        return line
    return (
        f"{line}, reward {told['reward']:.3f}; sampler and trainer: ratio off by "
        f"{told['ratio_error']:.3g}, KL {told['sampler_kl']:.3g}; {told['clipped']:.1%} clipped"
    )


def _require(config: TrainConfig, questions: Questions, model: GPT) -> None:
    """Refuse what would be ignored, or make the sampler another model than the trainer."""
    if config.method not in ("grpo", "reinforce"):
        raise MinigptError(f"method is {config.method!r}, needed grpo or reinforce")
    for name, needed in (
        ("dropout", 0.0), ("precision", "float32"), ("compile", False), ("shard", False),
        ("accumulate", 1),
    ):  # fmt: skip
        if getattr(config, name) != needed:
            raise MinigptError(
                f"{name} is {getattr(config, name)}, needed {needed} with method {config.method}: "
                f"the sampler would be another model than the trainer, or nothing would change"
            )
    if config.method == "reinforce" and config.updates != 1:
        raise MinigptError(
            f"updates is {config.updates}, needed 1 with method reinforce: only grpo, with its "
            f"clipped ratio, can use a batch again"
        )
    if config.batch_size % config.group:
        raise MinigptError(
            f"batch_size is {config.batch_size} answers, needed a multiple of group "
            f"({config.group}): so many answers to each problem"
        )
    if model.config.n_positions < questions.width - 1:
        raise MinigptError(
            f"the model's context is {model.config.n_positions}, needed {questions.width - 1} for "
            f"a question and its answer: start from another model"
        )
