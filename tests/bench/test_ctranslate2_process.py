"""CTranslate2 takes its turns in a process of its own, and leaves nothing behind."""

from __future__ import annotations

import sys

import pytest
import torch

from minigpt import GPT, GPTConfig
from minigpt.bench.ctranslate2_process import ctranslate2_entrant
from minigpt.bench.entrants import EntrantFailure, minigpt_entrant

pytest.importorskip("transformers")
TOKENS = torch.randint(256, (1, 20), generator=torch.Generator().manual_seed(0))


@pytest.mark.skipif("not __import__('importlib').util.find_spec('ctranslate2')")
def test_it_decodes_what_we_decode_and_comes_into_no_other_process(tmp_path, monkeypatch):
    checkpoint, temporary = tmp_path / "checkpoint", tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    model = GPT(GPTConfig.preset("nano"))
    model.save_pretrained(checkpoint)
    theirs = ctranslate2_entrant(checkpoint, "float32")
    assert theirs.decode(TOKENS, 5)() == minigpt_entrant(model, "fast").decode(TOKENS, 5)()
    assert "ctranslate2" not in sys.modules
    assert list(temporary.glob("minigpt-bench-*")) == []


def test_a_checkpoint_that_is_not_there_is_one_sentence(tmp_path):
    with pytest.raises(EntrantFailure, match="^CTranslate2 int8 is left out, for .*config.json"):
        ctranslate2_entrant(tmp_path, "int8").decode(TOKENS, 5)
