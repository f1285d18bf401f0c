"""`minigpt train --method grpo`: a run that learns from rewards, and what is told around it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from minigpt.commands.run_story import tell_next, tell_saved
from minigpt.model import GPT
from minigpt.support.errors import MinigptError
from minigpt.training.recipes import TrainConfig


def able_to_answer(config: TrainConfig) -> None:
    """Refuse to begin without a task or a model to start from."""
    from minigpt.training.tasks import TASKS

    for name, option, needed in (
        ("task", "--task", f"one of {', '.join(TASKS)}, which can judge an answer"),
        ("start", "--from", "a model that is right at least now and then"),
    ):
        if not getattr(config, name):
            raise MinigptError(f"method {config.method} needs {option}: {needed}")


def learn_from_rewards(
    model: GPT,
    directory: Path,
    config: TrainConfig,
    resume: bool,
    report: Callable[[str], object],
) -> int:
    """Train a model by what its own answers to a task's problems are worth."""
    from minigpt.training.answers import Questions
    from minigpt.training.curves import Artist, draw, read
    from minigpt.training.display import Bar
    from minigpt.training.policy import PolicyRun, improve
    from minigpt.training.tasks import TASKS

    report(f"training {sum(p.numel() for p in model.parameters()):,} parameters in {directory}")
    questions, artist = Questions.of(TASKS[config.task]), Artist(directory)
    bars: list[Bar] = []

    class Watched(PolicyRun):
        """Shows how far it got, and draws what the log has."""

        def step(self, stop: bool = False) -> Any:
            if not bars:
                bars.append(Bar(self.state.step, config.steps, report, average="reward"))
            done = super().step(stop)
            bars[0].step(self.told, self.state.average or 0.0)
            artist()
            return done

    try:
        state = improve(model, questions, config, directory, resume, report, Watched)
    finally:
        for bar in bars:
            bar.close()
        if artist.began:
            draw(directory)
    rows = read(directory)
    solved = {row["step"]: row["solved"] for row in rows if "solved" in row}
    print(f"best model         step {state.best_step:,}")
    best = solved.get(state.best_step, 0.0)
    print(
        f"solved             {best:.1%} of unseen problems, {solved.get(0, 0.0):.1%} at the start"
    )
    off = max((row.get("ratio_error", 0.0) for row in rows), default=0.0)
    agree = "equal to the bit in every batch" if off == 0 else f"ratio off by up to {off:.2g}"
    print(f"sampler, trainer   {agree} ({config.numerics} numerics)")
    print(f"training           {state.seconds:,.0f} s")
    tell_saved(directory)
    tell_next(directory, questions.unseen[0][0], config.steps)
    return 0
