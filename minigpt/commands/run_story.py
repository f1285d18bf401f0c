"""What `minigpt train` tells around a run: how it computes, what came out, what may come next."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from minigpt.support.wording import counted

if TYPE_CHECKING:
    import torch

    from minigpt.model import GPT
    from minigpt.training.parallel import Processes
    from minigpt.training.recipes import TrainConfig
    from minigpt.training.sources import Mixture, Source, Text
    from minigpt.training.state import State


def told_of_data(config: TrainConfig, source: Text | Mixture) -> list[str]:
    """A line for each text: how much it is, and how often it is drawn where there are several."""
    from minigpt.tokenizer_settings import END_OF_TEXT
    from minigpt.training.documents import named_sources
    from minigpt.training.sources import Mixture

    parts = source.parts if isinstance(source, Mixture) else (source,)
    lines = []
    for number, ((place, _), part) in enumerate(
        zip(named_sources(config.data), parts, strict=True)
    ):
        corpus = part.corpus
        line = f"{place}: {counted(corpus.documents, 'document')}"
        if isinstance(source, Mixture):
            count = counted(len(corpus.training), "token")
            line += f", {count} to train on, {source.shares[number]:.1%} of the windows"
        lines.append(line + ("" if number else f" ({END_OF_TEXT} ends one inside a file)"))
    return lines


def choose_threads(
    given: int | None,
    found: Path | None,
    model: GPT,
    source: Source,
    config: TrainConfig,
    ours: Processes,
    report: Callable[[str], object],
) -> None:
    """As many as were asked for, as the run had so far, or as prove fastest for a small model."""
    import torch

    from minigpt.training.state import read_state
    from minigpt.training.threads import SMALL, fewest, times_by_threads

    if given is not None or ours.count > 1 or ours.device.type != "cpu":
        return
    if found is not None:
        threads = read_state(found)[0].threads
        if threads:
            torch.set_num_threads(threads)
        return
    small = sum(p.numel() for p in model.parameters()) < SMALL
    if not small or config.compile or torch.get_num_threads() == 1:
        return
    times = times_by_threads(model, source, config)
    threads = fewest(times)
    torch.set_num_threads(threads)
    tried = ", ".join(f"{1e3 * took:.0f} ms with {n}" for n, took in times.items())
    report(f"computing with {counted(threads, 'thread')} (tried: {tried}; --threads sets it)")


def tell_results(
    directory: Path,
    source: Source,
    config: TrainConfig,
    state: State,
    device: torch.device,
    processes: int,
) -> None:
    """What the run came to, what it has learned to write, and what may be done with it."""
    from minigpt.training.sources import Problems
    from minigpt.training.summary import summarise

    accuracy = source.task.accuracy if isinstance(source, Problems) else None
    print(summarise(directory, source, config, state, device, accuracy, processes))
    tell_saved(directory)
    tell_next(directory, tell_samples(directory, source, config, device), config.steps)


def tell_saved(directory: Path) -> None:
    """Where the run lies, and its pictures if there are any."""
    from minigpt.training.curves import PICTURES

    pictures = [name for name in PICTURES if (directory / name).is_file()]
    print(f"saved {directory}" + (f", with {' and '.join(pictures)}" if pictures else ""))


def tell_next(directory: Path, prompt: str, steps: int) -> None:
    """The commands to go on with."""
    print("\nnext")
    for command in what_next(directory, prompt, steps):
        print(f"  {command}")


def tell_samples(directory: Path, source: Source, config: TrainConfig, device: torch.device) -> str:
    """What the model makes of some beginnings, before and after training; the first of them."""
    from minigpt.model import GPT
    from minigpt.training.sources import starting_model
    from minigpt.training.writing import before_and_after

    task = bool(config.task)
    if config.sample_tokens:
        before = starting_model(config, source).to(device).eval()
        before.numerics = "fast"
        after = GPT.from_pretrained(directory, device=device, numerics="fast")
        told = before_and_after(before, after, source, config.sample_tokens, 3 if task else 1)
        if told:
            what = "unseen problems" if task else "the same beginning"
            print(f"\n{what}, before and after training")
            print("\n".join(map(str, told)))
            return told[0].prompt
    found = source.beginnings(1)
    return source.tokenizer.decode(found[0].tokens) if found else ""


def what_next(directory: Path, prompt: str, steps: int) -> list[str]:
    """Commands to go on with, of this very run."""
    place, line = shlex.quote(str(directory)), shlex.quote(prompt.strip().partition("\n")[0])
    return [
        f"minigpt generate --model {place} --prompt {line}",
        f"minigpt train --resume {place} --steps {2 * steps}",
        f"minigpt inspect {place}",
        f"minigpt curves {place}",
    ]
