"""The helper of the lessons: it says right when it is right, and never stops a reader."""

from minigpt.study import lessons


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
