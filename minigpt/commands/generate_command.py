"""`minigpt generate`: continue a prompt, streaming."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import minigpt
from minigpt.commands.choosing import SAMPLING, sampling_options
from minigpt.commands.options import (
    Subcommands,
    add_command,
    model_options,
    read_utf8,
    say,
    seed_option,
    special_option,
)
from minigpt.support.errors import MinigptError
from minigpt.support.tables import table
from minigpt.support.wording import counted

if TYPE_CHECKING:  # at run time they come with the model: they need PyTorch, and help does not
    from minigpt import GPT, Generation, Tokenizer

POLICIES = ("stop", "reprefill")  # the library's, see `options.py`
EXAMPLES = (
    'minigpt generate --prompt "Once upon a time" --seed 12',
    "minigpt generate --prompts prompts.jsonl --out texts.jsonl",
)


def add(commands: Subcommands) -> None:
    command = add_command(commands, "generate", "continue a prompt, streaming", run, EXAMPLES)
    model_options(command)
    prompt_option(command)
    special_option(command)
    command.add_argument(
        "--max-new-tokens",
        type=int,
        default=200,
        metavar="N",
        help="end after N tokens (default 200)",
    )
    sampling_options(command)
    seed_option(command)
    command.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="end before this text; may be given several times",
    )
    command.add_argument(
        "--policy",
        choices=POLICIES,
        default="stop",
        help="at the context's end: stop, or forget the older half and go on",
    )
    command.add_argument(
        "--draft",
        metavar="lookup|SOURCE",
        help="guess tokens and check several in one pass: from the text so far, or with a smaller "
        "model; the text is the same",
    )
    command.add_argument(
        "--prompts",
        metavar="FILE",
        help='continue many prompts side by side: each line a JSON string, or {"prompt": "...", '
        '"max_new_tokens": 40, "seed": 3, "temperature": 1}',
    )
    command.add_argument(
        "--out",
        metavar="FILE",
        help="where their texts go, a line of JSON for each; lines that are there already are kept",
    )
    command.add_argument(
        "--save-cache",
        metavar="FILE",
        help="afterwards, keep what the model has seen, to go on with later; with "
        "--max-new-tokens 0 the prompt alone",
    )
    command.add_argument(
        "--load-cache",
        metavar="FILE",
        help="go on from there: of a prompt only what the file does not hold is computed, and "
        "without one the text in the file goes on",
    )
    how = command.add_mutually_exclusive_group()
    how.add_argument("--no-cache", action="store_true", help="recompute everything for each token")
    how.add_argument("--compare", action="store_true", help="with the cache, then without: a table")
    how.add_argument(
        "--samples",
        type=int,
        metavar="N",
        help="N texts side by side, from one prefill; seeds count up from --seed",
    )
    how.add_argument("--beams", type=int, metavar="N", help="beam search: the N likeliest found")


def prompt_option(command: argparse.ArgumentParser) -> None:
    command.add_argument("--prompt", help="text to continue; without it, standard input is read")


def run(options: argparse.Namespace) -> int:
    check(options)
    given = options.prompt
    if options.prompts:
        return many(options)
    if given is None and not options.load_cache:
        given = read_prompt()

    from minigpt.commands.models import load, load_draft, load_tokenizer, tell_padding
    from minigpt.commands.saved_cache import keep, resume
    from minigpt.generation.drafts import acceptance

    model = load(options)
    tokenizer = load_tokenizer(options.model)
    tell_padding(model, tokenizer)
    saved, seconds = None, 0.0
    if options.load_cache:
        saved, prompt, ids, seconds = resume(
            options.load_cache, model, tokenizer, given, options.special
        )
    else:
        prompt = given or ""
        ids = tokenizer.encode(prompt, options.special)
        saved = model.new_cache() if options.save_cache else None
    if not ids:
        say("the prompt is empty: starting from the end-of-text token")
    settings = {name: getattr(options, name) for name in SAMPLING}
    if options.beams is not None:
        return beams(options, model, tokenizer, prompt, ids)
    if options.samples is not None:
        return samples(options, model, tokenizer, prompt, ids, settings)

    settings |= {"seed": options.seed, "policy": options.policy, "stop": options.stop}
    settings["draft"] = load_draft(options.draft, options) if options.draft else None

    def text(count: int, use_cache: bool = True) -> minigpt.TextStream:
        return minigpt.stream_text(
            model,
            tokenizer,
            ids,
            max_new_tokens=count,
            use_cache=use_cache,
            cache=saved,
            **settings,
        )

    count = options.max_new_tokens
    if options.compare:
        write(text(min(2, count)))  # what is done only once, neither of the two shall pay for
        return compare(write(text(count), prompt), write(text(count, use_cache=False)))
    result = write(text(count, not options.no_cache), prompt)
    tell(result, model)
    if saved is not None and options.save_cache:
        seen = ids + result.tokens
        keep(saved, options.save_cache, model, seen, seconds + result.prefill_seconds)
    if options.draft:
        say(acceptance(result.drafted, result.accepted))
    return 0


def check(options: argparse.Namespace) -> None:
    """Refuse options that contradict each other, before anything is loaded."""
    alone = not options.no_cache and not options.compare and not options.samples
    if (options.save_cache or options.load_cache) and not (alone and options.beams is None):
        raise MinigptError(
            "--save-cache and --load-cache need a run with the cache: leave out --no-cache, "
            "--compare, --samples and --beams"
        )
    if bool(options.prompts) != bool(options.out):
        raise MinigptError("--prompts FILE and --out FILE go together: give both, or neither")
    single = (options.prompt is not None, options.draft, options.save_cache, options.load_cache)
    if options.prompts and (any(single) or not alone or options.beams is not None):
        raise MinigptError(
            "--prompts runs the texts of a file together: leave out --prompt, --draft, "
            "--save-cache, --load-cache, --no-cache, --compare, --samples and --beams"
        )
    if options.draft and (options.samples or options.beams):
        raise MinigptError("--draft is for a single text: leave out --samples and --beams")
    if options.stop and options.beams:
        raise MinigptError("--stop is not for beam search: leave out --beams")
    if options.save_cache:
        place = Path(options.save_cache).resolve().parent
        if not os.access(place, os.W_OK):  # better now than after the text
            raise MinigptError(
                f"--save-cache cannot write in {place}: choose a directory that is there and yours"
            )


def many(options: argparse.Namespace) -> int:
    from minigpt.commands.models import load, load_tokenizer, tell_padding
    from minigpt.commands.prompts_file import write_texts

    model, tokenizer = load(options), load_tokenizer(options.model)
    tell_padding(model, tokenizer)
    settings = {name: getattr(options, name) for name in SAMPLING}
    return write_texts(options, model, tokenizer, settings)


def tell(result: Generation, model: GPT) -> None:
    """What there is to know about a text that has been written, on stderr."""
    context = f"the context of {model.config.n_positions} positions"
    if result.finish_reason == "context":
        say(f"(stopped: {context} is full; --policy reprefill goes on)")
    if result.prefills:
        say(
            f"({context} was full: the older half was forgotten and the rest prefilled again, "
            f"{result.prefills} x)"
        )
    if not result.prefill_seconds:  # no token was asked for, and none was timed
        return
    cache = f"cache {result.cache_bytes:,} bytes" if result.cache_bytes else "no cache"
    say(
        f"\n{counted(len(result.tokens), 'token')}, first after "
        f"{1000 * result.prefill_seconds:.0f} ms, then {result.tokens_per_second:,.1f} tokens/s "
        f"({cache}, {model.numerics} numerics)"
    )


def read_prompt() -> str:
    if sys.stdin.isatty():
        say("type a prompt, then Ctrl-D:")
        return sys.stdin.read().rstrip("\n")
    text = read_utf8(sys.stdin.buffer.read(), "standard input")
    return text.replace("\r\n", "\n").rstrip("\n")  # lines as a terminal ends them


def write(pieces: minigpt.TextStream, prompt: str | None = None) -> Generation:
    """Show the prompt and the pieces as they come; after Ctrl-C, also what was held back.

    Without a prompt (not even "") nothing is shown.
    """
    if prompt is None:
        for _ in pieces:
            pass
        return pieces.result
    print(prompt, end="", flush=True)
    try:
        for piece in pieces:
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        print(pieces.rest(), end="", flush=True)
        raise
    print(flush=True)
    return pieces.result


def samples(
    options: argparse.Namespace, model: GPT, tokenizer: Tokenizer, prompt: str, ids: list[int],
    settings: dict[str, Any],
) -> int:  # fmt: skip
    from tqdm import tqdm

    from minigpt.generation.text import only_spelled

    stop = minigpt.StopStrings(options.stop)
    with tqdm(unit="token", leave=False, disable=None) as bar:
        results = minigpt.generate_batch(
            model,
            [ids],
            options.max_new_tokens,
            n=options.samples,
            seed=options.seed,
            policy=options.policy,
            logit_bias=only_spelled(model, tokenizer),
            on_token=lambda row, token: bar.update() and None,
            **settings,
        )
    for number, result in enumerate(results):
        print(f"--- sample {number + 1} (seed {options.seed + number})")
        text, stopped = stop.push(tokenizer.decode(result.tokens))
        print(prompt + text + ("" if stopped else stop.flush()))
        stop.flush()
    count = sum(len(result.tokens) for result in results)
    seconds = max(result.prefill_seconds + result.decode_seconds for result in results)
    speed = count / max(seconds, 1e-9)
    say(f"\n{counted(count, 'token')} in {seconds:.2f} s, {speed:,.1f} tokens/s together")
    return 0


def beams(
    options: argparse.Namespace, model: GPT, tokenizer: Tokenizer, prompt: str, ids: list[int]
) -> int:
    found = minigpt.beam_search(
        model,
        ids,
        options.max_new_tokens,
        options.beams,
        never=tokenizer.without_text(model.config.vocab_size),
    )
    for beam in found:
        print(f"--- {beam.score:.3f} nats per token")
        print(prompt + tokenizer.decode(beam.tokens))
    return 0


def compare(cached: Generation, uncached: Generation) -> int:
    ways = {"with cache": cached, "without": uncached}
    seconds = {name: each.prefill_seconds + each.decode_seconds for name, each in ways.items()}
    rows = []
    for name, each in ways.items():
        rate = len(each.tokens) / seconds[name] if seconds[name] else 0.0
        ratio = seconds["without"] / seconds[name] if seconds[name] else 0.0
        rows.append(
            (
                name,
                f"{len(each.tokens):,}",
                f"{seconds[name]:.2f}",
                f"{rate:,.1f}",
                f"{ratio:.1f}x",
                f"{each.cache_bytes:,}",
            )
        )
    say("\n" + table(("", "tokens", "seconds", "tokens/s", "speed-up", "cache bytes"), rows))
    say(f"same tokens: {'yes' if cached.tokens == uncached.tokens else 'no'}")
    return 0
