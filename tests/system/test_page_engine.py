"""The model in the page is the package's: the same tokens, logits and greedy text, and cached equal
to uncached to the bit, in a real browser."""

from __future__ import annotations

import random
import struct

import pytest
import torch

import minigpt
from minigpt import GPT, Tokenizer
from minigpt.study.pages import sixteen_bits, write_live
from minigpt.tokenizer import byte_tokenizer
from tests.browser import Page
from tests.helpers import TOY

# Sums are added up in float64 there and in float32 here; the logits are of the size of 10.
CLOSE = 1e-4
PROMPTS = [
    "Once upon a time",
    "The fox",
    "",
    "A",
    '"Hello!" said Anna.',
    "One day, Tom and his dog went to the park to play with a big red ball.",
    "she's they'll I'd we've I'm don't",
    "1234567890 and 3.14159",
    "Line one.\nLine two.\n\nLine four.\n",
    "   leading and trailing   ",
    "\ttabs\tand  two  spaces",
    "Es war einmal ein Mädchen",
    "Ngày xửa ngày xưa",
    "옛날 옛적에 🦊 lived",
    "UPPER CASE AND lower",
    "punctuation?!... (really) -- yes; no: [maybe]",
    "a\u0085b\ufeffc\u00a0d\u2003e",
    "<|endoftext|> is text here",
    " ".join(["The cat sat on the mat."] * 12),
    "Lily had a kite. " * 8 + "Then",
]


def widened(model: GPT) -> GPT:
    """The model that the page has: its weights rounded to 16 bits, computing in float32."""
    return model.to(sixteen_bits(model)).float()


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_pretrained(TOY)


@pytest.fixture(scope="module")
def model():
    return widened(GPT.from_pretrained(TOY, numerics="exact"))


@pytest.fixture(scope="module")
def path(tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "live.html"
    write_live(GPT.from_pretrained(TOY), tokenizer, path)
    return path


@pytest.fixture
def page(driver, path):
    """Loaded once for many tests: the model in it is what they ask, not what is drawn."""
    page = Page(driver, path)
    if not driver.current_url.startswith(path.as_uri()):
        page.open()
    return page


def encoded(page, texts):
    return page.js("return arguments[0].map((text) => source.tokenizer.encode(text))", texts)


def numbers(page, expression, *arguments):
    """A Float32Array of the page, bit for bit: its bytes as text."""
    hexadecimal = page.js(
        f"const found = {expression};"
        "return Array.from(new Uint8Array(found.buffer, found.byteOffset, found.byteLength),"
        "  (byte) => byte.toString(16).padStart(2, '0')).join('')",
        *arguments,
    )
    raw = bytes.fromhex(hexadecimal)
    return torch.tensor(struct.unpack(f"<{len(raw) // 4}f", raw))


LOGITS = """((tokens, chunks) => {
  const cache = new Cache(), all = [];
  for (const size of chunks)
    all.push(...finish(source.model.forward(tokens.splice(0, size), cache, true)));
  return Float32Array.from(all.flatMap((row) => [...row]));
})(arguments[0], arguments[1])"""


def logits(page, ids, chunks=None):
    return numbers(page, LOGITS, ids, chunks or [len(ids)]).view(len(ids), -1)


class TestTheTokenizer:
    def test_cuts_a_text_as_the_packages_does(self, page, tokenizer):
        assert encoded(page, PROMPTS) == [tokenizer.encode(text) for text in PROMPTS]

    def test_cuts_random_texts_alike(self, page, tokenizer):
        draw = random.Random(0)
        spaces = " \n\t\u0085\u00a0\u2028\ufeff\u200b\u3000\0"
        alphabet = spaces + "abc '’sdmtrelv12³½éßñ中文한글🦊🏽\u0301_-.,!?<>&|"
        texts = ["".join(draw.choices(alphabet, k=draw.randrange(40))) for _ in range(400)]
        assert encoded(page, texts) == [tokenizer.encode(text) for text in texts]

    def test_spells_every_token(self, page, tokenizer):
        labels = page.js("return Array.from({length: source.model.V}, (_, id) => source.label(id))")
        assert labels == [
            tokenizer.decode_bytes([id]).decode(errors="backslashreplace")
            for id in range(len(labels))
        ]

    def test_gives_each_token_the_text_that_it_completes(self, page, tokenizer):
        ids = tokenizer.encode("a🦊€")
        pieces = page.js("return source.tokenizer.pieces(arguments[0])", ids)
        assert "".join(pieces) == "a🦊€"
        assert "" in pieces  # several tokens to a character


class TestLogits:
    @pytest.mark.parametrize("text", PROMPTS)
    def test_are_the_packages_at_every_position(self, page, model, tokenizer, text):
        ids = tokenizer.encode(text) or [model.config.eos_token_id]
        got, want = logits(page, ids), model(torch.tensor([ids]))[0]
        assert got.shape == want.shape
        assert (got - want).abs().max() < CLOSE

    @pytest.mark.parametrize("chunks", ["one by one", "threes", "a prompt and steps"])
    def test_are_the_same_bits_with_the_cache(self, page, tokenizer, chunks):
        ids = tokenizer.encode(PROMPTS[-1])
        sizes = {
            "one by one": [1] * len(ids),
            "threes": [3] * (len(ids) // 3) + [len(ids) % 3],
            "a prompt and steps": [10] + [1] * (len(ids) - 10),
        }[chunks]
        assert torch.equal(logits(page, ids, sizes), logits(page, ids))

    def test_choose_the_packages_greedy_text(self, page, model, tokenizer):
        greedy = """return arguments[0].map((ids) => {
          const cache = new Cache(), out = [];
          let fresh = ids;
          for (let n = 0; n < 24; n++) {
            const token = choose(finish(source.model.forward(fresh, cache)), 0, 0, 0);
            out.push(token);
            fresh = [token];
          }
          return out;
        })"""
        ids = [tokenizer.encode(text) or [model.config.eos_token_id] for text in PROMPTS]
        want = [minigpt.generate(model, each, 24, stop_tokens=()).tokens for each in ids]
        assert page.js(greedy, ids) == want

    def test_are_none_of_the_packages_once_a_weight_is_off(self, page, model, tokenizer):
        ids = tokenizer.encode(PROMPTS[0])
        page.js("source.model.layers.at(-1).out.bias[0] += 0.01")
        try:
            assert (logits(page, ids) - model(torch.tensor([ids]))[0]).abs().max() > CLOSE
        finally:
            page.open()


SHAPES = {
    "grouped heads": {"n_head": 4, "n_kv_head": 2},
    "one head of keys": {"n_kv_head": 1},
    "odd widths": {"n_inner": 50, "n_embd": 51},
    "relu, untied": {"activation_function": "relu", "tie_word_embeddings": False},
    "gelu by erf": {"activation_function": "gelu"},
    "Mistral's scaling": {"scale_attn_by_inverse_layer_idx": True, "n_layer": 4},
    "unscaled": {"scale_attn_weights": False, "layer_norm_epsilon": 1e-3},
    "bfloat16": {"dtype": torch.bfloat16},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_other_shapes_run_as_well(browse, make_model, tmp_path, shape):
    model = make_model("exact", vocab_size=257, **SHAPES[shape])
    with torch.no_grad():
        model.wte.weight.mul_(5)  # beyond what rounding could hide
    path = tmp_path / "live.html"
    write_live(model, byte_tokenizer(), path, "Hello")
    ids = list(b"The quick brown fox")
    page, want = browse(path), widened(model)(torch.tensor([ids]))[0]
    got = logits(page, list(ids))
    assert (got - want).abs().max() < CLOSE
    assert want.std() > 0.1
    assert torch.equal(logits(page, list(ids), [7] + [1] * 12), got)
    for positions, keys in ((1, 9), (19, 190)):
        count = page.js("return multiplications(source.config, ...arguments)", positions, keys)
        assert count == model.config.multiplications(positions, keys)


class TestDraws:
    def test_follow_the_probabilities(self, page):
        drawn = page.js(
            "const logits = Float32Array.from([0.4, 0.3, 0.2, 0.1], Math.log);"
            "const count = [0, 0, 0, 0];"
            "for (let seed = 0; seed < 100; seed++)"
            "  for (let at = 0; at < 100; at++) count[choose(logits, 1, seed, at)]++;"
            "return count"
        )
        # Binomial, sigma at most 50 of 10,000.
        assert all(
            abs(n - want) < 200 for n, want in zip(drawn, (4000, 3000, 2000, 1000), strict=True)
        )

    def test_sharpen_with_a_low_temperature(self, page):
        share = "return probabilities(Float32Array.from([0.6, 0.4], Math.log), arguments[0])[0]"
        assert page.js(share, 1) == pytest.approx(0.6)
        assert page.js(share, 0.5) == pytest.approx(0.36 / 0.52)

    def test_are_repeated_by_the_same_seed_and_position_only(self, page):
        a, b, c, again = page.js("return [[1, 2], [1, 3], [2, 2], [1, 2]].map((x) => random(...x))")
        assert a == again
        assert len({a, b, c}) == 3


class TestBrokenCaches:
    """Where each bug shows first: in which step's logits, in which layer and at which position."""

    RUN = """
    const [prompt, bug, steps] = arguments;
    source.start({prompt, temperature: 0, seed: 0, useCache: true, bug}, steps);
    const {tokens, frames, cache} = source.branch, reference = new Cache(source.window);
    finish(source.model.forward(tokens.slice(0, frames.at(-1).length), reference));
    const parted = frames.findIndex((frame) => !sameBits(frame.logits,
      source.model.read(reference.entries[frame.length - 1].stream.at(-1))));
    for (let layer = 0; layer < source.model.L; layer++)
      for (const [n, entry] of cache.entries.entries())
        for (const part of ["keys", "values"])
          if (!sameBits(entry[part][layer], reference.entries[n][part][layer]))
            return [parted, layer, n];
    return [parted, null, null]"""

    PROMPT = "The fox and the bear"  # P tokens

    @pytest.mark.parametrize(
        ("bug", "step", "layer", "position"),
        [
            ("", -1, None, None),
            ("position", 2, 0, 1),  # the first token after the prompt stands right, by chance
            ("heads", 1, 1, 0),  # what layer 0 keeps comes from the embedding alone
            ("mask", 0, 1, None),
            ("kept", 0, 1, None),
            ("reorder", 1, 1, 0),
        ],
    )
    def test_part_where_they_must(self, page, tokenizer, bug, step, layer, position):
        prompt = len(tokenizer.encode(self.PROMPT))
        found = page.js(self.RUN, self.PROMPT, bug, 5)
        # In the prompt's own pass the first position is wrong already, else one after the prompt.
        at = 0 if bug in ("mask", "kept") else None if layer is None else prompt + position
        assert found == [step, layer, at]

    def test_of_the_window_part_when_it_first_moves(self, page, tokenizer):
        prompt = len(tokenizer.encode(self.PROMPT))
        assert prompt < 8
        assert page.js(self.RUN, self.PROMPT, "window", 8 - prompt + 1) == [-1, None, None]
        assert page.js(self.RUN, self.PROMPT, "window", 8 - prompt + 3) == [9 - prompt, 0, 8]

    def test_a_shifted_mask_does_nothing_to_a_single_token(self, page):
        assert page.js(self.RUN, "A", "mask", 4) == [-1, None, None]

    def test_the_right_window_is_what_a_windowed_pass_gives(self, page, tokenizer):
        """The last bug is compared with this: equal, but for the bug."""
        ids = tokenizer.encode(PROMPTS[5])
        windowed = LOGITS.replace("new Cache()", "new Cache(8)")
        together = numbers(page, windowed, list(ids), [len(ids)])
        assert torch.equal(numbers(page, windowed, list(ids), [1] * len(ids)), together)
        assert not torch.equal(together.view(len(ids), -1), logits(page, list(ids)))


def test_a_fork_holds_the_same_entries_and_sees_nothing_that_comes_later(page, tokenizer):
    ids = tokenizer.encode("The fox and the bear went home")
    same, parent, child, alone = page.js(
        """const [ids] = arguments, cache = new Cache();
        const run = (tokens, cache) => finish(source.model.forward(tokens, cache));
        run(ids.slice(0, -1), cache);
        const branch = cache.fork();
        const same = branch.entries.every((entry, n) => entry === cache.entries[n]);
        run([5, 6, 7], cache);
        const child = [...run(ids.slice(-1), branch)];
        return [same, cache.length, child, [...run(ids, new Cache())]]""",
        ids,
    )
    assert same
    assert parent == len(ids) + 2
    assert child == alone
