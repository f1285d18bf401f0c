"""Scoring a text: by hand, beside transformers, through windows, and as a command."""

from __future__ import annotations

import io
import json
import math

import pytest
import torch
from transformers import GPT2LMHeadModel

from minigpt import MinigptError
from minigpt.commands import score_command as command
from minigpt.commands.options import Parser
from minigpt.study.likelihood import score
from minigpt.support.wording import counted
from minigpt.training.bpe import train_bpe
from minigpt.training.grammar import stories


def by_hand(model, window):
    """The log-probability of the last token of a row of tokens, from one uncached pass."""
    with torch.inference_mode():
        return model(window[None, :-1])[0, -1].log_softmax(-1)[window[-1]]


# --- one window ---


def test_a_log_probability_is_the_log_softmax_of_the_logits_before(model, text):
    ids = text(1, 100)
    want = model(ids[:, :-1])[0].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
    assert torch.equal(score(model, ids[0].tolist()).log_probabilities, want)


def test_exact_scores_are_those_of_cached_decoding_bit_for_bit(exact, text):
    ids, cache = text(1, 60), exact.new_cache()
    rows = [exact(ids[:, [i]], cache=cache)[0, 0].log_softmax(-1) for i in range(59)]
    decoded = torch.stack([row[token] for row, token in zip(rows, ids[0, 1:], strict=True)])
    assert torch.equal(score(exact, ids[0].tolist()).log_probabilities, decoded)


def test_the_loss_is_transformers(model, text, tmp_path):
    model.save_pretrained(tmp_path)
    theirs = GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    ids = text(1, 160)
    want = theirs(ids, labels=ids).loss.item()
    # Other kernels for the same sums: float32 logits differ by some 1e-6.
    assert score(model, ids[0].tolist()).loss == pytest.approx(want, abs=1e-5)


def test_a_model_that_knows_nothing_is_as_perplexed_as_its_vocabulary_is_large(model, text):
    torch.nn.init.zeros_(model.lm_head.weight)
    result = score(model, text(1, 50)[0].tolist())
    assert result.loss == pytest.approx(math.log(211))
    assert result.perplexity == pytest.approx(211)
    # 49 tokens of log2(211) bits each, spread over 98 bytes
    assert result.bits_per_byte(98) == pytest.approx(math.log2(211) / 2)


def test_half_precision_is_scored_in_float32(make_model, text):
    model, ids = make_model(dtype=torch.bfloat16), text(1, 40)
    want = model(ids[:, :-1])[0].float().log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
    assert torch.equal(score(model, ids[0].tolist()).log_probabilities, want)


def test_a_hopeless_text_has_infinite_perplexity_and_no_error(model, text):
    with torch.no_grad():
        model.lm_head.weight.mul_(1e4)
    assert score(model, text(1, 20)[0].tolist()).perplexity == math.inf


# --- several windows ---


@pytest.mark.parametrize("stride", [1, 7, 19])
def test_each_token_is_scored_in_the_first_window_that_holds_it(make_model, text, stride):
    model, ids = make_model(numerics="exact", n_positions=20), text(1, 53)[0]
    result = score(model, ids.tolist(), stride)
    for token in range(1, 53):
        begin = max(0, -(-(token - 19) // stride) * stride)  # the first that reaches it
        assert token - begin >= min(token, 20 - stride)
        want = by_hand(model, ids[begin : token + 1])
        assert result.log_probabilities[token - 1] == want


@pytest.mark.parametrize(("length", "stride"), [(53, None), (53, 7), (40, 10), (20, 5), (21, 19)])
def test_windows_are_those_of_hugging_faces_guide_to_perplexity(
    make_model, text, tmp_path, length, stride
):
    model, ids = make_model(n_positions=20), text(1, length)
    model.save_pretrained(tmp_path)
    theirs = GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    total, end = 0.0, 0
    for begin in range(0, length, stride or 10):
        start, end = end, min(begin + 20, length)
        labels = ids[:, begin:end].clone()
        labels[:, : start - begin] = -100  # scored by the window before, and here only read
        scored = (labels[:, 1:] != -100).sum()
        total += (theirs(ids[:, begin:end], labels=labels).loss * scored).item()
        if end == length:
            break
    # Other kernels for the same sums: float32 logits differ by some 1e-6.
    assert score(model, ids[0].tolist(), stride).loss == pytest.approx(
        total / (length - 1), abs=1e-5
    )


@pytest.mark.parametrize(
    ("length", "counts"), [(2, [1]), (20, [19]), (21, [19, 1]), (31, [19, 7, 4])]
)
def test_progress_is_told_how_many_tokens_each_window_scored(make_model, text, length, counts):
    told: list[int] = []
    score(make_model(n_positions=20), text(1, length)[0].tolist(), stride=7, progress=told.append)
    assert told == counts


# --- manners ---


def test_scoring_is_done_in_evaluation_mode_and_leaves_the_model_as_it_was(make_model, text):
    model = make_model(resid_pdrop=0.5, embd_pdrop=0.5)
    ids = text(1, 30)[0].tolist()
    want = score(model, ids)
    model.train()
    model.h[0].eval()
    result = score(model, ids)
    assert torch.equal(result.log_probabilities, want.log_probabilities)
    assert (model.training, model.h[0].training, model.h[1].training) == (True, False, True)


def test_scoring_records_no_gradients(model, text):
    assert not score(model, text(1, 9)[0].tolist()).log_probabilities.requires_grad


def test_a_text_may_be_a_tensor(model, text):
    ids = text(1, 9)[0]
    assert score(model, ids).tokens == ids.tolist()


@pytest.mark.parametrize("stride", [0, -1, 160, 2.0, True])
def test_a_stride_out_of_range_is_refused(model, stride):
    with pytest.raises(MinigptError, match=f"stride is {stride}, needed.* from 1 to 159: less"):
        score(model, [1, 2, 3], stride)


@pytest.mark.parametrize(
    ("ids", "found"),
    [
        ([1, 211], "holds 211, needed whole numbers from 0 to 210"),
        ([-1, 2], "holds -1"),
        ([1.0, 2.0], "holds 1.0"),
        (["a"], "holds 'a'"),
        ([[1, 2]], r"holds \[1, 2\]"),
        ("text", "holds 't'"),
        (5, "is 5, needed a list of token ids"),
        (None, "is None, needed a list of token ids"),
    ],
)
def test_a_text_of_anything_but_tokens_is_refused(model, ids, found):
    with pytest.raises(MinigptError, match=f"the text {found}"):
        score(model, ids)


@pytest.mark.parametrize("ids", [[], [1]])
def test_a_text_without_a_token_to_score_is_refused(model, ids):
    with pytest.raises(
        MinigptError, match=f"text has {counted(len(ids), 'token')}, needed at least 2"
    ):
        score(model, ids)


@pytest.mark.parametrize("n_bytes", [0, -1, 2.5])
def test_a_text_without_bytes_has_no_bits_per_byte(model, n_bytes):
    with pytest.raises(MinigptError, match=f"n_bytes is {n_bytes}, needed"):
        score(model, [1, 2]).bits_per_byte(n_bytes)


def test_a_damaged_model_is_refused(model, text):
    with torch.no_grad():
        model.h[1].mlp.c_fc.weight[0, 0] = torch.nan
    with pytest.raises(MinigptError, match="logits hold nan at tokens 1 to 29: .*damaged"):
        score(model, text(1, 30)[0].tolist())


# --- minigpt score ---

STORY = "Once upon a time there was a fox.\r\nIt was café-coloured 🦊.\n" * 3


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(stories(1, 50), 300)


@pytest.fixture
def checkpoint(tokenizer, make_model, tmp_path):
    """checkpoint(eos_token_id=None): a saved model with its tokenizer, and the model."""

    def make(**changes):
        end = {"eos_token_id": tokenizer.eot_token}
        shape = {"vocab_size": tokenizer.n_vocab, "n_positions": 32}
        model = make_model(**shape, **{**end, **changes}, numerics="exact")
        model.save_pretrained(tmp_path / "model")
        tokenizer.save_pretrained(tmp_path / "model")
        return tmp_path / "model", model

    return make


@pytest.fixture
def run(capsys):
    """run(directory, FILE, ...): stdout and stderr of `minigpt score`."""

    def call(directory, *arguments):
        parser = Parser()
        command.add(parser.add_subparsers())
        options = parser.parse_args(["score", "--model", str(directory), *map(str, arguments)])
        assert options.run(options) == 0
        return capsys.readouterr()

    return call


@pytest.fixture
def story(tmp_path):
    path = tmp_path / "story.txt"
    path.write_bytes(STORY.encode())
    return path


def test_the_command_scores_every_token_of_the_file_after_an_end_of_text(
    run, checkpoint, story, tokenizer
):
    directory, model = checkpoint()
    result = score(model, [tokenizer.eot_token, *tokenizer.encode(STORY)], stride=5)
    assert json.loads(run(directory, story, "--stride", 5, "--json").out) == {
        "tokens": len(tokenizer.encode(STORY)),
        "bytes": len(STORY.encode()),
        "loss": result.loss,
        "perplexity": result.perplexity,
        "bits_per_byte": result.bits_per_byte(len(STORY.encode())),
    }


def test_the_command_says_the_same_in_a_line(run, checkpoint, story):
    directory, _ = checkpoint()
    figures = json.loads(run(directory, story, "--json").out)
    assert run(directory, story).out == (
        f"{figures['tokens']} tokens, {figures['bytes']} bytes: {figures['loss']:.4f} nats per "
        f"token, perplexity {figures['perplexity']:.2f}, {figures['bits_per_byte']:.4f} bits per "
        f"byte\n"
    )


def test_the_command_lists_tokens(run, checkpoint, story, tokenizer):
    directory, _ = checkpoint()
    figures = json.loads(run(directory, story, "--json", "--tokens").out)
    lines = run(directory, story, "--tokens").out.splitlines()[1:-1]
    assert figures["ids"] == tokenizer.encode(STORY)
    assert [line.split(maxsplit=2) for line in lines] == [
        [str(token), f"{value:.4f}", repr(tokenizer.decode([token]))]
        for token, value in zip(figures["ids"], figures["log_probabilities"], strict=True)
    ]


def test_the_command_reads_standard_input(run, checkpoint, story, monkeypatch):
    directory, _ = checkpoint()
    want = run(directory, story).out
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(STORY.encode())))
    assert run(directory, "-").out == want


def test_the_command_shows_progress_on_stderr_only(run, checkpoint, story):
    directory, _ = checkpoint()
    output = run(directory, story)
    assert output.err == ""  # no terminal, no bar
    assert "token/s" not in output.out


def test_the_progress_bar_counts_every_token(run, checkpoint, story, monkeypatch):
    directory, _ = checkpoint()
    steps: list[int] = []
    monkeypatch.setattr("tqdm.tqdm.update", lambda bar, count: steps.append(count))
    figures = json.loads(run(directory, story, "--json").out)
    assert len(steps) > 1
    assert sum(steps) == figures["tokens"]


def test_without_an_end_of_text_token_the_first_is_not_scored(run, checkpoint, story, tokenizer):
    directory, _ = checkpoint(eos_token_id=None)
    output = run(directory, story, "--json")
    ids = tokenizer.encode(STORY)
    figures = json.loads(output.out)
    assert "the first token is not scored" in output.err
    assert figures["tokens"] == len(ids) - 1
    assert figures["bytes"] == len(STORY.encode()) - len(tokenizer.decode_bytes(ids[:1]))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "missing.txt cannot be read .*: give a text file"),
        (b"", "missing.txt is empty, needed text to score"),
        (b"caf\xe9", "missing.txt is not UTF-8 text \\(byte 3 is 0xe9\\): convert it"),
    ],
)
def test_a_file_without_text_is_refused(run, tmp_path, content, sentence):
    path = tmp_path / "missing.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(MinigptError, match=sentence):
        run("weights/toy", path)


def test_a_standard_input_without_text_is_refused(run, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"")))
    with pytest.raises(MinigptError, match="^standard input is empty"):
        run("weights/toy", "-")
