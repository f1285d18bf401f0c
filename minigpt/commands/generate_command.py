"""`minigpt generate`: continue a prompt, streaming."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import minigpt
from minigpt.commands.kept import keep, resume
from minigpt.commands.options import Subcommands, load, load_draft, model_options, say
from minigpt.generation.decoding import POLICIES, Generation
from minigpt.generation.drafts import acceptance
from minigpt.model import GPT
from minigpt.support.errors import MinigptError
from minigpt.tokenizer import Tokenizer

SAMPLING = (
    "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty",
    "frequency_penalty",
)  # fmt: skip


def add(commands: Subcommands) -> None:
    command = commands.add_parser("generate", help="continue a prompt, streaming")
    command.set_defaults(run=run)
    model_options(command)
    command.add_argument("--prompt", help="text to continue; without it, standard input is read")
    command.add_argument("--max-new-tokens", type=int, default=200, metavar="N")
    sampling_options(command)
    command.add_argument("--seed", type=int, default=0, help="same seed, same text (default 0)")
    command.add_argument(
        "--stop", action="append", default=[], metavar="TEXT",
        help="end before this text; may be given several times",
    )  # fmt: skip
    command.add_argument(
        "--policy", choices=POLICIES, default="stop",
        help="at the context's end: stop, or forget the older half and go on",
    )  # fmt: skip
    command.add_argument(
        "--draft", metavar="lookup|SOURCE",
        help="guess tokens and check several in one pass: from the text so far, or with a smaller "
        "model; the text is the same",
    )  # fmt: skip
    command.add_argument(
        "--save-cache", metavar="FILE",
        help="afterwards, keep what the model has seen, to go on with later; with "
        "--max-new-tokens 0 the prompt alone",
    )  # fmt: skip
    command.add_argument(
        "--load-cache", metavar="FILE",
        help="go on from there: of a prompt only what the file does not hold is computed, and "
        "without one the text in the file goes on",
    )  # fmt: skip
    how = command.add_mutually_exclusive_group()
    how.add_argument("--no-cache", action="store_true", help="recompute everything for each token")
    how.add_argument("--compare", action="store_true", help="with the cache, then without: a table")
    how.add_argument(
        "--samples", type=int, metavar="N",
        help="N texts side by side, from one prefill; seeds count up from --seed",
    )  # fmt: skip
    how.add_argument("--beams", type=int, metavar="N", help="beam search: the N likeliest found")


def sampling_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--temperature", type=float, default=0.8, metavar="T", help="0 is greedy (default 0.8)"
    )
    command.add_argument("--top-k", type=int, metavar="K", help="draw among the K likeliest tokens")
    command.add_argument(
        "--top-p", type=float, metavar="P", help="draw among the likeliest with probability P"
    )
    command.add_argument(
        "--min-p", type=float, metavar="P", help="draw among those P times as likely as the best"
    )
    command.add_argument(
        "--repetition-penalty", type=float, default=1.0, metavar="X",
        help="above 1 shuns tokens that occurred (default 1)",
    )  # fmt: skip
    for name in ("presence", "frequency"):
        often = "" if name == "presence" else ", each time it did"
        command.add_argument(
            f"--{name}-penalty", type=float, default=0.0, metavar="X",
            help=f"subtracted from the logit of a token that occurred{often}, -2 to 2 (default 0)",
        )  # fmt: skip


def run(options: argparse.Namespace) -> int:
    alone = not options.no_cache and not options.compare and not options.samples
    if (options.save_cache or options.load_cache) and not (alone and options.beams is None):
        raise MinigptError(
            "--save-cache and --load-cache need a run with the cache: leave out --no-cache, "
            "--compare, --samples and --beams"
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
    given = options.prompt
    if given is None and not options.load_cache:
        given = read_prompt()
    model = load(options)
    tokenizer = Tokenizer.from_pretrained(options.model)
    kept, seconds = None, 0.0
    if options.load_cache:
        kept, prompt, ids, seconds = resume(options.load_cache, model, tokenizer, given)
    else:
        prompt = given or ""
        ids = tokenizer.encode(prompt)
        kept = model.new_cache() if options.save_cache else None
    if not ids:
        say("the prompt is empty: starting from the end-of-text token")
    settings = {name: getattr(options, name) for name in SAMPLING}
    if options.beams is not None:
        return beams(options, model, tokenizer, prompt, ids)
    if options.samples is not None:
        return samples(options, model, tokenizer, prompt, ids, settings)

    settings |= {"seed": options.seed, "policy": options.policy, "stop": options.stop}
    settings["draft"] = load_draft(options.draft, options) if options.draft else None

    def run(use_cache: bool, show: bool, count: int = options.max_new_tokens) -> Generation:
        return write(
            minigpt.stream_text(
                model, tokenizer, ids, max_new_tokens=count, use_cache=use_cache, cache=kept,
                **settings,
            ),
            prompt, show,
        )  # fmt: skip

    if options.compare:
        run(True, False, min(2, options.max_new_tokens))  # what is done once, neither shall pay for
        return compare(run(True, True), run(False, False))
    result = run(not options.no_cache, True)
    if result.finish_reason == "context":
        say(f"(stopped: the context of {model.config.n_positions} positions is full; "
            f"--policy reprefill goes on)")  # fmt: skip
    if result.prefills:
        say(
            f"(the context of {model.config.n_positions} positions was full: the older half was "
            f"forgotten and the rest prefilled again, {result.prefills} x)"
        )
    cache = f"cache {result.cache_bytes:,} bytes" if result.cache_bytes else "no cache"
    say(
        f"\n{len(result.tokens)} tokens, first after {1000 * result.prefill_seconds:.0f} ms, "
        f"then {result.tokens_per_second:,.1f} tokens/s ({cache}, {model.numerics} numerics)"
    )
    if kept is not None and options.save_cache:
        text = ids + result.tokens
        keep(kept, options.save_cache, model, text, seconds + result.prefill_seconds)
    if options.draft:
        say(acceptance(result.drafted, result.accepted))
    return 0


def read_prompt() -> str:
    if sys.stdin.isatty():
        say("type a prompt, then Ctrl-D:")
    try:
        return sys.stdin.read().rstrip("\n")
    except UnicodeDecodeError as error:
        raise MinigptError(f"standard input is not {error.encoding} text: {error}") from error


def write(pieces: minigpt.TextStream, prompt: str, show: bool) -> Generation:
    """Show the prompt and the pieces as they come; after Ctrl-C, also what was held back."""
    if not show:
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

    stop = minigpt.StopStrings(options.stop)
    with tqdm(unit="token", leave=False) as bar:
        results = minigpt.generate_batch(
            model, [ids], options.max_new_tokens, n=options.samples, seed=options.seed,
            policy=options.policy, on_token=lambda row, token: bar.update() and None, **settings,
        )  # fmt: skip
    for number, result in enumerate(results):
        print(f"--- sample {number + 1} (seed {options.seed + number})")
        text, stopped = stop.push(tokenizer.decode(result.tokens))
        print(prompt + text + ("" if stopped else stop.flush()))
        stop.flush()
    count = sum(len(result.tokens) for result in results)
    seconds = max(result.prefill_seconds + result.decode_seconds for result in results)
    say(f"\n{count} tokens in {seconds:.2f} s, {count / max(seconds, 1e-9):,.1f} tokens/s together")
    return 0


def beams(
    options: argparse.Namespace, model: GPT, tokenizer: Tokenizer, prompt: str, ids: list[int]
) -> int:
    found = minigpt.beam_search(model, ids, options.max_new_tokens, options.beams)
    for beam in found:
        print(f"--- {beam.score:.3f} nats per token")
        print(prompt + tokenizer.decode(beam.tokens))
    return 0


def compare(cached: Generation, uncached: Generation) -> int:
    say(
        f"\n{'':<12}{'tokens':>8}{'seconds':>10}{'tokens/s':>10}{'speed-up':>10}{'cache bytes':>13}"
    )
    seconds = [run.prefill_seconds + run.decode_seconds for run in (cached, uncached)]
    for name, run, took in zip(("with cache", "without"), (cached, uncached), seconds, strict=True):
        rate = len(run.tokens) / took if took else 0.0
        ratio = seconds[1] / took if took else 0.0
        say(f"{name:<12}{len(run.tokens):>8}{took:>10.2f}{rate:>10.1f}{ratio:>9.1f}x"
            f"{run.cache_bytes:>13,}")  # fmt: skip
    same = cached.tokens == uncached.tokens
    say(f"same tokens: {'yes' if same else 'no'}")
    return 0
