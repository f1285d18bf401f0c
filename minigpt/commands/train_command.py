"""`minigpt train`: train a model, from scratch or from a checkpoint, on one device or many."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from minigpt.commands.options import Subcommands, add_command, threads_option
from minigpt.config import GPTConfig
from minigpt.support.errors import MinigptError
from minigpt.support.wording import counted
from minigpt.training.recipes import (
    OF_DATA,
    OF_REWARDS,
    PRESETS,
    TrainConfig,
    configure,
    contradictions,
    for_rewards,
    preset,
    read_toml,
)

ABOUT = """\
Every number of a run is a field below. The defaults suit a laptop; --preset toy is how the bundled
model was made;
--preset changes some, then --config, then the command line. Under torchrun the same command trains
on many devices. With --task and --method grpo a trained model (--from) goes on learning from what
its own answers are worth, where nobody knows a right one: --task naming, for instance.
"""
EXAMPLES = (
    "minigpt train --task addition --out runs/addition",
    "minigpt train --data story.txt --preset laptop --steps 500",
)


def add(commands: Subcommands) -> None:
    command = add_command(
        commands,
        "train",
        "train a model, from scratch or from a checkpoint",
        run,
        EXAMPLES,
        description=ABOUT,
        usage="minigpt train [options]",
    )
    command.add_argument(
        "--preset",
        metavar="NAME",
        help=f"a recipe: {', '.join(PRESETS)} (default stories, or the task's)",
    )
    command.add_argument("--config", type=Path, metavar="FILE.toml", help="fields from a file")
    command.add_argument(
        "--out", type=Path, metavar="DIR", help="default: runs/ and the preset, task or data"
    )
    command.add_argument(
        "--resume",
        nargs="?",
        const=True,
        metavar="DIR",
        help="continue the run in DIR (or --out, or beside --config), with its own settings; more "
        "--steps, evaluation, device and a moved --data may be given",
    )
    command.add_argument(
        "--cache",
        type=Path,
        default=Path("runs/data"),
        metavar="DIR",
        help="where tokenized text is kept (default runs/data)",
    )
    threads_option(command)
    kinds = {"int": (int, "N"), "float": (float, "X"), "str": (str, "TEXT")}
    for f in fields(TrainConfig):
        flags = [f"--{f.name.replace('_', '-')}", *(["--from"] if f.name == "start" else [])]
        told = f.metadata["about"] + (f" (default {f.default})" if f.default != "" else "")
        about: dict[str, Any] = {
            "dest": f"field_{f.name}",
            "default": None,
            "help": told.replace("%", "%%"),
        }
        if f.type == "bool":
            command.add_argument(*flags, action=argparse.BooleanOptionalAction, **about)
        else:
            kind, metavar = kinds[str(f.type)]
            choices = f.metadata["choices"]
            about |= {"choices": choices} if choices else {"metavar": metavar}
            command.add_argument(*flags, type=kind, **about)


def run(options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from minigpt.commands.models import device_named
    from minigpt.tokenizer_settings import END_OF_TEXT
    from minigpt.training.curves import draw
    from minigpt.training.loop import claim, train
    from minigpt.training.needs import require_compiler
    from minigpt.training.parallel import processes
    from minigpt.training.sources import Problems, Text, open_source, starting_model
    from minigpt.training.summary import summarise

    def say_beside_bars(line: str) -> None:
        tqdm.write(line, file=sys.stderr)

    directory = run_directory(options)
    found = to_resume(directory) if options.resume else None
    config = configured(options, found)
    if config.method != "supervised":
        return learn_from_rewards(directory, config, bool(options.resume), say_beside_bars)
    with processes(device_named(config.device)) as ours:
        first = ours.rank == 0
        report = say_beside_bars if first else lambda line: None
        if first:
            claim(directory, bool(options.resume))
        if config.compile:
            require_compiler(ours.device)  # before text is tokenized, which may take minutes
        source = open_source(config, options.cache)
        if isinstance(source, Text):
            documents = counted(source.corpus.documents, "document")
            report(f"{config.data}: {documents} ({END_OF_TEXT} ends one inside a file)")
        model = starting_model(config, source)
        config = as_it_runs(config, model.config)
        report(f"training {sum(p.numel() for p in model.parameters()):,} parameters in {directory}")
        state = train(model, source, config, directory, ours, bool(options.resume), report)
        device, count = ours.device, ours.count
    if not first:
        return 0
    del model
    picture = draw(directory)
    accuracy = source.task.accuracy if isinstance(source, Problems) else None
    print(summarise(directory, source, config, state, device, accuracy, count))
    print(f"saved {directory}" + (f", with {picture.name}" if picture else ""))
    return 0


def learn_from_rewards(
    directory: Path, config: TrainConfig, resume: bool, report: Callable[[str], object]
) -> int:
    """Train a model by what its own answers to a task's problems are worth.

    Raises:
        MinigptError: without a task or a model to start from.
    """
    from minigpt.training.answers import Questions
    from minigpt.training.curves import draw_rewards, read
    from minigpt.training.loop import claim
    from minigpt.training.policy import improve
    from minigpt.training.sources import open_source, starting_model
    from minigpt.training.tasks import TASKS

    for name, option, needed in (
        ("task", "--task", f"one of {', '.join(TASKS)}, which can judge an answer"),
        ("start", "--from", "a model that is right at least now and then"),
    ):
        if not getattr(config, name):
            raise MinigptError(f"method {config.method} needs {option}: {needed}")
    claim(directory, resume)
    model = starting_model(config, open_source(config, ""))
    config = as_it_runs(config, model.config)
    report(f"training {sum(p.numel() for p in model.parameters()):,} parameters in {directory}")
    questions = Questions.of(TASKS[config.task])
    state = improve(model, questions, config, directory, resume, report)
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
    picture = draw_rewards(directory)
    print(f"saved {directory}" + (f", with {picture.name}" if picture else ""))
    return 0


def run_directory(options: argparse.Namespace) -> Path:
    """The directory of the run."""
    if isinstance(options.resume, str):
        if options.out and options.out != Path(options.resume):
            raise MinigptError(
                f"--resume names {options.resume} and --out {options.out}: leave out --out"
            )
        return Path(options.resume)
    if options.out:
        return Path(options.out)
    if options.resume and options.config:
        return Path(options.config).parent
    data = Path(options.field_data or "stories").stem
    method = options.field_method or "supervised"
    how = "" if method == "supervised" else f"-{method}"  # beside the run that it starts from
    return Path("runs", (options.preset or options.field_task or data) + how)


def to_resume(directory: Path) -> Path:
    """The checkpoint to go on from."""
    from minigpt.training.loop import CHECKPOINTS
    from minigpt.training.state import newest_checkpoint

    found = newest_checkpoint(directory / CHECKPOINTS)
    if found is None:
        raise MinigptError(
            f"{directory} holds no checkpoint, so there is nothing to resume: name the run's "
            f"directory (--resume DIR), or leave --resume out to start anew"
        )
    return found


def configured(options: argparse.Namespace, found: Path | None = None) -> TrainConfig:
    """All fields: of the preset (or the task's own), then the file, then the command line; of a
    run to resume, its own and then the command line.

    Raises:
        MinigptError: for flags that would be ignored, or with which the run cannot be resumed.
    """
    given = {
        f.name: value
        for f in fields(TrainConfig)
        if (value := getattr(options, f"field_{f.name}")) is not None
    }
    if found is None or options.preset:
        config = preset(options.preset or options.field_task or "stories")
    else:
        from minigpt.training.state import read_state

        _, config = read_state(found)
    file = read_toml(options.config) if options.config else {}
    method = given.get("method", file.get("method", "supervised"))
    if method != "supervised" and found is None:
        config = for_rewards(config, method)
    if options.config:
        config = configure(config, file, str(options.config))
    config = configure(config, given, "the command line")
    if found is not None:
        from minigpt.training.state import check_same_run, read_state

        check_same_run(found, *read_state(found), config)
    ignored = contradictions(config, given)
    if ignored and found is None:
        why = f"task {config.task}" if ignored[0] in OF_DATA and config.task else "--from"
        why = "method supervised" if ignored[0] in OF_REWARDS else why
        named = ", ".join(f"--{name.replace('_', '-')}" for name in ignored)
        raise MinigptError(f"{named} would be ignored, as {why} says it already: leave it out")
    return config


def as_it_runs(config: TrainConfig, shape: GPTConfig) -> TrainConfig:
    """The same, with what a checkpoint or a task has decided: this is recorded."""
    if config.start:
        config = replace(
            config,
            n_layer=shape.n_layer,
            n_head=shape.n_head,
            n_embd=shape.n_embd,
            initializer_range=shape.initializer_range,
            tokenizer="",
        )
    return replace(config, data="", tokenizer="") if config.task else config
