"""Caches on disk: they go on with the same bits, and anything else is refused in one sentence."""

from __future__ import annotations

import json
import os
import random

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from minigpt import KVCache, MinigptError, load_cache, save_cache
from minigpt.cache.kinds import KINDS
from minigpt.cache.lossy import WindowCache
from minigpt.checkpoint.caches import FORMAT, describe_cache

SETTINGS = {"paged": {"page": 8}, "window": {"window": 24, "sinks": 2}}


@pytest.fixture
def prefilled(exact, text):
    """prefilled(kind, [rows' lengths]): a cache of the exact model."""

    def make(kind="static", lengths=(50,)):
        rows = []
        for seed, length in enumerate(lengths):
            row = exact.new_cache(kind=kind, **SETTINGS.get(kind, {}))
            if length:
                exact(text(1, length, seed), cache=row)
            rows.append(row)
        return KVCache.concat(rows)

    return make


def refusal(path, model, **settings):
    with pytest.raises(MinigptError) as refused:
        load_cache(path, model, **settings)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("lengths", [(50,), (50, 33, 0)])
@pytest.mark.parametrize("kind", KINDS)
class TestALoadedCache:
    def test_goes_on_as_the_saved_one_would_have(self, exact, text, prefilled, tmp_path, kind,
                                                 lengths):  # fmt: skip
        cache = prefilled(kind, lengths)
        save_cache(cache, tmp_path / "cache")
        loaded = load_cache(tmp_path / "cache", exact)
        for count in (1, 5, 40, 1):  # through pages, blocks and windows
            tokens = text(len(lengths), count, seed=count)
            assert torch.equal(exact(tokens, cache=loaded), exact(tokens, cache=cache))

    def test_is_of_the_same_kind_settings_size_and_tokens(self, exact, prefilled, tmp_path, kind,
                                                          lengths):  # fmt: skip
        cache = prefilled(kind, lengths)
        save_cache(cache, tmp_path / "cache")
        loaded = load_cache(tmp_path / "cache", exact)
        assert loaded.settings == cache.settings
        assert (loaded.capacity, loaded.lengths) == (cache.capacity, cache.lengths)
        assert loaded.tokens == cache.tokens
        assert repr(loaded) == repr(cache)

    def test_can_be_cut_and_branched(self, exact, text, prefilled, tmp_path, kind, lengths):
        cache = prefilled(kind, lengths)
        save_cache(cache, tmp_path / "cache")
        loaded = load_cache(tmp_path / "cache", exact)
        for one in (cache, loaded):
            one.truncate([length // 3 for length in lengths])
        tokens = text(len(lengths), 3)
        want, got = cache.fork(), loaded.fork()
        assert torch.equal(exact(tokens, cache=got), exact(tokens, cache=want))


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_cache_is_kept_too(exact, text, prefilled, tmp_path, kind):
    cache = prefilled(kind, (0,))
    save_cache(cache, tmp_path / "cache")
    loaded = load_cache(tmp_path / "cache", exact)
    assert torch.equal(exact(text(1, 9), cache=loaded), exact(text(1, 9), cache=cache))


class TestTheFile:
    def test_holds_what_is_in_use_and_not_the_room_for_more(self, exact, prefilled, tmp_path):
        for length in (10, 20):
            save_cache(prefilled("static", (length,)), tmp_path / f"{length}")
        sizes = [(tmp_path / name).stat().st_size for name in ("10", "20")]
        per_token = exact.cache_spec.bytes_per_token + 8  # and the token's id
        assert abs(sizes[1] - sizes[0] - 10 * per_token) < 64  # the header's numbers, rounded up

    def test_may_be_deleted_when_it_is_loaded(self, exact, text, prefilled, tmp_path):
        cache = prefilled("window")
        save_cache(cache, tmp_path / "cache")
        loaded = load_cache(tmp_path / "cache", exact)
        (tmp_path / "cache").unlink()
        assert torch.equal(exact(text(1, 3), cache=loaded), exact(text(1, 3), cache=cache))

    def test_can_be_loaded_with_more_room(self, exact, text, tmp_path):
        cache = exact.new_cache(max_length=20)
        exact(text(1, 20), cache=cache)
        save_cache(cache, tmp_path / "cache")
        loaded = load_cache(tmp_path / "cache", exact, max_length=40)
        want = exact(torch.cat([text(1, 20), text(1, 20, 1)], 1))
        assert torch.equal(exact(text(1, 20, 1), cache=loaded), want[:, 20:])

    def test_tells_about_itself_without_being_read(self, prefilled, tmp_path):
        save_cache(prefilled("paged"), tmp_path / "cache", {"seconds": 1.5})
        found = describe_cache(tmp_path / "cache")
        assert found["kind"] == "paged"
        assert found["settings"] == {"page": 8}
        assert found["lengths"] == [50]
        assert found["notes"] == {"seconds": 1.5}

    def test_takes_no_notes_that_json_cannot_hold(self, prefilled, tmp_path):
        with pytest.raises(MinigptError, match="the notes are not what JSON can hold: .*Tensor"):
            save_cache(prefilled(), tmp_path / "cache", {"logits": torch.zeros(1)})
        assert os.listdir(tmp_path) == []

    def test_does_not_mind_numpys_numbers(self, exact, text, tmp_path):
        two, twenty = np.int64(2), np.int64(20)
        cache = exact.new_cache(two, twenty, "window", window=twenty, sinks=np.int64(1))
        exact(text(2, 9), cache=cache)
        cache.truncate([np.int64(3), 9])
        save_cache(cache, tmp_path / "cache")
        assert load_cache(tmp_path / "cache", exact).lengths == [3, 9]

    def test_keeps_tokens_unknown(self, exact, prefilled, tmp_path):
        cache = prefilled()
        cache._tokens = None
        save_cache(cache, tmp_path / "cache")
        assert load_cache(tmp_path / "cache", exact).tokens is None

    def test_takes_half_precision(self, make_model, text, tmp_path):
        model = make_model(numerics="exact", dtype=torch.bfloat16)
        cache = model.new_cache()
        model(text(1, 30), cache=cache)
        save_cache(cache, tmp_path / "cache")
        loaded = load_cache(tmp_path / "cache", model)
        assert torch.equal(model(text(1, 3), cache=loaded), model(text(1, 3), cache=cache))

    def test_is_as_it_was_when_writing_another_fails(self, exact, prefilled, tmp_path, monkeypatch):
        cache = prefilled()
        save_cache(cache, tmp_path / "cache")
        before = (tmp_path / "cache").read_bytes()
        exact(torch.tensor([[1]]), cache=cache)

        def full(*_):
            raise OSError("No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(MinigptError, match="could not be written to .*No space left"):
            save_cache(cache, tmp_path / "cache")
        assert (tmp_path / "cache").read_bytes() == before
        assert os.listdir(tmp_path) == ["cache"]

    def test_is_replaced_in_one_step_under_those_who_read_it(self, exact, prefilled, tmp_path):
        cache = prefilled()
        save_cache(cache, tmp_path / "cache")
        with (tmp_path / "cache").open("rb") as reader:
            before = (tmp_path / "cache").read_bytes()
            exact(torch.tensor([[1]]), cache=cache)
            save_cache(cache, tmp_path / "cache")
            assert reader.read() == before
        assert load_cache(tmp_path / "cache", exact).lengths == [51]

    def test_needs_a_directory_that_is_there(self, prefilled, tmp_path):
        with pytest.raises(MinigptError, match="could not be written to .*nowhere"):
            save_cache(prefilled(), tmp_path / "nowhere" / "cache")

    def test_needs_a_cache_that_knows_its_model(self, prefilled, tmp_path):
        cache = prefilled()
        cache._origin = None
        with pytest.raises(MinigptError, match="does not know which model"):
            save_cache(cache, tmp_path / "cache")
        assert os.listdir(tmp_path) == []


class TestARefusal:
    @pytest.fixture
    def path(self, prefilled, tmp_path):
        save_cache(prefilled("static", (20, 12)), tmp_path / "cache")
        return tmp_path / "cache"

    def test_of_another_models_cache(self, exact, path):
        with torch.no_grad():
            exact.wpe.weight[3, 3] += 1
        assert "made by another model, whose weights or configuration" in refusal(path, exact)

    def test_of_another_shape(self, make_model, path):
        assert "made by another model" in refusal(path, make_model("exact", n_layer=3))

    def test_of_other_numerics(self, exact, path):
        exact.numerics = "fast"
        assert "made with numerics exact, here it is fast" in refusal(path, exact)

    def test_of_another_dtype(self, exact, path):
        told = refusal(path, exact.bfloat16())
        assert "made with dtype float32, here it is bfloat16" in told

    def test_of_another_device(self, exact, path):
        told = refusal(path, exact.to("meta"))
        assert "made with device cpu, here it is meta" in told

    def test_of_too_little_room(self, exact, path):
        assert "holds 20 positions and max_length is 19" in refusal(path, exact, max_length=19)

    def test_of_more_room_than_the_model_has(self, exact, path):
        told = refusal(path, exact, max_length=161)
        assert told.startswith("max_length is 161, but this model has 160")

    def test_of_a_file_that_is_not_there(self, exact, tmp_path):
        assert "does not exist" in refusal(tmp_path / "nothing", exact)

    def test_of_a_directory(self, exact, tmp_path):
        assert "is not a whole safetensors file" in refusal(tmp_path, exact)

    @pytest.mark.parametrize("content", [b"", b"once upon a time, in a file of text"])
    def test_of_another_kind_of_file(self, exact, tmp_path, content):
        (tmp_path / "file").write_bytes(content)
        assert "is not a whole safetensors file" in refusal(tmp_path / "file", exact)

    @pytest.mark.parametrize("metadata", [None, {"about": "{"}, {"about": "[]"}, {"about": "{}"}])
    def test_of_another_programs_safetensors(self, exact, tmp_path, metadata):
        save_file({"x": torch.zeros(3)}, tmp_path / "file", metadata)
        assert "does not hold a cache" in refusal(tmp_path / "file", exact)

    def test_of_a_later_version(self, exact, path):
        text = json.dumps({"format": FORMAT, "version": 3})
        save_file({"x": torch.zeros(3)}, path, {"about": text})
        assert "in version 3 of the format, needed 2" in refusal(path, exact)

    def test_of_a_file_cut_short(self, exact, path):
        whole = path.read_bytes()
        for length in (5, 100, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:length])
            refusal(path, exact)

    def test_of_a_file_with_more_at_its_end(self, exact, path):
        path.write_bytes(path.read_bytes() + b"more")
        refusal(path, exact)

    def test_of_any_bit_flipped(self, exact, path):
        whole, rng = path.read_bytes(), random.Random(0)
        header = range(8 + int.from_bytes(whole[:8], "little"))
        places = rng.sample(header, 30) + rng.sample(range(len(header), len(whole)), 10)
        for place in places:
            damaged = bytearray(whole)
            damaged[place] ^= 1 << rng.randrange(8)
            path.write_bytes(damaged)
            refusal(path, exact)

    def test_of_tensors_that_changed_places(self, exact, path):
        tensors = load_file(path)
        about = {"about": json.dumps(describe_cache(path)), "checksum": "0" * 64}
        keys = tensors["layer.0.keys"], tensors["layer.1.keys"]
        tensors["layer.1.keys"], tensors["layer.0.keys"] = keys
        save_file(tensors, path, about)
        assert "is damaged" in refusal(path, exact)

    def test_leaves_nothing_half_loaded(self, exact, path, monkeypatch):
        made = []
        new_cache = type(exact).new_cache

        def spy(*arguments, **settings):
            made.append(settings)
            return new_cache(*arguments, **settings)

        monkeypatch.setattr(type(exact), "new_cache", spy)
        path.write_bytes(path.read_bytes()[:-8])
        refusal(path, exact)
        assert made == []


def test_a_window_is_saved_with_the_positions_it_keeps(exact, prefilled, tmp_path):
    cache = prefilled("window", (60, 30))
    save_cache(cache, tmp_path / "cache")
    loaded = load_cache(tmp_path / "cache", exact)
    assert isinstance(loaded, WindowCache)
    assert loaded.positions == cache.positions
    assert loaded.positions[0][:4] == [0, 1, 36, 37]
