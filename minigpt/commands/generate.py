"""`minigpt generate`: continue a prompt, streaming."""

from __future__ import annotations

import argparse
import sys

import minigpt
from minigpt.commands.common import Subcommands, load, model_options, say
from minigpt.errors import MinigptError
from minigpt.generate import POLICIES, Generation
from minigpt.tokenizer import StreamDecoder, Tokenizer


def add(commands: Subcommands) -> None:
    command = commands.add_parser("generate", help="continue a prompt, streaming")
    command.set_defaults(run=run)
    model_options(command)
    command.add_argument("--prompt", help="text to continue; without it, standard input is read")
    command.add_argument("--max-new-tokens", type=int, default=200, metavar="N")
    command.add_argument(
        "--temperature", type=float, default=0.8, metavar="T", help="0 is greedy (default 0.8)"
    )
    command.add_argument("--top-k", type=int, metavar="K", help="draw among the K likeliest tokens")
    command.add_argument(
        "--top-p", type=float, metavar="P", help="draw among the likeliest with probability P"
    )
    command.add_argument("--seed", type=int, default=0, help="same seed, same text (default 0)")
    command.add_argument(
        "--policy", choices=POLICIES, default="stop",
        help="at the context's end: stop, or forget the older half and go on",
    )  # fmt: skip
    how = command.add_mutually_exclusive_group()
    how.add_argument("--no-cache", action="store_true", help="recompute everything for each token")
    how.add_argument("--compare", action="store_true", help="with the cache, then without: a table")


def run(options: argparse.Namespace) -> int:
    prompt = options.prompt
    if prompt is None:
        if sys.stdin.isatty():
            say("type a prompt, then Ctrl-D:")
        try:
            prompt = sys.stdin.read().rstrip("\n")
        except UnicodeDecodeError as error:
            raise MinigptError(f"standard input is not {error.encoding} text: {error}") from error
    model = load(options)
    tokenizer = Tokenizer.from_pretrained(options.model)
    ids = tokenizer.encode(prompt)
    if not ids:
        say("the prompt is empty: starting from the end-of-text token")

    settings = {
        name: getattr(options, name) for name in ("temperature", "top_k", "top_p", "seed", "policy")
    }
    minigpt.stream(model, ids, options.max_new_tokens, **settings)  # refuse before anything shows

    def run(use_cache: bool, show: bool, count: int = options.max_new_tokens) -> Generation:
        decoder = StreamDecoder(tokenizer)

        def write(token: int) -> None:
            if show:
                print(decoder.push(token), end="", flush=True)

        if show:
            print(prompt, end="", flush=True)
        result = minigpt.generate(
            model, ids, count, use_cache=use_cache, on_token=write, **settings
        )
        if show:
            print(decoder.flush(), flush=True)
        return result

    if options.compare:
        run(True, False, min(2, options.max_new_tokens))  # what is done once, neither shall pay for
        return compare(run(True, True), run(False, False))
    result = run(not options.no_cache, True)
    if result.finish_reason == "context":
        say(f"(stopped: the context of {model.config.n_positions} positions is full; "
            f"--policy reprefill goes on)")  # fmt: skip
    cache = f"cache {result.cache_bytes:,} bytes" if result.cache_bytes else "no cache"
    say(
        f"\n{len(result.tokens)} tokens, first after {1000 * result.prefill_seconds:.0f} ms, "
        f"then {result.tokens_per_second:,.1f} tokens/s ({cache}, {model.numerics} numerics)"
    )
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
