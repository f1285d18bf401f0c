"""Our cache in transformers' models, against transformers' own cache: logits, ids, beams, errors.

Every model is tiny, with random weights from a configuration; the tokenizer is trained here.
"""

from __future__ import annotations

import copy
import functools
import runpy
import sys
from types import SimpleNamespace

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import DynamicCache, PreTrainedTokenizerFast, StaticCache

from minigpt import MinigptError, hf
from minigpt.cache.kinds import LOSSLESS, LOSSY, make_cache

VOCABULARY, CONTEXT, END = 97, 64, 0
# In the words of most configurations; the others have their own.
SHAPE = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2,
         "num_attention_heads": 4, "intermediate_size": 64, "max_position_embeddings": CONTEXT,
         "bos_token_id": END, "eos_token_id": END, "pad_token_id": END}  # fmt: skip
GROUPED = {**SHAPE, "num_key_value_heads": 2}
FAMILIES = {
    "GPT2": SHAPE,
    "GPTNeo": {
        **SHAPE,
        "num_layers": 2,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 8,
    },
    "GPTJ": {**SHAPE, "rotary_dim": 8},
    "GPTNeoX": SHAPE,
    "GPTBigCode": {**SHAPE, "multi_query": True},
    "OPT": {**SHAPE, "ffn_dim": 64, "word_embed_proj_dim": 32},
    "Bloom": SHAPE,
    "Falcon": {**SHAPE, "new_decoder_architecture": True, "num_kv_heads": 2},
    "Phi": SHAPE,
    "Llama": GROUPED,
    "Mistral": {**GROUPED, "sliding_window": None},
    "Qwen2": GROUPED,
    "Qwen3": {**GROUPED, "head_dim": 16},
    "Gemma": {**GROUPED, "num_key_value_heads": 1, "head_dim": 16},
}
HEADS = {"Llama": 2, "Mistral": 2, "Qwen2": 2, "Qwen3": 2, "Gemma": 1}


def make(family, **changes):
    """A random model in evaluation mode, its weights large enough for attention to matter."""
    config = getattr(transformers, f"{family}Config")(**{**FAMILIES[family], **changes})
    names = {"GPT2": "GPT2LMHeadModel"}
    torch.manual_seed(0)
    model = getattr(transformers, names.get(family, f"{family}ForCausalLM"))(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(6)
    return model


@pytest.fixture(scope="module")
def made():
    """made(family): the same model each time, as none of these tests changes it."""
    return functools.cache(make)


@pytest.fixture(params=FAMILIES)
def model(request, made):
    """One of each family."""
    return made(request.param)


@pytest.fixture
def llama(made):
    return made("Llama")


@pytest.fixture(params=LOSSLESS)
def kind(request):
    return request.param


def tokens(rows, length, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, VOCABULARY, (rows, length), generator=generator)


SPANS = ((0, 12), (12, 13), (13, 16), (16, 17))


@torch.no_grad()
def fed(model, ids, cache, spans=SPANS, mask=None):
    """Logits (B, T, V) of the ids, given to the model in these spans."""
    logits = []
    for low, high in spans:
        given = {} if mask is None else {"attention_mask": mask[:, :high]}
        logits.append(model(ids[:, low:high], past_key_values=cache, **given).logits)
    return torch.cat(logits, 1)


def own_cache(model, ids=None):
    """transformers' own, after these ids."""
    cache = DynamicCache(config=model.config)
    if ids is not None:
        fed(model, ids, cache, [(0, ids.shape[1])])
    return cache


def filled(model, ids, **settings):
    """Ours, after these ids."""
    cache = hf.new_cache(model, len(ids), 40, **settings)
    fed(model, ids, cache, [(0, ids.shape[1])])
    return cache


def contents(cache):
    """All keys and values that a cache of either program holds."""
    return [tensor.clone() for layer in cache.layers for tensor in (layer.keys, layer.values)]


def same(some, others):
    return all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


# --- the same numbers as with transformers' own cache ---------------------------------------------


def test_logits_are_those_of_transformers_own_cache(model):
    ids = tokens(3, 17)
    cache = hf.new_cache(model, 3, 20)
    assert torch.equal(fed(model, ids, cache), fed(model, ids, own_cache(model)))
    assert cache.get_seq_length() == len(cache.cache) == 17


def test_every_kind_gives_those_logits(llama, kind):
    ids = tokens(3, 17)
    cache = hf.new_cache(llama, 3, 20, kind=kind)
    assert torch.equal(fed(llama, ids, cache), fed(llama, ids, own_cache(llama)))


def test_it_holds_the_keys_and_values_that_transformers_own_cache_holds(model):
    ids = tokens(2, 9)
    assert same(contents(filled(model, ids)), contents(own_cache(model, ids)))


def test_half_precision(made):
    model, ids = copy.deepcopy(made("Qwen2")).to(torch.bfloat16), tokens(2, 17)
    cache = hf.new_cache(model, 2, 20)
    assert torch.equal(fed(model, ids, cache), fed(model, ids, own_cache(model)))
    assert cache.cache.spec.dtype == torch.bfloat16


@pytest.mark.parametrize("family", HEADS)
def test_only_key_value_heads_are_kept(made, family):
    assert hf.cache_spec(made(family)).n_kv_head == HEADS[family]


def generated(model, ids, cache=None, **settings):
    settings = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": END, **settings}
    given = {"attention_mask": torch.ones_like(ids), **settings}
    return model.generate(ids, past_key_values=cache, **given)


def test_greedy_ids_are_those_of_transformers_own_cache(model):
    ids = tokens(2, 6)
    assert torch.equal(generated(model, ids, hf.new_cache(model, 2, 18)), generated(model, ids))


def left_padded(lengths, width):
    ids = tokens(len(lengths), width)
    mask = torch.arange(width) >= width - torch.tensor(lengths)[:, None]
    return ids * mask, mask.long()


def test_left_padding_gives_the_logits_of_transformers_own_cache(model):
    ids, mask = left_padded([17, 5, 10], 17)
    got = fed(model, ids, hf.new_cache(model, 3, 20), mask=mask)
    assert torch.equal(got, fed(model, ids, own_cache(model), mask=mask))


def test_a_left_padded_row_continues_as_it_does_alone(llama):
    ids, mask = left_padded([9, 4], 9)
    both = generated(llama, ids, hf.new_cache(llama, 2, 21), attention_mask=mask)
    alone = generated(llama, ids[1:, 5:], hf.new_cache(llama, 1, 21))
    assert both[1, 5:].tolist()[: alone.shape[1]] == alone[0].tolist()


@pytest.mark.parametrize("family", ["GPT2", "Llama"])
def test_beam_search_finds_the_beams_of_transformers_own_cache(made, family, kind):
    model, ids = made(family), tokens(2, 6)
    cache = hf.new_cache(model, 2 * 3, 18, kind=kind)
    settings = {"num_beams": 3, "num_return_sequences": 3}
    assert torch.equal(generated(model, ids, cache, **settings), generated(model, ids, **settings))


def test_guesses_that_fail_are_cropped_as_with_transformers_own_cache(llama):
    ids = torch.cat([tokens(1, 4)] * 3, 1)  # repeats itself, so that there is something to guess
    cache, settings = hf.new_cache(llama, 1, 40), {"prompt_lookup_num_tokens": 3}
    want = generated(llama, ids, **settings)
    assert torch.equal(generated(llama, ids, cache, **settings), want)
    assert cache.get_seq_length() < want.shape[1]


def test_generate_goes_on_from_what_the_cache_holds(llama):
    cache = hf.new_cache(llama, 1, 40)
    first = generated(llama, tokens(1, 6), cache, max_new_tokens=5)
    more = torch.cat([first, tokens(1, 4, seed=1)], 1)
    assert torch.equal(generated(llama, more, cache), generated(llama, more))


# --- surgery, by transformers' names --------------------------------------------------------------


@pytest.mark.parametrize("operate", [
    lambda cache: cache.crop(-3),
    lambda cache: cache.reorder_cache(torch.tensor([2, 2, 0])),
    lambda cache: cache.batch_select_indices(torch.tensor([1])),
    lambda cache: cache.batch_select_indices(torch.tensor([True, False, True])),
    lambda cache: cache.batch_repeat_interleave(2),
], ids=["crop", "reorder", "select", "select by mask", "repeat"])  # fmt: skip
def test_surgery_does_what_it_does_to_transformers_own_cache(llama, kind, operate):
    ours, own = filled(llama, tokens(3, 12), kind=kind), own_cache(llama, tokens(3, 12))
    operate(ours)
    operate(own)
    assert same(contents(ours), contents(own))
    new, last = tokens(ours.batch_size, 4, seed=1), [(0, 4)]
    assert torch.equal(fed(llama, new, ours, last), fed(llama, new, own, last))


def test_cropping_nothing_leaves_everything(llama):
    cache = filled(llama, tokens(1, 12))
    cache.crop(0)
    assert cache.get_seq_length() == 12


def test_crop_takes_the_length_to_keep_as_older_versions_do(llama):
    cache = filled(llama, tokens(1, 12))
    cache.crop(5)
    cache.crop(30)
    assert cache.get_seq_length() == 5


def test_a_deep_copy_of_pages_shares_them(llama):
    cache = filled(llama, tokens(1, 12), kind="paged")
    assert copy.deepcopy(cache).cache.pool is cache.cache.pool


def test_reset_forgets_everything(llama):
    cache = filled(llama, tokens(1, 12))
    cache.reset()
    assert torch.equal(fed(llama, tokens(1, 17, 1), cache),
                       fed(llama, tokens(1, 17, 1), own_cache(llama)))  # fmt: skip


def test_a_deep_copy_goes_on_alone(llama, kind):
    cache = filled(llama, tokens(1, 12), kind=kind)
    before, branch = contents(cache), copy.deepcopy(cache)
    fed(llama, tokens(1, 4), branch, [(0, 4)])
    assert branch.get_seq_length() == 16
    assert same(contents(cache), before)


# --- nothing half-written -------------------------------------------------------------------------


class Interrupted(Exception):
    pass


def interrupt(*_):
    raise Interrupted


@pytest.mark.parametrize("layer", [0, 1])
def test_a_pass_that_fails_leaves_the_cache_as_it_was(llama, kind, layer):
    cache = filled(llama, tokens(2, 12), kind=kind)
    before = contents(cache)
    hook = llama.model.layers[layer].register_forward_pre_hook(interrupt)
    with pytest.raises(Interrupted):
        fed(llama, tokens(2, 5), cache, [(0, 5)])
    hook.remove()
    assert cache.get_seq_length() == 12
    held = [tensor for index in range(2) for tensor in cache.cache.layer(index)]
    assert same(held, before)
    longer = torch.cat([tokens(2, 12), tokens(2, 4, 1)], 1)
    got = fed(llama, longer, cache, [(12, 13), (13, 16)])
    assert torch.equal(
        got, fed(llama, longer, own_cache(llama), [(0, 12), (12, 13), (13, 16)])[:, 12:]
    )


def test_what_a_failed_pass_wrote_is_gone(llama):
    cache = filled(llama, tokens(1, 12))
    hook = llama.model.layers[1].register_forward_pre_hook(interrupt)
    with pytest.raises(Interrupted):
        fed(llama, tokens(1, 5), cache, [(0, 5)])
    hook.remove()
    assert cache.cache._data[..., 12:, :].eq(0).all()


def test_layers_may_only_write_in_their_order(llama):
    cache, new = hf.new_cache(llama, 1, 8), torch.zeros(1, 2, 3, 8)
    with pytest.raises(MinigptError, match="layer 1 wrote to the cache when it was the turn of la"):
        cache.update(new, new, 1)


def test_no_gradients_are_kept(llama):
    cache = hf.new_cache(llama, 1, 20)
    llama(tokens(1, 4), past_key_values=cache)
    assert not cache.cache.layer(0)[0].requires_grad


def test_the_tokens_are_unknown(llama):
    assert filled(llama, tokens(1, 4)).cache.tokens is None


# --- gradients ------------------------------------------------------------------------------------


@pytest.fixture
def learner():
    """learner(layers): a GPT-2 without dropout, its gradients nothing yet."""

    def make_learner(layers=2):
        dropout = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
        return make("GPT2", num_hidden_layers=layers, **dropout).train()

    return make_learner


def loss(model, ids, cache=None, spans=((0, 12),)):
    """Of each token after those before it, given to the model in these spans."""
    passes = [model(ids[:, low:high], past_key_values=cache).logits for low, high in spans]
    logits = torch.cat(passes, 1)[:, :-1]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def gradients(model, found):
    """Of a loss, all in one row."""
    model.zero_grad()
    found.backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


class TestGradients:
    @pytest.mark.parametrize("spans", [((0, 12),), ((0, 5), (5, 6), (6, 12))])
    def test_flow_through_a_growing_cache_as_without_one(self, learner, spans):
        model, ids = learner(), tokens(2, 12)
        want = gradients(model, loss(model, ids))
        cache = hf.new_cache(model, 2, 20, kind="growing")
        got = gradients(model, loss(model, ids, cache, spans))
        assert (got - want).norm() < 1e-5 * want.norm()  # float32, summed in another order
        assert want.norm() > 0.1

    def test_flow_through_surgery_on_a_growing_cache(self, learner):
        model, ids = learner(), tokens(2, 12)
        turned = ids[[1, 0, 1]]
        want = gradients(model, loss(model, turned))
        cache = hf.new_cache(model, 2, 20, kind="growing")
        first = model(ids[:, :8], past_key_values=cache).logits[[1, 0, 1], :5]
        cache.crop(-3)
        cache.batch_select_indices(torch.tensor([1, 0, 1]))
        rest = model(turned[:, 5:], past_key_values=copy.deepcopy(cache)).logits
        logits = torch.cat([first, rest], 1)[:, :-1]
        got = gradients(
            model,
            torch.nn.functional.cross_entropy(logits.flatten(0, 1), turned[:, 1:].flatten()),
        )
        assert (got - want).norm() < 1e-5 * want.norm()  # as above

    @pytest.mark.parametrize("kind", [kind for kind in LOSSLESS if kind != "growing"])
    @pytest.mark.parametrize("layers", [1, 2])
    @pytest.mark.parametrize("spans", [((0, 12),), ((0, 5), (5, 6), (6, 12))])
    def test_are_refused_by_a_cache_that_writes_over_its_memory(self, learner, kind, layers, spans):
        model = learner(layers)
        cache = hf.new_cache(model, 2, 20, kind=kind)
        with pytest.raises(MinigptError, match="gradients do not flow through a static or paged"):
            loss(model, tokens(2, 12), cache, spans).backward()

    @pytest.mark.parametrize("twin", [lambda cache: cache, copy.deepcopy])
    def test_are_refused_also_when_only_older_keys_had_some(self, learner, twin):
        model, ids = learner(), tokens(2, 12)
        cache = hf.new_cache(model, 2, 20)
        model(ids[:, :6], past_key_values=cache)
        model.requires_grad_(False)
        model.transformer.ln_f.requires_grad_(True)
        with pytest.raises(MinigptError, match="gradients do not flow"):
            model(ids[:, 6:], past_key_values=twin(cache)).logits.sum().backward()
        cache.reset()
        model(ids, past_key_values=cache).logits.sum().backward()
        assert model.transformer.ln_f.weight.grad.norm() > 0

    def test_that_nobody_asks_for_are_no_matter(self, learner, kind):
        model, ids = learner().eval(), tokens(2, 12)
        cache = hf.new_cache(model, 2, 20, kind=kind)
        got = torch.cat([model(ids[:, :7], past_key_values=cache).logits,
                         model(ids[:, 7:], past_key_values=cache).logits], 1)  # fmt: skip
        assert torch.equal(got.detach(), fed(model, ids, own_cache(model), [(0, 7), (7, 12)]))


# --- carrying keys and values from one program to the other ---------------------------------------


@pytest.fixture
def twins(exact, tmp_path):
    """One GPT-2 in both programs."""
    exact.save_pretrained(tmp_path)
    return exact, transformers.GPT2LMHeadModel.from_pretrained(tmp_path).eval()


def test_transformers_goes_on_where_minigpt_stopped(twins, text):
    ours, theirs = twins
    ids, cache = text(2, 20), ours.new_cache(2)
    ours(ids[:, :15], cache=cache)
    got = fed(theirs, ids, hf.to_hf(cache), [(15, 18), (18, 20)])
    want = fed(theirs, ids, None, [(0, 20)])[:, 15:]
    assert (got - want).abs().max() < 1e-4  # float32, summed in another order; logits up to 4


def test_minigpt_goes_on_where_transformers_stopped(twins, text, kind):
    ours, theirs = twins
    ids, own = text(2, 20), DynamicCache()
    fed(theirs, ids, own, [(0, 15)])
    cache = hf.from_hf(own, ours, kind=kind)
    got = ours(ids[:, 15:], cache=cache)
    assert (got - ours(ids)[:, 15:]).abs().max() < 1e-4  # as above
    assert (cache.capacity, len(cache), cache.origin.weights.model) == (160, 20, ours)


def test_to_hf_shares_the_memory_of_a_static_cache(llama):
    cache = filled(llama, tokens(1, 12)).cache
    assert hf.to_hf(cache).layers[1].values.data_ptr() == cache.layer(1)[1].data_ptr()


def test_what_goes_there_and_back_is_the_same(llama, kind):
    cache = filled(llama, tokens(2, 12), kind=kind).cache
    back = hf.from_hf(hf.to_hf(cache), cache.spec, kind=kind)
    assert same(contents(hf.HFCache(back)), contents(hf.HFCache(cache)))
    assert back.capacity == 12


def test_transformers_goes_on_with_a_converted_cache_and_ours_stays(llama):
    cache, ids = filled(llama, tokens(1, 12)), torch.cat([tokens(1, 12), tokens(1, 4, 1)], 1)
    before, own = contents(cache), hf.to_hf(cache.cache)
    want = fed(llama, ids, own_cache(llama), [(0, 12), (12, 16)])[:, 12:]
    assert torch.equal(fed(llama, ids, own, [(12, 16)]), want)
    assert same(contents(cache), before)


def test_an_empty_cache_becomes_an_empty_one(llama):
    assert hf.to_hf(hf.new_cache(llama).cache).get_seq_length() == 0


@pytest.mark.parametrize("make_own", [
    own_cache,
    lambda model: StaticCache(config=model.config, max_cache_len=30),
    lambda model: hf.new_cache(model, 2, 30, kind="paged"),
], ids=["dynamic", "static", "ours"])  # fmt: skip
def test_from_hf_reads_every_cache_that_keeps_all_positions(llama, make_own):
    own = make_own(llama)
    fed(llama, tokens(2, 12), own, [(0, 12)])
    cache = hf.from_hf(own, llama, capacity=25)
    held = [tensor[:, :, :12] for tensor in contents(own)]
    assert same(contents(hf.HFCache(cache)), held)
    assert cache.capacity == 25


def test_new_cache_has_room_for_the_models_context(llama):
    assert hf.new_cache(llama).capacity == CONTEXT


# --- with and without -----------------------------------------------------------------------------

TALE = "the dog ran to the cat and the cat ran to the tree and the dog sat by the tree"


@pytest.fixture(scope="module")
def tokenizer():
    """A byte-pair vocabulary of at most 97 pieces, learned from one sentence."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=["<end>"])
    core.train_from_iterator([TALE], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>")


def test_both_continue_the_prompt_with_the_text_of_transformers_generate(model, tokenizer):
    ids = tokenizer("the dog ran", return_tensors="pt")["input_ids"]
    want = tokenizer.decode(generated(model, ids, max_new_tokens=15)[0], skip_special_tokens=True)
    length = ids.shape[1] + 15
    slow, slow_seconds = hf.generate_without_cache(model, tokenizer, "the dog ran", length)
    fast, fast_seconds = hf.generate_with_kv_cache(model, tokenizer, "the dog ran", length)
    assert slow == fast == want
    assert min(slow_seconds, fast_seconds) > 0


def test_a_seed_draws_the_same_text_with_and_without(llama, tokenizer):
    settings = {"max_length": 30, "temperature": 1.0, "seed": 3}
    text, _ = hf.generate_with_kv_cache(llama, tokenizer, "the dog", **settings)
    assert text == hf.generate_without_cache(llama, tokenizer, "the dog", **settings)[0]
    assert (
        text != hf.generate_with_kv_cache(llama, tokenizer, "the dog", **settings | {"seed": 4})[0]
    )


def test_the_model_sees_each_token_once_with_a_cache(llama, tokenizer):
    seen = []
    hook = llama.register_forward_pre_hook(
        lambda _, args, given: seen.append(given["input_ids"].shape[1]), with_kwargs=True
    )
    prompt = len(tokenizer("the dog")["input_ids"])
    hf.generate_with_kv_cache(llama, tokenizer, "the dog", prompt + 4)
    hook.remove()
    assert seen == [1, prompt, 1, 1, 1]  # the first asks what there is to keep


def test_the_text_ends_before_the_end_of_text(llama, tokenizer, monkeypatch):
    prompt = tokenizer("the dog")["input_ids"]
    ids = generated(llama, torch.tensor([prompt]), max_new_tokens=15)[0].tolist()
    monkeypatch.setattr(llama.generation_config, "eos_token_id", [ids[len(prompt) + 5]])
    first = ids.index(ids[len(prompt) + 5], len(prompt))
    text, _ = hf.generate_with_kv_cache(llama, tokenizer, "the dog", 30)
    assert text == tokenizer.decode(ids[:first])


def test_the_text_ends_where_the_cache_is_full(llama, tokenizer):
    full, _ = hf.generate_with_kv_cache(llama, tokenizer, "the dog", 50, max_seq_len=12)
    assert full == hf.generate_without_cache(llama, tokenizer, "the dog", 12)[0]


# --- refused --------------------------------------------------------------------------------------


def test_other_versions_of_transformers_are_refused(monkeypatch):
    old = SimpleNamespace(__version__="4.40.2")
    monkeypatch.setitem(sys.modules, "transformers", old)
    with pytest.raises(MinigptError, match="transformers is 4.40.2, needed one of .*5.23"):
        runpy.run_path(hf.__file__)


@pytest.mark.parametrize("family, changes, keeps", [
    ("Mistral", {"sliding_window": 8}, "DynamicSlidingWindowLayer"),
    ("Qwen3", {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 8,
               "use_sliding_window": True, "max_window_layers": 1}, "DynamicSlidingWindowLayer"),
])  # fmt: skip
def test_models_that_do_not_keep_all_positions_are_refused(family, changes, keeps):
    with pytest.raises(MinigptError, match=f"keeps .*{keeps}.*use transformers' own cache"):
        hf.new_cache(make(family, **changes))


def test_models_that_read_another_text_are_refused():
    config = transformers.T5Config(
        vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2
    )
    with pytest.raises(MinigptError, match="T5ForCond.* takes no cache .* decoder-only model"):
        hf.new_cache(transformers.T5ForConditionalGeneration(config))


def test_our_own_models_are_refused(exact):
    with pytest.raises(MinigptError, match="GPT takes no cache"):
        hf.new_cache(exact, max_length=8)


@pytest.mark.parametrize("kind", LOSSY)
def test_lossy_kinds_are_refused(llama, kind):
    with pytest.raises(MinigptError, match=f"cache kind is '{kind}', needed one of static"):
        hf.new_cache(llama, kind=kind)
    with pytest.raises(MinigptError, match=f"a {kind} cache does not hold all keys"):
        hf.HFCache(make_cache(kind, hf.cache_spec(llama), 1, 16))


def test_rows_of_different_lengths_are_refused(exact, text):
    cache = exact.new_cache(2)
    exact(text(2, 9), cache=cache)
    cache.truncate([9, 4])
    for convert in (hf.HFCache, hf.to_hf):
        with pytest.raises(MinigptError, match=r"lengths \[9, 4\], needed one length for all"):
            convert(cache)


def test_keys_that_do_not_fit_are_refused_and_the_cache_is_unchanged(llama):
    cache = filled(llama, tokens(1, 12))
    before = contents(cache)
    with pytest.raises(
        MinigptError, match=r"given \(3, 2, 4, 8\) .* needed \(1, 2, 4, 8\).*size=3"
    ):
        fed(llama, tokens(3, 4), cache, [(0, 4)])
    with pytest.raises(MinigptError, match="holds 12 of 40 positions and cannot take 29 more"):
        fed(llama, tokens(1, 29), cache, [(0, 29)])
    with pytest.raises(MinigptError, match="in torch.float64 on cpu, needed .* in torch.float32"):
        cache.update(torch.zeros(1, 2, 4, 8).double(), torch.zeros(1, 2, 4, 8).double(), 0)
    assert same(contents(cache), before)


def test_from_hf_refuses_a_cache_of_something_else(llama, made):
    own = own_cache(llama, tokens(1, 9))
    with pytest.raises(MinigptError, match="made for another model, dtype or device"):
        hf.from_hf(own, made("GPT2"))
    with pytest.raises(MinigptError, match="this cache is empty"):
        hf.from_hf(own_cache(llama), llama)
    with pytest.raises(MinigptError, match="layers of DynamicSlidingWindowLayer, needed keys and"):
        hf.from_hf(own_cache(make("Mistral", sliding_window=8), tokens(1, 9)), llama)


@pytest.mark.parametrize("changes, sentence", [
    ({"max_length": 0}, "max_length is 0, needed a whole number of at least 1"),
    ({"max_length": 65}, "max_length is 65, but this model has 64 positions"),
    ({"max_length": 1}, "the prompt has [0-9]+ tokens, needed 1 to 1"),
    ({"prompt": ""}, "the prompt has 0 tokens, needed 1 to 50"),
    ({"temperature": -1.0}, "temperature is -1.0"),
    ({"seed": -1}, "seed is -1, needed a whole number"),
])  # fmt: skip
def test_generation_refuses_what_it_cannot_do(llama, tokenizer, changes, sentence):
    given = {"prompt": "the dog", **changes}
    for generate in (hf.generate_without_cache, hf.generate_with_kv_cache):
        with pytest.raises(MinigptError, match=sentence):
            generate(llama, tokenizer, **given)
