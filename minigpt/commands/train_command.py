"""`minigpt train`: train a model, from scratch or from a checkpoint, on one device or many."""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from minigpt.commands.options import Subcommands, add_command, threads_option
from minigpt.training.recipes import PRESETS, TrainConfig, configure, preset, read_toml

ABOUT = """\
Every number of a run is a field below. The defaults suit a laptop; --preset toy is how the bundled
model was made;
--preset changes some, then --config, then the command line. Under torchrun the same command trains
on many devices.
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
        "--resume", action="store_true", help="continue the run in --out, if there is one"
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
    from minigpt.training.curves import draw
    from minigpt.training.loop import claim, train
    from minigpt.training.needs import require_compiler
    from minigpt.training.parallel import processes
    from minigpt.training.sources import Problems, open_source, starting_model
    from minigpt.training.summary import summarise

    def say_beside_bars(line: str) -> None:
        tqdm.write(line, file=sys.stderr)

    config = configured(options)
    name = options.preset or config.task or Path(options.field_data or "stories").stem
    directory = options.out or Path("runs", name)
    with processes(device_named(config.device)) as ours:
        first = ours.rank == 0
        report = say_beside_bars if first else lambda line: None
        if first:
            claim(directory, options.resume)
        if config.compile:
            require_compiler(ours.device)  # before text is tokenized, which may take minutes
        source = open_source(config, options.cache)
        model = starting_model(config, source)
        report(f"training {sum(p.numel() for p in model.parameters()):,} parameters in {directory}")
        state = train(model, source, config, directory, ours, options.resume, report)
        device, count = ours.device, ours.count
    if not first:
        return 0
    del model
    picture = draw(directory)
    accuracy = source.task.accuracy if isinstance(source, Problems) else None
    print(summarise(directory, source, config, state, device, accuracy, count))
    print(f"saved {directory}" + (f", with {picture.name}" if picture else ""))
    return 0


def configured(options: argparse.Namespace) -> TrainConfig:
    """All fields: of the preset (or the task's own), then the file, then the command line."""
    config = preset(options.preset or options.field_task or "stories")
    if options.config:
        config = configure(config, read_toml(options.config), str(options.config))
    given = {
        f.name: value
        for f in fields(TrainConfig)
        if (value := getattr(options, f"field_{f.name}")) is not None
    }
    return configure(config, given, "the command line")
