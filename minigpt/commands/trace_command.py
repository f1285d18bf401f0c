"""`minigpt trace`: a page on which every step of decoding can be looked at, or taken."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from minigpt.commands.choosing import SAMPLING, sampling_options
from minigpt.commands.generate_command import prompt_option, read_prompt
from minigpt.commands.options import (
    Subcommands,
    add_command,
    model_options,
    say,
    seed_option,
    special_option,
    status,
)
from minigpt.support.errors import MinigptError
from minigpt.support.wording import counted

EXAMPLES = (
    'minigpt trace --prompt "The fox" --max-new-tokens 10 --out fox.html',
    "minigpt trace --live --out page.html",
)


def add(commands: Subcommands) -> None:
    about = "write a page that shows decoding step by step, cached beside uncached"
    command = add_command(commands, "trace", about, run, EXAMPLES)
    model_options(command)
    prompt_option(command)
    special_option(command)
    command.add_argument(
        "--max-new-tokens", type=int, default=40, metavar="N", help="steps (default 40)"
    )
    sampling_options(command)
    seed_option(command)
    command.add_argument(
        "--live",
        action="store_true",
        help="put a small model itself into the page: type prompts, choose tokens, break the "
        "cache; prompt, temperature and seed are what it begins with",
    )
    command.add_argument(
        "--out",
        type=Path,
        default=Path("trace.html"),
        metavar="FILE",
        help="the page, one file that needs no network (default trace.html)",
    )


def run(options: argparse.Namespace) -> int:
    place = options.out.resolve().parent
    if not os.access(place, os.W_OK) or options.out.is_dir():  # better now than after the text
        raise MinigptError(
            f"--out cannot be written to {options.out}: choose a file in a directory that is there "
            f"and yours"
        )
    return live(options) if options.live else record(options)


def live(options: argparse.Namespace) -> int:
    if options.special:
        raise MinigptError("--special is not for --live: leave it out")
    unset = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
    unset |= {"no_repeat_ngram_size": 0, "min_new_tokens": 0}
    for name in SAMPLING:
        if name != "temperature" and getattr(options, name) != unset.get(name):
            raise MinigptError(
                f"--{name.replace('_', '-')} is not for --live, whose page draws by temperature "
                f"alone: leave it out"
            )

    from minigpt.commands.models import load, load_tokenizer
    from minigpt.study.pages import PROMPT, write_live

    prompt = PROMPT if options.prompt is None else options.prompt
    model = load(options)
    tokenizer = load_tokenizer(options.model)
    write_live(model, tokenizer, options.out, prompt, options.temperature, options.seed)
    say(f"{options.out.stat().st_size / 10**6:.1f} MB; open it in a browser")
    print(options.out)
    return 0


def record(options: argparse.Namespace) -> int:
    prompt = read_prompt() if options.prompt is None else options.prompt
    if not prompt:
        say("the prompt is empty: starting from the end-of-text token")

    from minigpt.commands.models import load, load_tokenizer
    from minigpt.study.tracing import trace, write_html

    model = load(options)
    tokenizer = load_tokenizer(options.model)
    settings = {name: getattr(options, name) for name in SAMPLING}
    result = trace(
        model,
        tokenizer,
        tokenizer.encode(prompt, options.special),
        options.max_new_tokens,
        seed=options.seed,
        progress=status,
        **settings,
    )
    status("")
    write_html(result, options.out)
    steps = result.steps
    cached, uncached = (
        1000 * sum(getattr(step, way).seconds for step in steps) for way in ("cached", "uncached")
    )
    say(
        f"{counted(len(steps), 'step')}, {cached:.0f} ms with the cache and {uncached:.0f} ms "
        f"without; logits equal at {sum(step.equal for step in steps)} of {len(steps)}"
    )
    print(options.out)
    return 0
