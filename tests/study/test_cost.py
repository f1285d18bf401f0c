"""What a model is made of and what its caches cost: the numbers are those of the real things."""

from __future__ import annotations

import json

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from minigpt import GPT, GPTConfig, MinigptError
from minigpt.cache.kinds import KINDS
from minigpt.checkpoint import weights
from minigpt.commands.cli import main
from minigpt.study.cost import cache_bytes, inspect, parse_size, pass_cost

TOY = "weights/toy"


@pytest.fixture
def run(capsys):
    """run("gpt2", ...): exit code, stdout and stderr of the command."""

    def call(*arguments):
        return main(["inspect", *arguments]), *capsys.readouterr()

    return call


@pytest.fixture
def saved(make_model, tmp_path):
    """A checkpoint in bfloat16, with grouped heads and a head of its own."""
    changes = {"n_kv_head": 1, "tie_word_embeddings": False}
    make_model(dtype=torch.bfloat16, **changes).save_pretrained(tmp_path)
    return tmp_path


class TestAPass:
    """torch counts the FLOP of its products itself; ours must be the same number."""

    @pytest.mark.parametrize(("rows", "new", "held"), [(1, 1, 0), (3, 1, 20), (2, 7, 11)])
    @pytest.mark.parametrize("heads", [None, 1])
    def test_multiplies_what_torch_counts(self, make_model, text, rows, new, held, heads):
        model = make_model(n_kv_head=heads, numerics="fast").eval()
        cache = model.new_cache(batch_size=rows, kind="growing")
        if held:
            model.next_logits(text(rows, held), cache=cache)
        plain = sdpa_kernel(SDPBackend.MATH)  # of others, torch does not know the FLOP
        with plain, FlopCounterMode(display=False) as counted:
            model.next_logits(text(rows, new, seed=1), cache=cache)
        mine = pass_cost(model.config, rows, new, held)
        assert mine.flop == counted.get_total_flops()

    def test_reads_every_weight_once_and_the_cache_of_every_row(self, make_model):
        config = make_model(n_kv_head=1).config
        one, two = (pass_cost(config, rows, 1, held=9) for rows in (1, 2))
        L, D = config.n_layer, config.head_dim
        assert two.nbytes - one.nbytes == 4 * 10 * 2 * L * D  # 10 positions, one key/value head
        matrices = [shape for name, shape in config.tensors().items() if len(shape) == 2]
        weights = sum(a * b for a, b in matrices) - config.n_positions * config.n_embd
        assert one.nbytes == 4 * weights + (two.nbytes - one.nbytes)
        half = pass_cost(config, 1, 1, held=9, dtype=torch.bfloat16)
        assert 2 * half.nbytes == one.nbytes
        assert half.intensity == 2 * one.intensity == half.flop / half.nbytes

    @pytest.mark.parametrize(
        ("numbers", "sentence"),
        [((0, 1, 0), "rows is 0"), ((1, 0, 0), "new is 0"), ((1, 1, -1), "held is -1")],
    )
    def test_has_rows_and_tokens(self, numbers, sentence):
        with pytest.raises(MinigptError, match=sentence):
            pass_cost(GPTConfig(), *numbers)


class TestTheParameters:
    def test_of_gpt2_are_those_published(self):
        assert inspect("gpt2").total == 124_439_808

    def test_add_up_to_the_models(self, saved):
        found, model = inspect(saved), GPT.from_pretrained(saved)
        assert found.total == sum(p.numel() for p in model.parameters())
        assert found.nbytes == sum(p.nbytes for p in model.parameters())
        assert found.dtype == found.stored == "bfloat16"

    def test_of_a_narrow_file_take_what_they_are_widened_to(self, make_model, tmp_path):
        model = make_model()
        state = {n: t for n, t in model.state_dict().items() if n != "lm_head.weight"}
        weights.save(tmp_path, model.config, state, torch.bfloat16)
        found = inspect(tmp_path)
        assert found.nbytes == sum(p.nbytes for p in GPT.from_pretrained(tmp_path).parameters())
        line = f"stored in bfloat16 ({found.total * 2:,} bytes), computed with in float32"
        assert line in str(found)
        assert "stored in" not in str(inspect("gpt2"))

    def test_are_told_by_part(self, saved):
        found, model = inspect(saved).parameters, GPT.from_pretrained(saved)
        for part, module in (("token embeddings", model.wte), ("position embeddings", model.wpe),
                             ("output head", model.lm_head)):  # fmt: skip
            assert found[part] == module.weight.numel()
        for part, name in (("attention", "attn"), ("MLPs", "mlp")):
            blocks = [getattr(block, name) for block in model.h]
            assert found[part] == sum(p.numel() for b in blocks for p in b.parameters())

    def test_have_no_head_of_their_own_where_it_is_tied(self):
        assert "output head" not in inspect("gpt2").parameters

    def test_need_no_weights(self, saved):
        want = inspect(saved).parameters
        (saved / "model.safetensors").unlink()
        assert inspect(saved).parameters == want
        assert inspect(saved).dtype == "bfloat16"  # as config.json says


class TestTheCaches:
    @pytest.mark.parametrize("length", [0, 1, 33, 160])
    @pytest.mark.parametrize("kind", KINDS)
    def test_take_what_a_real_one_takes(self, make_model, text, kind, length):
        model = make_model(n_kv_head=1)
        cache = model.new_cache(kind=kind)
        if length:
            model(text(1, length), cache=cache)
        assert cache_bytes(model.config, kind, length) == cache.nbytes

    def test_are_told_by_kind_and_dtype(self):
        found = {(cost.kind, cost.dtype): cost for cost in inspect("gpt2").caches}
        assert len(found) == 2 * len(KINDS)
        assert found["static", "float32"].token == 73_728  # 2 x 12 layers x 768 x 4 bytes
        assert found["static", "bfloat16"].sequence == 1024 * 73_728 // 2
        assert found["quantized", "float32"].token == 20_160
        assert found["window", "float32"].sequence == (4 + 256) * 73_728

    def test_of_a_batch_take_what_a_real_batch_takes(self, saved):
        model = GPT.from_pretrained(saved)
        found = {(cost.kind, cost.dtype): cost for cost in inspect(saved, batch=3).caches}
        for kind in ("static", "quantized"):
            assert found[kind, "bfloat16"].batch == model.new_cache(3, kind=kind).nbytes

    def test_fit_beside_the_weights(self):
        weights, per_token = 4 * 124_439_808, 73_728
        found = inspect("gpt2", memory=weights + 2 * 1024 * per_token + 5 * per_token).caches[0]
        assert (found.tokens_that_fit, found.sequences_that_fit) == (2 * 1024 + 5, 2)

    def test_do_not_fit_where_the_weights_do_not(self):
        found = inspect("gpt2", memory=10**6).caches[0]
        assert (found.tokens_that_fit, found.sequences_that_fit) == (0, 0)

    def test_are_told_what_the_weights_alone_take_where_they_do_not_fit(self):
        *_, both = str(inspect("gpt2", memory=10**9)).splitlines()
        assert both.endswith("leave 502,240,768 (float32) and 751,120,384 (bfloat16) for caches")
        *_, one = str(inspect("gpt2-xl", memory=4 * 10**9)).splitlines()
        assert "leave 884,777,600 (bfloat16) for caches; in float32 the weights alone" in one
        *_, none = str(inspect("gpt2-xl", memory=2 * 10**9)).splitlines()
        assert "the weights leave nothing for caches" in none
        assert "in float32 the weights alone take 6,230,444,800 bytes" in none
        assert "in bfloat16 the weights alone take 3,115,222,400 bytes" in none


class TestTheSource:
    def test_may_be_a_preset_with_or_without_random_before_it(self):
        assert inspect("random:gpt2-xl").config == inspect("gpt2-xl").config
        assert inspect("gpt2-xl").config == GPTConfig.preset("gpt2-xl")

    def test_is_the_directory_where_one_has_a_presets_name(self, saved, monkeypatch):
        (saved / "gpt2").mkdir()
        (saved / "gpt2" / "config.json").write_bytes((saved / "config.json").read_bytes())
        monkeypatch.chdir(saved)
        assert inspect("gpt2").config.vocab_size == 211

    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            (("random:gpt9",), "no preset is called 'gpt9'"),
            (("./nowhere",), "there is no directory './nowhere'"),
            ((TOY, 0), "batch is 0, needed a whole number of at least 1"),
            ((TOY, 1, 0), "memory is 0, needed"),
        ],
    )
    def test_or_the_numbers_can_be_wrong(self, arguments, sentence):
        with pytest.raises(MinigptError, match=sentence):
            inspect(*arguments)

    def test_needs_a_config(self, tmp_path):
        with pytest.raises(MinigptError, match=r"config\.json does not exist"):
            inspect(tmp_path)

    def test_needs_a_gpt2(self, tmp_path):
        (tmp_path / "config.json").write_text('{"model_type": "llama"}')
        with pytest.raises(MinigptError, match="says model_type 'llama'"):
            inspect(tmp_path)


@pytest.mark.parametrize(
    ("text", "size"),
    [("512MB", 512 * 10**6), ("8GB", 8 * 10**9), ("8GiB", 8 * 2**30), ("1.5 gb", 15 * 10**8),
     ("64k", 64_000), ("1000", 1000), (" 2 TiB ", 2**41), ("7B", 7)],
)  # fmt: skip
def test_a_size_is_read(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "8 gigs", "-1GB", "0", "1e9", "8iB", "nan"])
def test_a_size_that_is_none_is_refused(text):
    with pytest.raises(MinigptError, match="needed a number of bytes such as 512MB, 8GB or 8GiB"):
        parse_size(text)


class TestTheCommand:
    def test_prints_aligned_tables(self, run):
        code, out, err = run("gpt2", "--batch", "2")
        parameters, caches = out.split("\n\n")[1:3]
        assert (code, err) == (0, "")
        assert out.startswith("gpt2: 12 layers, 12 heads of 64, width 768, context 1,024")
        assert len({len(line) for line in parameters.splitlines()}) == 1
        assert len({len(line) for line in caches.splitlines()[1:]}) == 1
        assert "124,439,808  100.0%" in out

    def test_writes_json(self, run):
        code, out, _ = run("gpt2", "--json", "--memory", "1GiB")
        found = json.loads(out)
        assert code == 0
        assert found["total"] == 124_439_808
        assert found["memory"] == 2**30
        assert found["caches"][0]["token"] == 73_728

    def test_draws(self, run, tmp_path):
        pytest.importorskip("matplotlib")
        code, _, err = run("gpt2", "--plot", str(tmp_path / "growth.svg"))
        assert code == 0
        assert "tokens" in (tmp_path / "growth.svg").read_text()
        assert "drawn in" in err
