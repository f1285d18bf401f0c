"""Whose keys and values a cache holds: nobody goes on with rows that are not theirs."""

from __future__ import annotations

import copy
import gc

import pytest
import torch

from minigpt import GPT, KVCache, MinigptError, generate, load_cache, save_cache
from minigpt.cache import origin as module
from minigpt.cache.kinds import KINDS
from minigpt.cache.origin import DROPOUT, FOREIGN, fingerprint, revision
from minigpt.checkpoint.pretrained import quantize
from minigpt.numerics.place import tied_to_threads


class TestTheFingerprint:
    def test_is_the_same_for_a_copy(self, model):
        assert fingerprint(copy.deepcopy(model)) == fingerprint(model)

    def test_is_the_same_for_the_model_loaded_from_disk(self, model, tmp_path):
        model.save_pretrained(tmp_path)
        assert fingerprint(GPT.from_pretrained(tmp_path)) == fingerprint(model)

    def test_is_another_for_another_configuration(self, make_model):
        changed = make_model(layer_norm_epsilon=1e-6)
        assert fingerprint(changed) != fingerprint(make_model())

    @pytest.mark.parametrize("name", ["wte", "wpe", "h.1.attn.c_attn", "h.0.mlp.c_proj", "ln_f"])
    def test_follows_one_number_of_a_weight_changed_in_place(self, model, name):
        before = fingerprint(model)
        with torch.no_grad():
            model.get_submodule(name).weight.flatten()[7] += 1e-6
        assert fingerprint(model) != before

    def test_follows_two_rows_that_change_places(self, model):
        before = fingerprint(model)
        with torch.no_grad():
            model.wte.weight[[3, 90]] = model.wte.weight[[90, 3]]
        assert fingerprint(model) != before

    def test_follows_a_conversion_there_and_back(self, model):
        before = fingerprint(model)
        model.bfloat16().float()
        assert fingerprint(model) != before

    def test_follows_a_training_step(self, model, text):
        before = fingerprint(model)
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        model(text(1, 9)).sum().backward()
        optimizer.step()
        assert fingerprint(model) != before

    def test_reads_the_weights_once_while_they_stay_as_they_are(self, model, monkeypatch):
        before = fingerprint(model)
        monkeypatch.setattr(module, "checksum", None)  # whoever calls it now fails
        assert fingerprint(model) == before

    @pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
    def test_follows_a_change_of_a_model_that_was_made_in_inference_mode(self, make_model, mode):
        with torch.inference_mode():
            model = make_model()
            before = fingerprint(model)
            model.wte.weight.view(-1)[7] += 1
            assert fingerprint(model) != before
            again = make_model()
            model.load_state_dict(again.state_dict())
        assert fingerprint(model) == before == fingerprint(make_model())

    def test_tells_apart_weights_that_have_the_same_scales_in_8_bits(self, make_model):
        model, other = make_model(), make_model()
        with torch.no_grad():
            other.h[0].mlp.c_fc.weight.neg_()
        for each in (model, other):
            quantize(each)
        assert fingerprint(model) != fingerprint(other)

    def test_of_a_revision_is_that_of_its_weights(self, model):
        before = revision(model)
        want = fingerprint(model)
        with torch.no_grad():
            model.wte.weight.mul_(2)
        assert revision(model) is not before
        assert before.fingerprint == want != fingerprint(model)

    def test_of_a_revision_is_unknown_when_its_weights_went_unread(self, make_model):
        model = make_model()
        changed, gone = revision(model), revision(make_model())
        with torch.no_grad():
            model.wte.weight.mul_(2)
        gc.collect()
        assert changed.fingerprint is gone.fingerprint is None

    def test_reading_sees_a_single_number_written_through_data(self, model):
        before = revision(model, read=True)
        model.wte.weight.data[3, 3] += 1
        assert revision(model) is before  # not at a glance
        assert revision(model, read=True) is not before
        assert before.model is None


def filled(model: GPT, text, kind: str = "static") -> KVCache:
    cache = model.new_cache(kind=kind)
    model(text(1, 20), cache=cache)
    return cache


def train(model: GPT, fused: bool) -> None:
    with torch.inference_mode(False), torch.enable_grad():
        model(torch.tensor([[1, 2, 3]])).sum().backward()
        torch.optim.AdamW(model.parameters(), fused=fused).step()


CHANGES = {
    "one number": lambda model: model.h[1].attn.c_attn.bias[5:6].add_(1),
    "a weight": lambda model: model.h[0].mlp.c_fc.weight.zero_(),
    "a parameter": lambda model: setattr(model.ln_f, "bias", torch.nn.Parameter(torch.ones(48))),
    "a layer": lambda model: setattr(model.h[0], "mlp", copy.deepcopy(model.h[1].mlp)),
    "all, loaded": lambda model: model.load_state_dict(
        {name: weight + 1 for name, weight in model.state_dict().items()}
    ),
    "a conversion and back": lambda model: model.half().float(),
    "a matrix, through data": lambda model: model.h[1].mlp.c_proj.weight.data.mul_(1.5),
    "a head, through data": lambda model: model.h[0].attn.c_attn.weight.data[:, :16].zero_(),
    "8 bits": quantize,
    "a step": lambda model: train(model, fused=False),
    "a fused step": lambda model: train(model, fused=True),
}
CHANGED = "have changed since: reset"
OTHER = "was filled by another model, whose weights or configuration are not"


class TestACacheOfOtherWeights:
    @pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
    @pytest.mark.parametrize("change", CHANGES)
    def test_is_refused_after_a_change_of(self, exact, text, change, mode):
        cache = filled(exact, text)
        keys = cache.layer(1)[0].clone()
        with mode():
            CHANGES[change](exact)
        with pytest.raises(MinigptError, match=CHANGED):
            exact(text(1, 1), cache=cache)
        assert torch.equal(cache.layer(1)[0], keys)
        cache.reset()
        with torch.no_grad():
            assert torch.equal(exact(text(1, 9), cache=cache), exact(text(1, 9)))

    @pytest.mark.parametrize("kind", KINDS)
    def test_is_refused_by_a_model_of_the_same_shape(self, make_model, text, kind):
        a, b = make_model("exact"), make_model("exact", layer_norm_epsilon=1e-3)
        cache = filled(a, text, kind)
        for use in (
            lambda: b(text(1, 1), cache=cache),
            lambda: b.next_logits(text(1, 1), cache=cache.fork()),
            lambda: generate(b, text(1, 25)[0].tolist(), 8, cache=cache),
            lambda: KVCache.concat([cache, filled(b, text, kind)]),
        ):
            with pytest.raises(MinigptError, match=OTHER):
                use()
        assert cache.lengths == [20]
        assert cache.tokens == text(1, 20).tolist()

    def test_is_refused_when_a_part_of_it_is(self, make_model, text):
        a, b = make_model("exact"), make_model("exact", layer_norm_epsilon=1e-3)
        rows = KVCache.concat([filled(a, text), b.new_cache()])
        for rest in (rows, rows.select([0]), rows.expand(2) if rows.batch_size == 1 else rows):
            with pytest.raises(MinigptError, match=OTHER):
                b(text(rest.batch_size, 1), cache=rest)

    def test_is_taken_when_it_is_empty(self, make_model, text):
        a, b = make_model("exact"), make_model("exact", layer_norm_epsilon=1e-3)
        cache = filled(a, text)
        cache.truncate(0)
        assert torch.equal(b(text(1, 9), cache=cache), b(text(1, 9)))
        assert cache.origin.weights.model is b

    def test_is_taken_by_a_model_of_the_same_bits(self, make_model, text):
        a, b = make_model("exact"), make_model("exact")
        cache = filled(a, text)
        assert torch.equal(b(text(1, 9, 1), cache=cache),
                           a(torch.cat([text(1, 20), text(1, 9, 1)], 1))[:, 20:])  # fmt: skip

    def test_is_taken_when_what_was_changed_does_not_count(self, exact, make_model, text):
        """A step of another model, a hook, a move to evaluation mode, gradients."""
        cache = filled(exact, text)
        train(make_model(), fused=True)
        exact.h[0].register_forward_hook(lambda *_: None)
        exact(text(1, 3)).sum().backward()
        assert torch.equal(exact.eval()(text(1, 1), cache=cache)[0, 0],
                           exact(torch.cat([text(1, 20), text(1, 1)], 1))[0, -1])  # fmt: skip

    def test_does_not_keep_its_model(self, make_model, text):
        model = make_model()
        cache = filled(model, text)
        del model
        gc.collect()
        assert cache.origin.weights.model is None

    def test_is_not_saved(self, exact, text, tmp_path):
        cache = filled(exact, text)
        with torch.no_grad():
            exact.wte.weight.mul_(2)
        with pytest.raises(MinigptError, match="or its weights have changed since, and a file"):
            save_cache(cache, tmp_path / "cache")
        assert list(tmp_path.iterdir()) == []

    def test_is_saved_when_its_name_was_asked_for_in_time(self, make_model, text, tmp_path):
        exact, cache = make_model("exact"), None
        cache = filled(exact, text)
        fingerprint(exact)
        with torch.no_grad():
            exact.wte.weight.mul_(2)
        del exact
        save_cache(cache, tmp_path / "cache")
        again, new = make_model("exact"), text(1, 5, 1)
        loaded = load_cache(tmp_path / "cache", again)
        want = again(torch.cat([text(1, 20), new], 1))[:, 20:]
        assert torch.equal(again(new, cache=loaded), want)


class TestNumerics:
    """Exact logits need rows that are; fast ones take all, and are remembered."""

    def test_exact_rows_come_of_exact_passes_only(self, exact, text):
        cache = filled(exact, text)
        assert cache.origin.numerics == "exact"
        exact.numerics = "fast"
        exact(text(1, 1), cache=cache)
        assert cache.origin.numerics == "fast"
        exact.numerics = "exact"
        with pytest.raises(MinigptError, match="with fast numerics and the model has exact ones"):
            exact(text(1, 1), cache=cache)
        assert cache.lengths == [21]

    def test_rows_are_forgotten_with_what_they_were_made_by(self, exact, text):
        exact.numerics = "fast"
        cache = filled(exact, text)
        exact.numerics = "exact"
        cache.reset()
        assert cache.origin is None
        assert torch.equal(exact(text(1, 9), cache=cache), exact(text(1, 9)))

    def test_of_a_model_in_training_are_those_it_has_there(self, make_model, text):
        model = make_model(None, embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0).train()
        cache = filled(model, text)
        assert cache.origin.numerics == "fast"
        with pytest.raises(MinigptError, match="with fast numerics and the model has exact ones"):
            model.eval()(text(1, 1), cache=cache)

    @pytest.mark.parametrize("numerics", [None, "fast", "exact"])
    def test_with_dropout_are_not_exact(self, make_model, text, numerics):
        model = make_model(numerics).train()
        cache = filled(model, text)
        model.numerics = "exact"
        assert cache.origin.numerics == DROPOUT
        with pytest.raises(MinigptError, match="with dropout numerics"):
            model.eval()(text(1, 1), cache=cache)

    def test_of_several_caches_in_one_are_the_least(self, exact, text):
        one = filled(exact, text)
        exact.numerics = "fast"
        other = filled(exact, text)
        for caches in ([one, other], [other, one], [exact.new_cache(), other, one]):
            assert KVCache.concat(caches).origin.numerics == "fast"
        assert KVCache.concat([one, exact.new_cache()]).origin.numerics == "exact"

    def test_are_saved_as_they_were_and_not_as_the_model_is(self, exact, text, tmp_path):
        exact.numerics = "fast"
        cache = filled(exact, text)
        exact.numerics = "exact"
        save_cache(cache, tmp_path / "cache")
        with pytest.raises(MinigptError, match="made with numerics fast, here it is exact"):
            load_cache(tmp_path / "cache", exact)
        exact.numerics = "fast"
        assert load_cache(tmp_path / "cache", exact).origin == cache.origin


class TestThePlace:
    @pytest.fixture(autouse=True)
    def as_before(self):
        before = torch.get_float32_matmul_precision()
        yield
        torch.set_float32_matmul_precision(before)

    def test_of_exact_rows_must_be_the_same(self, exact, text):
        cache = filled(exact, text)
        torch.set_float32_matmul_precision("medium")
        with pytest.raises(MinigptError, match="with precision highest and now there is medium"):
            exact(text(1, 1), cache=cache)
        with pytest.raises(MinigptError, match="with precision"):
            KVCache.concat([filled(exact, text), cache])

    def test_of_fast_rows_may_change(self, model, text):
        cache = filled(model, text)
        torch.set_float32_matmul_precision("medium")
        model(text(1, 1), cache=cache)
        assert cache.origin.place.precision == "medium"

    def test_may_have_another_number_of_threads(self, exact, text, threads):
        cache = filled(exact, text)
        threads(torch.get_num_threads() + 1)
        want = exact(torch.cat([text(1, 20), text(1, 5, 1)], 1))[:, 20:]
        assert torch.equal(exact(text(1, 5, 1), cache=cache), want)

    @pytest.mark.parametrize("sizes", [(48, 192), (16,), (5, 7)])
    def test_is_tied_to_threads_by_a_weight_or_heads_of_its_own(
        self, exact, text, threads, monkeypatch, sizes
    ):
        shapes = [frozenset(weight.shape) for weight in exact.parameters()]
        its_own = frozenset(sizes) in (*shapes, frozenset((exact.config.head_dim,)))
        assert its_own == (sizes != (5, 7))
        cache = filled(exact, text)
        monkeypatch.setitem(tied_to_threads(), cache.origin.place, {frozenset(sizes)})
        threads(torch.get_num_threads() + 1)
        if its_own:
            with pytest.raises(MinigptError, match="with threads"):
                exact(text(1, 5, 1), cache=cache)
        else:
            exact(text(1, 5, 1), cache=cache)

    def test_is_saved(self, exact, text, tmp_path):
        save_cache(filled(exact, text), tmp_path / "cache")
        torch.set_float32_matmul_precision("medium")
        with pytest.raises(MinigptError, match="made with precision highest, here it is medium"):
            load_cache(tmp_path / "cache", exact)

    @pytest.mark.parametrize("name", ["torch.__version__", "torch.backends.cpu.get_cpu_capability"])
    def test_is_of_this_machine_and_version(self, exact, text, tmp_path, monkeypatch, name):
        save_cache(filled(exact, text), tmp_path / "cache")
        there = "2.0.0" if name == "torch.__version__" else lambda: "ABACUS"
        monkeypatch.setattr(name, there)
        with pytest.raises(MinigptError, match=r"made with (torch|processor) .*, here it is"):
            load_cache(tmp_path / "cache", exact)


class TestRowsOfAnotherProgram:
    """They come in by hand, so that they are taken; they are not called exact."""

    @pytest.fixture
    def foreign(self, exact, text):
        cache = filled(exact, text)
        new = torch.ones(1, 3, 4, 16)
        with cache.extend(cache.spec, 1, 4):
            for layer in cache.layers:
                layer.append(new, new)
        return cache

    def test_stay_so(self, exact, foreign, text):
        assert foreign.origin.numerics == FOREIGN
        exact(text(1, 1), cache=foreign)
        assert foreign.origin.numerics == FOREIGN
        assert foreign.fork().origin.numerics == FOREIGN

    def test_are_saved_and_loaded_as_such(self, exact, foreign, tmp_path):
        save_cache(foreign, tmp_path / "cache")
        assert load_cache(tmp_path / "cache", exact).origin.numerics == FOREIGN

    def test_are_nobodys_in_a_new_cache(self, exact, text):
        cache, new = exact.new_cache(), torch.ones(1, 3, 4, 16)
        with cache.extend(cache.spec, 1, 4):
            for layer in cache.layers:
                layer.append(new, new)
        exact(text(1, 1), cache=cache)
        assert cache.origin is None
