"""Stop strings: nothing at or past them is shown, and nothing else is lost or late."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigpt import MinigptError, Tokenizer
from minigpt.generation.stops import StopStrings
from minigpt.generation.text import StreamDecoder


def shown(stops, pieces):
    """What each piece lets show, and what comes at the end."""
    watch = StopStrings(stops)
    return [watch.push(piece)[0] for piece in pieces], watch.flush()


def before_first(stops, text):
    """The text before the stop that is complete first, the longest of several; by trying all."""
    for end in range(len(text) + 1):
        ended = [stop for stop in stops if text[:end].endswith(stop)]
        if ended:
            return text[: end - max(map(len, ended))], True
    return text, False


few = st.text("ab\n", max_size=12)


@given(stops=st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3), pieces=st.lists(few))
def test_the_text_shown_is_that_of_a_search_through_all_of_it(stops, pieces):
    watch = StopStrings(stops)
    pushed = [watch.push(piece) for piece in pieces]
    ended = any(stopped for _, stopped in pushed)
    text = "".join(text for text, _ in pushed) + watch.flush()
    assert (text, ended) == before_first(stops, "".join(pieces))


@given(stops=st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3), text=few)
def test_nothing_is_held_back_that_cannot_become_a_stop(stops, text):
    watch = StopStrings(stops)
    so_far = ""
    for end, character in enumerate(text, start=1):
        piece, stopped = watch.push(character)
        so_far += piece
        if stopped:
            break
        held = text[len(so_far) : end]
        assert not held or any(stop.startswith(held) for stop in stops)


def test_a_stop_that_spans_pieces_is_not_shown():
    assert shown(["\nUser:"], ["Yes", ".\n", "Us", "er", ": no", " more"]) == (
        ["Yes", ".", "", "", "", ""], ""
    )  # fmt: skip


def test_what_looked_like_a_stop_is_shown_once_it_is_none():
    assert shown(["END"], ["the E", "N", "Q"]) == (["the ", "", "ENQ"], "")


def test_what_is_held_back_is_shown_at_the_end():
    assert shown(["END"], ["the EN"]) == (["the "], "EN")


def test_the_stop_that_is_complete_first_wins():
    assert shown(["abcd", "bc"], ["xabcd"]) == (["xa"], "")


def test_of_stops_complete_together_the_longest_wins():
    assert shown(["c", "abc"], ["xabc"]) == (["x"], "")


def test_the_stop_that_was_found_is_known():
    watch = StopStrings(["one", "two"])
    assert watch.found is None
    watch.push("three two one")
    assert watch.found == "two"


def test_once_ended_a_text_stays_ended():
    watch = StopStrings(["."])
    assert watch.push("A. B") == ("A", True)
    assert watch.push("more") == ("", True)


def test_after_flush_another_text_can_begin():
    watch = StopStrings(["."])
    watch.push("A. B")
    assert watch.flush() == ""
    assert watch.push("C") == ("C", False)


def test_a_stop_of_several_tokens_ends_a_stream_of_tokens():
    tokenizer = Tokenizer({bytes([byte]): byte for byte in range(256)}, {})
    decoder, watch = StreamDecoder(tokenizer), StopStrings(["🦊"])
    pushed = [watch.push(decoder.push(token)) for token in tokenizer.encode("Où ? 🦉🦊!")]
    assert "".join(text for text, _ in pushed) == "Où ? 🦉"
    assert pushed[-2:] == [("", True), ("", True)]


@pytest.mark.parametrize("stop", ["", None, 5])
def test_a_stop_that_is_no_text_is_refused(stop):
    with pytest.raises(MinigptError, match=f"a stop is {stop!r}, needed a str of at least one"):
        StopStrings(["ok", stop])


def test_one_str_for_all_stops_is_refused():
    with pytest.raises(MinigptError, match="stops is one str, needed several: pass a list"):
        StopStrings("END")
