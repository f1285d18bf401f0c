"""The training loop: what it learns, what a step is, and what it does when something is wrong."""

from __future__ import annotations

import math
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

from minigpt import GPT, GPTConfig, MinigptError, Tokenizer
from minigpt.checkpoint import weights
from minigpt.tokenizer import byte_tokenizer
from minigpt.training import state as checkpoint
from minigpt.training.curves import read
from minigpt.training.data import Corpus
from minigpt.training.loop import CHECKPOINTS, Run, rate, train
from minigpt.training.losses import Evaluation, cross_entropy, evaluate
from minigpt.training.parallel import Processes
from minigpt.training.recipes import TrainConfig
from minigpt.training.sources import Text

CONFIG = TrainConfig(
    n_layer=1, n_head=2, n_embd=16, n_positions=8, steps=20, batch_size=8, warmup=5,
    learning_rate=1e-2, evaluate_every=10, save_every=10,
)  # fmt: skip
ALONE = Processes(torch.device("cpu"))


def tiny(**changes: float) -> GPT:
    torch.manual_seed(0)
    shape = GPTConfig(257, 8, 16, 1, 2, embd_pdrop=0, attn_pdrop=0, resid_pdrop=0)
    return GPT(replace(shape, **changes))


def counting(length: int = 500, held_out: int = 100, **settings) -> Text:
    """0 1 2 3 4 5 6 0 1 2 ..."""
    training, rest = (np.arange(n, dtype=np.uint16) % 7 for n in (length, held_out))
    return Text(Corpus(byte_tokenizer(), training, rest, held_out), 8, seed=1, **settings)


def run(directory, config=CONFIG, model=None, source=None, **settings):
    model = model or tiny()
    return model, train(model, source or counting(), config, directory, **settings)


def prepared(directory, config=CONFIG, model=None, processes=ALONE, source=None) -> Run:
    """A run before its first step."""
    return Run(model or tiny(), source or counting(), config, directory, processes, resume=False)


def same(one: GPT, two: GPT) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


class TestLearning:
    def test_a_model_learns_to_count(self, tmp_path):
        _, state = run(tmp_path, replace(CONFIG, steps=100, evaluate_every=50))
        assert state.best < 0.1 < math.log(7)

    def test_the_same_seed_gives_the_same_weights_bit_for_bit(self, tmp_path):
        one, _ = run(tmp_path / "one")
        two, _ = run(tmp_path / "two")
        assert same(one, two)

    def test_another_seed_draws_other_windows(self):
        source = counting()
        assert not torch.equal(
            source.batch(0, [0, 1])[0], replace(source, seed=2).batch(0, [0, 1])[0]
        )

    def test_dropout_differs_from_step_to_step_and_not_between_runs(self, tmp_path):
        config = replace(CONFIG, learning_rate=1e-9)  # so that only dropout can make a difference
        source = counting()
        source.corpus.training[:] = 3  # every window is the same
        losses = [
            [a_run.step().loss for _ in range(3)]
            for a_run in (
                prepared(tmp_path, config, tiny(resid_pdrop=0.5), source=source) for _ in range(2)
            )
        ]
        assert losses[0] == losses[1]
        assert len(set(losses[0])) == 3

    def test_is_reported_before_the_first_step_at_each_evaluation_and_at_the_end(self, tmp_path):
        lines = []
        run(tmp_path, replace(CONFIG, steps=5, evaluate_every=2), report=lines.append)
        assert [line.split(":")[0] for line in lines] == ["step 0", "step 2", "step 4", "step 5"]

    def test_begins_with_the_loss_of_the_model_as_it_came(self, tmp_path):
        run(tmp_path)
        assert read(tmp_path)[0]["held_out"] == evaluate(tiny(), counting().held_out())

    def test_says_how_fast_it_is_only_where_that_is_asked_for(self, tmp_path):
        quiet, telling = [], []
        run(tmp_path / "quiet", report=quiet.append)
        run(tmp_path / "telling", report=telling.append, timed=True)
        assert not any("tokens/s" in line for line in quiet)
        assert ["tokens/s" in line for line in telling] == [False, True, True]

    def test_tells_after_each_evaluation_when_the_log_has_it(self, tmp_path):
        seen = []
        run(tmp_path, evaluated=lambda: seen.append(read(tmp_path)[-1]["step"]))
        assert seen == [0, 10, 20]

    def test_samples_are_told_when_asked_for(self, tmp_path):
        lines = []
        config = replace(CONFIG, steps=4, sample_every=2, sample_tokens=3)
        run(tmp_path, config, report=lines.append)
        assert sum("<|endoftext|>" in line for line in lines) == 2

    def test_samples_do_not_change_what_is_learned(self, tmp_path):
        quiet, _ = run(tmp_path / "quiet")
        telling, _ = run(tmp_path / "telling", replace(CONFIG, sample_every=3, sample_tokens=3))
        assert same(quiet, telling)

    def test_the_log_has_the_loss_of_each_step_and_each_evaluation(self, tmp_path):
        run(tmp_path)
        rows = read(tmp_path)
        assert [row["step"] for row in rows if "loss" in row] == list(range(1, 21))
        assert [row["step"] for row in rows if "held_out" in row] == [0, 10, 20]

    def test_the_log_has_the_rate_that_was_used_and_the_norm_of_the_gradient(self, tmp_path):
        run(tmp_path)
        steps = [row for row in read(tmp_path) if "loss" in row]
        assert steps[0]["learning_rate"] == pytest.approx(CONFIG.learning_rate / CONFIG.warmup)
        assert all(row["norm"] > 0 and row["tokens_per_second"] > 0 for row in steps)

    def test_the_log_has_bits_per_byte(self, tmp_path):
        run(tmp_path)
        row = read(tmp_path)[0]  # bytes are the tokens
        assert row["bits_per_byte"] == pytest.approx(row["held_out"] / math.log(2))

    def test_a_bar_is_for_terminals_and_stays_out_of_files_and_notebooks(self, tmp_path, capsys):
        run(tmp_path)
        assert capsys.readouterr().err == ""


class TestTheBestModel:
    def test_is_kept_with_its_tokenizer_and_loads_as_a_plain_checkpoint(self, tmp_path):
        model, state = run(tmp_path, replace(CONFIG, steps=60))
        assert state.best_step == 60
        assert same(GPT.from_pretrained(tmp_path), model)
        assert Tokenizer.from_pretrained(tmp_path).n_vocab == 257

    def test_stays_when_later_ones_are_worse(self, tmp_path, monkeypatch):
        losses = iter([4.0, 3.0, 1.0, 2.0])
        found = Evaluation(0.0, 0.1, 0.0, 10)
        monkeypatch.setattr(
            "minigpt.training.loop.assess", lambda *_: found._replace(loss=next(losses))
        )
        config = replace(CONFIG, steps=3, evaluate_every=1, save_every=1, keep=3)
        _, state = run(tmp_path, config)
        assert (state.best, state.best_step) == (1.0, 2)
        second = weights.load(tmp_path / CHECKPOINTS / "step-00000002")[1]
        kept = weights.load(tmp_path)[1]
        assert all(torch.equal(kept[name], second[name]) for name in kept)


class TestAStep:
    def test_decays_matrices_only(self, tmp_path):
        groups = prepared(tmp_path).optimizer.param_groups
        decayed = {group["weight_decay"]: {p.ndim for p in group["params"]} for group in groups}
        assert decayed == {0.1: {2}, 0.0: {1}}
        assert sum(len(group["params"]) for group in groups) == len(list(tiny().parameters()))

    def test_in_pieces_is_the_step_in_one(self, tmp_path):
        models = []
        for pieces in (1, 4):
            model, _ = run(tmp_path / str(pieces), replace(CONFIG, accumulate=pieces))
            models.append(model)
        for a, b in zip(*(m.parameters() for m in models), strict=True):
            # The same sums, added up in another order, 20 times over; AdamW's division enlarges it.
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)

    def test_counts_each_target_once_however_they_are_divided(self, tmp_path):
        class Uneven(Text):
            """Some rows have fewer targets that count."""

            def batch(self, step, rows):
                inputs, targets = super().batch(step, rows)
                targets[torch.tensor(list(rows)) < 4, 2:] = -100
                return inputs, targets

        source = Uneven(**vars(counting()))
        whole, pieces = (
            prepared(tmp_path, replace(CONFIG, accumulate=n), source=source).step() for n in (1, 4)
        )
        assert pieces.loss == pytest.approx(whole.loss, rel=1e-6)
        assert pieces.norm == pytest.approx(whole.norm, rel=1e-5)

    def test_clips_the_gradients_of_all_parameters_together(self, tmp_path):
        a_run = prepared(tmp_path, replace(CONFIG, clip=0.01))
        seen = []
        a_run.optimizer.register_step_pre_hook(
            lambda *_: seen.append(
                torch.stack([p.grad.norm() for p in a_run.model.parameters()]).norm().item()
            )
        )
        assert a_run.step().norm > 0.1
        assert seen == [pytest.approx(0.01, rel=1e-3)]

    def test_leaves_the_gradients_as_they_are_with_clip_0(self, tmp_path):
        free, clipped = (prepared(tmp_path, replace(CONFIG, clip=c)).step() for c in (0.0, 1e9))
        assert (free.loss, free.norm) == (clipped.loss, clipped.norm)

    def test_recomputing_activations_changes_no_bit(self, tmp_path):
        plain, _ = run(tmp_path / "plain", model=tiny(resid_pdrop=0.1))
        config = replace(CONFIG, recompute=True)
        recomputed, _ = run(tmp_path / "recomputed", config, tiny(resid_pdrop=0.1))
        assert same(plain, recomputed)

    def test_recomputing_runs_each_block_twice(self, tmp_path):
        a_run, calls = prepared(tmp_path, replace(CONFIG, recompute=True)), []
        a_run.model.h[0].ln_1.register_forward_hook(lambda *_: calls.append(1))
        a_run.step()
        assert len(calls) == 2

    @pytest.mark.parametrize("precision", ["bfloat16", "float16"])
    def test_in_mixed_precision_learns_as_well(self, tmp_path, precision):
        config = replace(CONFIG, steps=100, precision=precision, evaluate_every=100)
        _, state = run(tmp_path, config)
        assert state.best < 0.1

    def test_in_mixed_precision_multiplies_in_it_and_keeps_float32_weights(self, tmp_path):
        a_run = prepared(tmp_path, replace(CONFIG, precision="bfloat16"))
        seen = []
        a_run.model.h[0].mlp.c_fc.register_forward_hook(lambda m, i, out: seen.append(out.dtype))
        a_run.step()
        assert seen == [torch.bfloat16]
        assert {p.dtype for p in a_run.model.parameters()} == {torch.float32}

    def test_that_overflows_float16_is_skipped_and_the_scale_halved(self, tmp_path):
        a_run = prepared(tmp_path, replace(CONFIG, precision="float16"))
        a_run.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
        before = a_run.tensors()["wte.weight"].clone()
        a_run.step()
        assert torch.equal(a_run.tensors()["wte.weight"], before)
        assert a_run.scaler.get_scale() == 2.0**39

    def test_compiles_its_blocks_and_the_loss_once_and_not_for_evaluations(
        self, tmp_path, monkeypatch
    ):
        compiled, for_real = [], torch.compile

        def compile_quickly(what):
            def backend(graph, inputs):
                compiled.append(getattr(what, "__self__", what))
                return graph

            return for_real(what, backend=backend)

        def compile_block(block):
            block._compiled_call_impl = compile_quickly(block._call_impl)

        monkeypatch.setattr(torch, "compile", compile_quickly)
        monkeypatch.setattr(torch.nn.Module, "compile", compile_block)
        monkeypatch.setattr("minigpt.training.loop.require_compiler", lambda device: None)
        torch.compiler.reset()
        model, _ = run(tmp_path / "compiled", replace(CONFIG, compile=True))
        assert compiled == [model.h[0], cross_entropy]
        assert same(model, run(tmp_path / "plain")[0])


class TestTheRate:
    def test_warms_up_and_falls_to_a_tenth(self):
        config = TrainConfig(steps=100, warmup=10)
        assert [rate(step, config) for step in (0, 1, 10, 100)] == pytest.approx([0.1, 0.2, 1, 0.1])

    def test_is_half_way_down_in_the_middle(self):
        assert rate(60, TrainConfig(steps=110, warmup=10)) == pytest.approx((1 + 0.1) / 2)

    def test_stays_when_it_is_constant(self):
        config = TrainConfig(schedule="constant", warmup=10, steps=100)
        assert [rate(step, config) for step in (4, 10, 99)] == [0.5, 1.0, 1.0]

    def test_starts_in_full_without_warm_up(self):
        assert rate(0, TrainConfig(warmup=0)) == 1

    def test_is_what_the_optimizer_gets(self, tmp_path):
        a_run = prepared(tmp_path)
        a_run.step()
        assert {g["lr"] for g in a_run.optimizer.param_groups} == {CONFIG.learning_rate / 5}


class TestAnEvaluation:
    def test_is_the_mean_over_whole_windows(self):
        model, source = tiny().eval(), counting(held_out=8 * 70 + 4)  # in two passes
        text, losses = torch.from_numpy(source.corpus.held_out.astype(np.int64)), []
        for start in range(0, 560, 8):
            logits = model(text[None, start : start + 8])[0].double().log_softmax(-1)
            losses += [-logits[i, text[start + i + 1]].item() for i in range(8)]
        assert evaluate(model, source.held_out()) == pytest.approx(sum(losses) / 560, rel=1e-6)

    def test_of_fewer_windows_takes_them_from_all_of_the_text(self):
        source = counting(held_out=8 * 100 + 1)
        [(inputs, _)] = source.held_out(4)
        whole = torch.cat([x for x, _ in source.held_out()])
        assert torch.equal(inputs, whole[[0, 25, 50, 75]])

    def test_is_without_dropout(self):
        model = tiny(resid_pdrop=0.5).train()
        assert evaluate(model, counting().held_out()) == evaluate(model, counting().held_out())

    def test_that_fails_leaves_the_training_mode_too(self):
        model = tiny(vocab_size=5).train()
        with pytest.raises(MinigptError, match="token 6 is outside"):
            evaluate(model, counting().held_out())
        assert all(module.training for module in model.modules())


class TestFreezing:
    def test_leaves_the_parts_named_and_trains_the_rest(self, tmp_path):
        model, _ = run(tmp_path, replace(CONFIG, freeze="wpe,h.0.mlp"))
        moved = {n for (n, a), b in zip(model.named_parameters(), tiny().parameters(), strict=True)
                 if not torch.equal(a, b)}  # fmt: skip
        assert moved == {
            name for name, _ in tiny().named_parameters() if not name.startswith(("wpe", "h.0.mlp"))
        }

    @pytest.mark.parametrize(
        ("parts", "sentence"),
        [("h.7", "freeze names 'h.7', needed a part of wte, wpe"),
         ("wte,wpe,h,ln_f", "freeze leaves nothing to train")],
    )  # fmt: skip
    def test_of_nothing_or_everything_is_refused(self, tmp_path, parts, sentence):
        with pytest.raises(MinigptError, match=sentence):
            prepared(tmp_path, replace(CONFIG, freeze=parts))


class TestAnInterrupt:
    @pytest.fixture
    def before(self):
        """What Ctrl-C does: a shell may have set it to be ignored, an earlier test not to be."""
        return signal.getsignal(signal.SIGINT)

    @pytest.fixture(params=[signal.SIGINT, signal.SIGTERM])
    def interrupted(self, request, tmp_path):
        """A run into `tmp_path` that is told to stop at its second evaluation, after step 10."""

        def stop(line):
            if line.startswith("step 10"):
                os.kill(os.getpid(), request.param)

        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, replace(CONFIG, save_every=100), report=stop)
        return tmp_path

    def test_saves_the_step_it_was_in(self, interrupted):
        assert checkpoint.newest_checkpoint(interrupted / CHECKPOINTS).name == "step-00000011"

    def test_changes_nothing_once_the_run_is_resumed(self, interrupted, tmp_path_factory):
        resumed, _ = run(interrupted, replace(CONFIG, save_every=100), resume=True)
        whole, _ = run(tmp_path_factory.mktemp("whole"))
        assert same(resumed, whole)

    def test_leaves_the_signals_as_they_were(self, before, interrupted):
        assert signal.getsignal(signal.SIGINT) is before


class TestBadInput:
    def test_a_loss_that_is_no_number_stops_the_run_and_keeps_what_was_saved(self, tmp_path):
        def poison(line):
            if line.startswith("step 10"):
                with torch.no_grad():
                    model.ln_f.bias.fill_(torch.nan)

        model = tiny()
        with pytest.raises(MinigptError, match="the loss at step 11 is nan .* lower learning_rate"):
            run(tmp_path, replace(CONFIG, steps=30), model, report=poison)
        assert checkpoint.newest_checkpoint(tmp_path / CHECKPOINTS).name == "step-00000010"
        assert all(p.isfinite().all() for p in GPT.from_pretrained(tmp_path).parameters())

    def test_a_directory_with_a_run_is_not_overwritten(self, tmp_path):
        run(tmp_path)
        with pytest.raises(MinigptError, match="holds a run already, up to step-00000020"):
            run(tmp_path)

    def test_a_place_that_cannot_be_written_is_refused_before_any_training(self, tmp_path):
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(MinigptError, match="cannot save in .*file.*: choose another place"):
            run(tmp_path / "file", report=lambda line: pytest.fail("began"))

    def test_a_batch_that_cannot_be_divided_is_refused(self, tmp_path):
        with pytest.raises(MinigptError, match="batch_size is 8.*multiple of 3"):
            prepared(tmp_path, replace(CONFIG, accumulate=3))

    def test_sharding_one_process_is_refused(self, tmp_path):
        with pytest.raises(MinigptError, match="start minigpt with torchrun"):
            prepared(tmp_path, replace(CONFIG, shard=True))
