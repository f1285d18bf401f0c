"""The helper of the lessons: it says right when it is right, and never stops a reader."""

from pathlib import Path

import pytest

from minigpt.checkpoint.hub import resolve
from minigpt.study import lessons
from tests.fake_hub import FakeHub


def test_an_answer_that_passes_is_right(capsys):
    @lessons.check
    def _():
        assert 1 + 1 == 2

    assert capsys.readouterr().out == "right!\n"


def test_an_answer_that_fails_gets_the_message_and_no_traceback(capsys):
    @lessons.check
    def _():
        assert 1 + 1 == 3, "count the keys and the values"

    # pytest adds the values it saw on lines of their own
    assert capsys.readouterr().out.splitlines()[0] == "not yet: count the keys and the values"


def test_an_answer_not_begun_says_what_went_wrong(capsys):
    @lessons.check
    def _():
        assert None + 1 == 3  # type: ignore[operator]

    assert capsys.readouterr().out.startswith("not yet: TypeError")


def test_the_bundled_model_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert (lessons.find("toy") / "model.safetensors").exists()
    assert lessons.find("no-such-model") is None


class TestGPT2:
    @pytest.fixture
    def nowhere(self, fake_hub: FakeHub, monkeypatch, tmp_path) -> None:
        """A machine without GPT-2: no folder of it, and an empty cache of the hub's client."""
        monkeypatch.setattr(lessons, "CHECKOUT", tmp_path / "checkout")

    def test_is_replaced_by_the_bundled_model_while_it_is_not_here(self, nowhere):
        place, title = lessons.gpt2()
        assert place == lessons.find("toy")
        assert "minigpt download gpt2" in title

    @pytest.mark.parametrize("place", ["weights/gpt2", "checkout/weights/gpt2"])
    def test_is_found_where_it_was_downloaded_to(self, nowhere, tmp_path, place):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "config.json").touch()
        found, title = lessons.gpt2()
        assert (found.resolve(), title) == (tmp_path / place, "GPT-2")

    def test_is_found_in_the_cache_of_the_hubs_client(self, nowhere, published: FakeHub):
        folder = resolve("gpt2")  # as any program may have fetched it
        published.requests.clear()
        assert lessons.gpt2() == (folder, "GPT-2")
        assert published.requests == []

    def test_is_found_under_its_short_name_too(self, nowhere, fake_hub, checkpoint):
        fake_hub.files["owner/gpt2"] = checkpoint
        folder = resolve("owner/gpt2")
        Path(folder.parents[1]).rename(
            folder.parents[2] / "models--gpt2"
        )  # as transformers files it
        found, title = lessons.gpt2()
        assert (title, found.name) == ("GPT-2", folder.name)

    def test_is_not_found_in_pieces(self, nowhere, published: FakeHub):
        (resolve("gpt2") / "model.safetensors").unlink()
        assert lessons.gpt2()[0] == lessons.find("toy")
