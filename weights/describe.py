"""Measures the bundled model, and writes what comes out into weights/README.md: `make describe`.

Each part between `<!-- NAME -->` and `<!-- end -->` there is written anew: who stays who, the
thirty prompts, ten stories that nobody chose. Everything is seeded, so a part changes when the
model does. With --model another checkpoint is measured, and --print shows it instead.
"""

from __future__ import annotations

import argparse
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from minigpt import GPT, Tokenizer, generate_batch
from minigpt.training.grammar import stories, story, words
from minigpt.training.losses import evaluate
from minigpt.training.story_check import find_changes
from minigpt.training.summary import baselines

HERE = Path(__file__).resolve().parent
SAMPLES = 500  # stories for each temperature
ROWS = 500  # of them side by side
COUNTED = 20_000  # texts that are counted for the unigram and bigram table
FRESH = 2  # a seed of texts that the model has not seen: it learned from those of seed 1

# One with a full stop and one that ends with the word itself, for each kind of held-out word.
HELD_OUT = {
    "name": ("Once upon a time, there was a little fox named {}.", "{} the rabbit"),
    "animal": ("Once upon a time, there was a little {}.", "Mia was a little {}"),
    "object": ("One day, Tom lost his {}.", "One day, Mia found a {}"),
    "place": ("Mia lived near the {}.", "One day, Tom went to the {}"),
}


class Writer:
    """The model, as text in and text out."""

    def __init__(self, source: str, device: str) -> None:
        torch.set_num_threads(1)  # a small model waits for other threads longer than they save
        self.model = GPT.from_pretrained(source, device=device, numerics="fast")
        self.tokenizer = Tokenizer.from_pretrained(source)

    def stories(self, prompts: Sequence[str], temperature: float = 0.0, seed: int = 0) -> list[str]:
        """Each prompt with what follows, to the end of the text or of the context."""
        texts = []
        for first in range(0, len(prompts), ROWS):
            ids = [self.tokenizer.encode(prompt) for prompt in prompts[first : first + ROWS]]
            room = self.model.config.n_positions - max(map(len, ids), default=0)
            done = generate_batch(self.model, ids, room, seed=seed + first, temperature=temperature)
            texts += [
                self.tokenizer.decode([*prompt, *_without_end(row.tokens, self.tokenizer)])
                for prompt, row in zip(ids, done, strict=True)
            ]
        return texts


def _without_end(tokens: list[int], tokenizer: Tokenizer) -> list[int]:
    return [token for token in tokens if token != tokenizer.eot_token]


def beginnings(count: int) -> list[str]:
    """First sentences, every other one cut after some word: all different."""
    found: dict[str, None] = {}
    number = 0
    while len(found) < count:
        rng = random.Random(f"beginning {number}")
        text = story(rng, "beginning")
        parts = text.split()
        cut = text if number % 2 else " ".join(parts[: rng.randint(3, max(3, len(parts) - 1))])
        found.setdefault(cut)
        number += 1
    return list(found)


def consistency(writer: Writer) -> Iterator[str]:
    prompts = beginnings(SAMPLES)
    yield "| temperature | stories that hold together | what changes in the others |"
    yield "|---|---|---|"
    for temperature in (0.0, 0.8, 1.0):
        texts = writer.stories(prompts, temperature)
        found = [find_changes(text, prompt) for text, prompt in zip(texts, prompts, strict=True)]
        kept = sum(not said for said in found) / len(found)
        yield f"| {temperature or 'greedy'} | {kept:.1%} of {len(found)} | {_kinds(found)} |"


def _kinds(found: Sequence[Sequence[str]]) -> str:
    """The commonest faults, their particulars left out."""
    marks = {
        "is a stranger": "somebody unknown", "are in it": "one too many", "became": "another",
        "never mentioned": "a thing unknown", "no word": "a word unknown", "said": "says it again",
        "elsewhere": "he or she",
    }  # fmt: skip
    counts = Counter(
        next((name for mark, name in marks.items() if mark in said[0]), said[0])
        for said in found
        if said
    )
    return ", ".join(f"{name} {count}" for name, count in counts.most_common()) or "-"


def held_out(writer: Writer) -> Iterator[str]:
    yield "| begins with | words | said again, and nothing changes | ... where a sentence ends |"
    yield "|---|---|---|---|"
    total: Counter[str] = Counter()
    for kind, (full, cut) in HELD_OUT.items():
        every = words(f"held_out_{kind}s")
        good = {}
        for form in (full, cut):
            prompts = [form.format(word) for word in every]
            texts = writer.stories(prompts)
            good[form] = sum(
                _kept(text, prompt, word)
                for text, prompt, word in zip(texts, prompts, every, strict=True)
            )
        total.update(words=len(every), full=good[full], both=sum(good.values()))
        yield (f"| a held-out {kind} | {len(every)} | {sum(good.values()) / len(every) / 2:.1%} "
               f"| {good[full] / len(every):.1%} |")  # fmt: skip
    count = total["words"]
    yield f"| all | {count} | {total['both'] / count / 2:.1%} | {total['full'] / count:.1%} |"


def _kept(text: str, prompt: str, word: str) -> bool:
    again = re.search(rf"\b{word}s?\b", text[len(prompt) :], re.IGNORECASE)
    grown = text[len(prompt) : len(prompt) + 1].isalpha()  # walrus became walruss
    return bool(again) and not grown and not find_changes(text, prompt)


@torch.no_grad()
def choices(writer: Writer) -> Iterator[str]:
    fresh = list(stories(FRESH, 1_000))
    end = [writer.tokenizer.eot_token]
    width = writer.model.config.n_positions
    entropies, sure = [], []
    batches = []
    for text in fresh:
        ids = torch.tensor([end + writer.tokenizer.encode(text) + end])[:, : width + 1]
        batches.append((ids[:, :-1], ids[:, 1:]))
    for inputs, _ in batches[:300]:
        logs = writer.model(inputs.to(writer.model.device))[0].log_softmax(-1)  # (T, V)
        entropies.append(-(logs.exp() * logs).sum(-1))
        sure.append(logs.max(-1).values.exp() > 0.99)
    loss = evaluate(writer.model, batches)
    counted = _tokens(writer, stories(1, COUNTED))
    unigram, bigram = baselines(counted, _tokens(writer, fresh), writer.tokenizer.n_vocab)
    yield "| on 1,000 texts it has not seen | nats per token |"
    yield "|---|---|"
    yield f"| unigram counts of {COUNTED:,} texts | {unigram:.3f} |"
    yield f"| bigram counts | {bigram:.3f} |"
    yield f"| **this model** | **{loss:.3f}** |"
    yield f"| entropy of what it expects next | {torch.cat(entropies).mean():.3f} |"
    yield ""
    certain = torch.cat(sure).float().mean().item()
    yield f"The likeliest token has more than 99 % at {certain:.0%} of the positions."


def _tokens(writer: Writer, texts: Sequence[str] | Iterator[str]) -> np.ndarray:
    end = writer.tokenizer.eot_token
    return np.fromiter(
        (token for text in texts for token in [*writer.tokenizer.encode(text), end]), np.uint16
    )


def prompts(writer: Writer) -> Iterator[str]:
    lines = (HERE / "prompts.txt").read_text(encoding="utf-8").splitlines()
    for prompt, text in zip(lines, writer.stories(lines), strict=True):
        yield from ("", f"> **{_quoted(prompt)}**{_quoted(text[len(prompt) :])}")


def ten(writer: Writer) -> Iterator[str]:
    for seed in range(1, 11):
        [text] = writer.stories([""], 0.8, seed)
        yield from ("", f"> {seed}. {_quoted(text)}")


def _quoted(text: str) -> str:
    """A text inside a quotation of Markdown, as it is written."""
    escaped = re.sub(r"([*_<>#\[\]`\\])", r"\\\1", text)
    return escaped.replace("\n", "  \n> ")


PARTS: dict[str, Callable[[Writer], Iterator[str]]] = {
    "consistency": consistency, "held out": held_out, "choices": choices,
    "prompts": prompts, "ten stories": ten,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default=str(HERE / "toy"), metavar="MODEL")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ... (default cpu)")
    parser.add_argument("--print", action="store_true", help="instead of writing weights/README.md")
    parser.add_argument("parts", nargs="*", help=f"some of: {', '.join(PARTS)} (default all)")
    options = parser.parse_args()
    writer, readme = Writer(options.model, options.device), HERE / "README.md"
    for name in options.parts or PARTS:
        written = "\n".join(PARTS[name](writer)).strip()
        if options.print:
            print(f"\n## {name}\n\n{written}", flush=True)
            continue
        before, mark, rest = readme.read_text(encoding="utf-8").partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition("\n<!-- end -->")
        if not (mark and end):
            parser.error(f"{readme} has no part <!-- {name} --> to write")
        readme.write_text(before + mark + written + end + after, encoding="utf-8")


if __name__ == "__main__":
    main()
