"""`minigpt generate`: continue a prompt, streaming."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

import minigpt
from minigpt import cache_file
from minigpt.cache import KVCache
from minigpt.commands.common import Subcommands, load, model_options, say
from minigpt.errors import MinigptError
from minigpt.generate import POLICIES, Generation
from minigpt.model import GPT
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


def run(options: argparse.Namespace) -> int:
    if (options.save_cache or options.load_cache) and (options.no_cache or options.compare):
        raise MinigptError(
            "--save-cache and --load-cache need a run with the cache: leave out --no-cache and "
            "--compare"
        )
    prompt, cache, seconds = options.prompt, None, 0.0
    if prompt is None and not options.load_cache:
        if sys.stdin.isatty():
            say("type a prompt, then Ctrl-D:")
        try:
            prompt = sys.stdin.read().rstrip("\n")
        except UnicodeDecodeError as error:
            raise MinigptError(f"standard input is not {error.encoding} text: {error}") from error
    model = load(options)
    tokenizer = Tokenizer.from_pretrained(options.model)
    if options.load_cache:
        cache, prompt, ids, seconds = resume(options.load_cache, model, tokenizer, prompt)
    else:
        ids = tokenizer.encode(prompt)
        cache = model.new_cache() if options.save_cache else None
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
            model, ids, count, use_cache=use_cache, on_token=write, cache=cache, **settings
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
    room = f"cache {result.cache_bytes:,} bytes" if result.cache_bytes else "no cache"
    say(
        f"\n{len(result.tokens)} tokens, first after {1000 * result.prefill_seconds:.0f} ms, "
        f"then {result.tokens_per_second:,.1f} tokens/s ({room}, {model.numerics} numerics)"
    )
    if cache is not None and options.save_cache:
        keep(
            cache, options.save_cache, model, ids + result.tokens, seconds + result.prefill_seconds
        )
    return 0


def resume(
    path: str, model: GPT, tokenizer: Tokenizer, prompt: str | None
) -> tuple[KVCache, str, list[int], float]:
    """A saved cache cut to what it shares with the prompt, the whole prompt as text and tokens, and
    the seconds that the cache took to compute."""
    began = time.perf_counter()
    cache = cache_file.load(path, model, model.config.n_positions)
    took = time.perf_counter() - began
    if cache.batch_size != 1 or cache.tokens is None:
        raise MinigptError(f"{path} holds {cache!r}, needed a single row whose tokens are known")
    held = cache.tokens[0]
    text = tokenizer.decode(held)
    ids = held if prompt is None else tokenizer.encode(prompt)
    prompt = text if prompt is None else prompt
    agree = [a == b for a, b in zip(held, ids, strict=False)]
    shared = [*agree, False].index(False)
    if not all(agree) and not prompt.startswith(text):
        raise MinigptError(
            f"the prompt and the text in {path} part after {shared} tokens, where the file goes on "
            f"with {tokenizer.decode(held[shared:][:8])!r}: begin the prompt with the file's text, "
            f"or leave it out to go on from there"
        )
    cache.truncate(shared)
    seconds = float(cache_file.about(path)["notes"].get("prefill_seconds", 0))
    before = f"; prefilling took {seconds:.2f} s, so {seconds - took:.2f} s are saved"
    say(f"({len(held)} tokens loaded in {took:.2f} s{before if seconds else ''})")
    return cache, prompt, ids, seconds


def keep(cache: KVCache, path: str, model: GPT, text: list[int], seconds: float) -> None:
    """Save the cache, with those tokens of the text that the model has not seen yet."""
    rest = text[len(cache) : cache.capacity]
    began = time.perf_counter()
    if rest and cache.tokens == [text[: len(cache)]]:  # or it holds only the end of a long text
        model.next_logits(torch.tensor([rest], device=model.device), cache)
    seconds += time.perf_counter() - began
    cache_file.save(cache, path, {"prefill_seconds": seconds})
    say(f"({len(cache)} tokens saved in {path}, {Path(path).stat().st_size:,} bytes)")


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
