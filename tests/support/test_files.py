"""Reading JSON: what it holds, or one sentence."""

from __future__ import annotations

import pytest

from minigpt import MinigptError
from minigpt.support.files import read_json


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "does not exist: copy it again"),
        (b"{", r"is not valid JSON \(Expecting .*\): copy it again"),
        (b"\xff", "is not valid JSON .*: copy it again"),
        (b"[" * 90_000, "is not valid JSON .*: copy it again"),
        (b"1" * 100_001, r"is not valid JSON \(it has 100,001 bytes, needed at most 100,000\)"),
    ],
)
def test_json_that_cannot_be_read_is_told_in_one_sentence(tmp_path, content, sentence):
    path = tmp_path / "file.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(MinigptError, match=f"file.json {sentence}"):
        read_json(path, 100_000)


def test_json_may_follow_a_note(tmp_path):
    (tmp_path / "file.json").write_text('// note\n{"a": 1}')
    assert read_json(tmp_path / "file.json", 100, prefix="// note\n") == {"a": 1}
