"""The command line: `minigpt generate | verify | bench | train | download`.

Exit codes: 0 done, 1 a check failed, 2 a mistake in the input (one sentence on stderr), 130
interrupted. Text goes to stdout, everything about the run to stderr.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

import minigpt
from minigpt import hub
from minigpt.errors import MinigptError
from minigpt.generate import POLICIES, Generation
from minigpt.model import GPT
from minigpt.numerics import NUMERICS
from minigpt.tokenizer import StreamDecoder, Tokenizer

MOST_THREADS = 1024
SMALL = 10_000_000  # parameters
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # rather "?" than an error, on an old terminal
    try:
        if getattr(options, "threads", None) is not None:
            if not 1 <= options.threads <= MOST_THREADS:
                raise MinigptError(f"--threads is {options.threads}, needed 1 to {MOST_THREADS}")
            torch.set_num_threads(options.threads)
        run: Callable[[argparse.Namespace], int] = options.run
        return run(options)
    except MinigptError as error:
        say(f"minigpt: {error}")
        return 2
    except KeyboardInterrupt:
        say("\ninterrupted")
        return 130
    except BrokenPipeError:  # the reader of our output left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="minigpt",
        description="GPT-2 with a KV cache whose logits equal the uncached ones, bit for bit.",
    )
    top.add_argument("--version", action="version", version=f"minigpt {minigpt.__version__}")
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")

    command = commands.add_parser("generate", help="continue a prompt, streaming")
    command.set_defaults(run=run_generate)
    _model_options(command)
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

    command = commands.add_parser(
        "verify", help="check that cached logits equal uncached ones, bit for bit"
    )
    command.set_defaults(run=run_verify)
    _model_options(command)
    text = command.add_mutually_exclusive_group()
    text.add_argument("--prompt", help="text to check on; default: random tokens")
    text.add_argument("--tokens", type=int, metavar="N", help="random tokens to check on (160)")
    command.add_argument("--seed", type=int, default=0, help="of the random tokens and chunks")
    command.add_argument("--json", action="store_true", help="the report as JSON")
    command.add_argument(
        "--matrix", action="store_true",
        help="instead of one model, every dtype, head layout and width against all that may vary",
    )  # fmt: skip

    command = commands.add_parser("bench", help="measure speed and memory, side by side")
    command.set_defaults(run=run_bench, numerics="fast")  # it measures both
    command.add_argument(
        "--model", default="random:gpt2", metavar="SOURCE",
        help="directory or name, or random:PRESET for that shape with random weights "
        "(default random:gpt2)",
    )  # fmt: skip
    command.add_argument("--dtype", choices=DTYPES, help="default: what the checkpoint has")
    command.add_argument("--device", default="cpu", help="cpu, cuda, mps, ... (default cpu)")
    command.add_argument("--threads", type=int, metavar="N", help="CPU threads")
    command.add_argument(
        "--only", metavar="SECTION[,SECTION]",
        help="some of decode, prefill, exact, cache, start, limits (default all)",
    )  # fmt: skip
    command.add_argument("--rounds", type=int, metavar="N", help="repetitions (default 10)")
    command.add_argument("--quick", action="store_true", help="as little as shows that it works")
    command.add_argument(
        "--long", action="store_true", help="500 tokens without the cache, also for large models"
    )
    command.add_argument("--json", action="store_true", help="all samples as JSON")

    command = commands.add_parser("train", help="make the bundled toy model again, offline")
    command.set_defaults(run=run_train)
    command.add_argument("--out", type=Path, default=Path("weights/toy"), metavar="DIR")
    command.add_argument("--steps", type=int, help="training steps")
    command.add_argument("--stories", type=int, help="stories to learn from")
    command.add_argument("--seed", type=int, help="of the stories, the weights and the windows")
    command.add_argument("--threads", type=int, metavar="N", help="CPU threads")

    command = commands.add_parser("download", help="fetch a checkpoint into weights/")
    command.set_defaults(run=run_download)
    command.add_argument("name", help=f"one of {', '.join(hub.PINNED)}")
    command.add_argument("--weights-dir", type=Path, default=Path("weights"), metavar="DIR")
    return top


def _model_options(command: argparse.ArgumentParser, model: str = "weights/toy") -> None:
    command.add_argument(
        "--model", default=model, metavar="SOURCE",
        help=f"directory, or a name such as gpt2 (default {model})",
    )  # fmt: skip
    command.add_argument("--numerics", choices=NUMERICS, default="exact", help="(default exact)")
    command.add_argument("--dtype", choices=DTYPES, help="default: what the checkpoint has")
    command.add_argument("--device", default="cpu", help="cpu, cuda, mps, ... (default cpu)")
    command.add_argument(
        "--threads", type=int, metavar="N", help="CPU threads (default all; 1 for small models)"
    )


def load(options: argparse.Namespace) -> GPT:
    """The model that --model, --dtype, --device and --numerics name."""
    dtype = DTYPES[options.dtype] if options.dtype else None
    model = GPT.from_pretrained(options.model, dtype, _device(options.device), options.numerics)
    if options.threads is None and sum(p.numel() for p in model.parameters()) < SMALL:
        torch.set_num_threads(1)  # its products are over before a second thread has begun
    return model


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        if device.type == "meta":
            raise RuntimeError("it holds shapes without numbers")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ImportError) as error:  # by device, what torch raises
        reason = str(error).splitlines()[0]
        raise MinigptError(f"device {name!r} cannot be used here: {reason}") from error
    return device


def run_generate(options: argparse.Namespace) -> int:
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
        return _compare(run(True, True), run(False, False))
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


def _compare(cached: Generation, uncached: Generation) -> int:
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


def run_verify(options: argparse.Namespace) -> int:
    if options.matrix:
        return _matrix(options)
    model = load(options)
    ids: list[int] | None = None
    if options.prompt is not None:
        ids = Tokenizer.from_pretrained(options.model).encode(options.prompt)
    elif options.tokens is not None:
        if options.tokens < 0:
            raise MinigptError(f"--tokens is {options.tokens}, needed a whole number of at least 2")
        rng = random.Random(options.seed)
        ids = [rng.randrange(model.config.vocab_size) for _ in range(options.tokens)]
    report = minigpt.verify(model, ids, options.seed, progress=status)
    status("")
    print(json.dumps(report.to_dict(), indent=2) if options.json else report)
    return 0 if report.equal else 1


def _matrix(options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from minigpt.matrix import COLUMNS, ROWS, Cells, cell, render

    results, device = {}, _device(options.device)
    with tqdm(total=len(COLUMNS) * len(ROWS), unit="cell", leave=False) as bar:
        for column in COLUMNS:
            cells = Cells(column.model(device, options.numerics))
            for row in ROWS:
                bar.set_description(f"{column}, {row}")
                results[row, str(column)] = cell(cells, row)
                bar.update()
    if options.json:
        print(json.dumps([{"row": r, "column": c, "cell": v} for (r, c), v in results.items()]))
    else:
        print(render(results))
    return 0 if all(not value.endswith("differ") for value in results.values()) else 1


def run_bench(options: argparse.Namespace) -> int:
    from minigpt.bench import Bench, checkpoint, choose

    sections, source = choose(options.only), options.model
    with checkpoint(source, DTYPES.get(options.dtype)) as directory:
        options.model = directory
        bench = Bench(load(options), directory, options.rounds, options.quick, options.long)
        table = bench.measure(sections)
    table.about = {"model": source, **table.about}
    print(json.dumps(table.to_dict(), indent=2) if options.json else table)
    return 0


def run_train(options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from minigpt.train import TrainConfig, train_toy

    def say_beside_bars(line: str) -> None:
        tqdm.write(line, file=sys.stderr)

    changes = {
        name: value
        for name in ("steps", "stories", "seed")
        if (value := getattr(options, name)) is not None
    }
    result = train_toy(options.out, TrainConfig(**changes), say_beside_bars)
    print(
        f"saved {options.out}: held-out loss {result.loss:.3f} nats per token (bigram "
        f"{result.bigram:.3f}, unigram {result.unigram:.3f}), {result.seconds:.0f} s, "
        f"{result.tokens_per_second:,.0f} tokens/s"
    )
    return 0


def run_download(options: argparse.Namespace) -> int:
    print(hub.download(options.name, options.weights_dir))
    return 0


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def status(line: str) -> None:
    """A line that the next one overwrites; nothing where nobody watches."""
    if sys.stderr.isatty():
        print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
