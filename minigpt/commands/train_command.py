"""`minigpt train`: train a model, from scratch or from a checkpoint, on one device or many."""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from minigpt.commands.options import Subcommands, add_command, threads_option
from minigpt.commands.run_story import choose_threads, tell_results, told_of_data
from minigpt.config import GPTConfig
from minigpt.support.errors import MinigptError
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
        "--eval",
        nargs="?",
        const=True,
        metavar="DIR",
        help="train nothing: measure the best model of the run in DIR (or --out), or the one of "
        "--from, on all that is held out, with intervals of 95%%",
    )
    command.add_argument(
        "--cache",
        type=Path,
        default=Path("runs/data"),
        metavar="DIR",
        help="where tokenized text is kept (default runs/data)",
    )
    threads_option(
        command,
        "CPU threads (default: as many as prove fastest, where the model is small; a resumed run "
        "keeps its own)",
    )
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
            if f.name == "data":
                about["nargs"] = "+"
            about |= {"choices": choices} if choices else {"metavar": metavar}
            command.add_argument(*flags, type=kind, **about)


def run(options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from minigpt.commands.models import device_named, one_thread_if_small
    from minigpt.commands.reward_story import able_to_answer, learn_from_rewards
    from minigpt.training.curves import Artist, draw
    from minigpt.training.loop import train
    from minigpt.training.lora import trainable
    from minigpt.training.needs import require_compiler
    from minigpt.training.parallel import processes
    from minigpt.training.places import claim
    from minigpt.training.sources import Mixture, Text, open_source, starting_model

    def say_beside_bars(line: str) -> None:
        tqdm.write(line, file=sys.stderr)

    if options.eval:
        return evaluate_only(options)
    directory = run_directory(options)
    found = to_resume(directory) if options.resume else None
    config = configured(options, found)
    if config.method != "supervised":
        able_to_answer(config)
        claim(directory, bool(options.resume))
        model = starting_model(config, open_source(config, ""))
        one_thread_if_small(model, options.threads)
        config = as_it_runs(config, model.config)
        return learn_from_rewards(model, directory, config, bool(options.resume), say_beside_bars)
    with processes(device_named(config.device)) as ours:
        first = ours.rank == 0
        report = say_beside_bars if first else lambda line: None
        if first:
            claim(directory, bool(options.resume))
        if config.compile:
            require_compiler(ours.device)  # before text is tokenized, which may take minutes
        source = open_source(config, options.cache)
        if isinstance(source, (Text, Mixture)):
            for line in told_of_data(config, source):
                report(line)
        model = starting_model(config, source)
        config = as_it_runs(config, model.config)
        count = sum(p.numel() for p in model.parameters())
        changing = trainable(model.config, config)
        some = f"{changing:,} of " if changing < count else ""
        report(f"training {some}{count:,} parameters in {directory}")
        choose_threads(options.threads, found, model, source, config, ours, report)
        artist = Artist(directory) if first else None
        try:
            state = train(
                model, source, config, directory, ours, bool(options.resume), report,
                artist or (lambda: None), timed=True,
            )  # fmt: skip
        finally:
            if artist and artist.began:
                draw(directory)
        device, count = ours.device, ours.count
    if not first:
        return 0
    del model
    tell_results(directory, source, config, state, device, count)
    return 0


def evaluate_only(options: argparse.Namespace) -> int:
    """Measure a model on what its run, or the command line, holds out."""
    from minigpt.commands.models import device_named, one_thread_if_small
    from minigpt.model import GPT
    from minigpt.training.measurement import measure_model
    from minigpt.training.run_table import read_run
    from minigpt.training.sources import open_source

    place = options.eval if isinstance(options.eval, str) else options.out
    if place is None and not options.field_start:
        raise MinigptError(
            "--eval needs a model to measure: name a run's directory (--eval DIR), or a checkpoint "
            "and its data (--from SOURCE --data FILE --eval)"
        )
    if place is None:
        config = configured(options)
        model_at: str | Path = config.start
    else:
        found, model_at = read_run(place), Path(place)
        if found.recipe is None:
            raise MinigptError(f"{place} holds no model yet: wait for the run's first evaluation")
        config = configure(found.recipe, given_fields(options), "the command line")
        if config.start and not config.task:  # its tokenizer lies beside the best model, too
            config = replace(config, start=str(place))
    source = open_source(config, options.cache)
    model = GPT.from_pretrained(model_at, device=device_named(config.device), numerics="fast")
    one_thread_if_small(model, options.threads)
    print(measure_model(model, source))
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
    data = Path((options.field_data or ["stories"])[0]).stem
    method = options.field_method or "supervised"
    how = "" if method == "supervised" else f"-{method}"  # beside the run that it starts from
    return Path("runs", (options.preset or options.field_task or data) + how)


def to_resume(directory: Path) -> Path:
    """The checkpoint to go on from."""
    from minigpt.training.places import CHECKPOINTS
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
    given = given_fields(options)
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


def given_fields(options: argparse.Namespace) -> dict[str, Any]:
    """Those that were set on the command line."""
    return {
        f.name: "\n".join(value) if isinstance(value, list) else value
        for f in fields(TrainConfig)
        if (value := getattr(options, f"field_{f.name}")) is not None
    }


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
