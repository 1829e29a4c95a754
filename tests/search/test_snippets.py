from hypothesis import given
from hypothesis import strategies as st

from sslnlp.search.analysis import Analyzer
from sslnlp.search.snippets import snippet

ENGLISH = Analyzer()
FILLER = "nothing to see here " * 30


def test_matches_are_marked_where_they_stand_whatever_their_form() -> None:
    found = snippet("Wings fly.\nA Wing flew.", "flying wing", ENGLISH)
    assert found.text == "Wings fly. A Wing flew."
    assert [found.text[start:end] for start, end in found.matches] == ["Wings", "fly", "Wing"]


def test_the_piece_with_most_of_the_query_is_shown() -> None:
    found = snippet(f"a wing. {FILLER} heat of a wing. {FILLER}", "heat wing", ENGLISH, width=80)
    assert found.text.startswith("… ")
    assert found.text.endswith(" …")
    assert [found.text[start:end] for start, end in found.matches] == ["heat", "wing"]


def test_without_a_match_the_beginning_is_shown() -> None:
    found = snippet(FILLER, "wing", ENGLISH, width=50)
    assert found.matches == []
    assert found.text.startswith("nothing to see")
    assert len(found.text) <= 50 + 30 + 2


def test_a_document_cannot_speak_to_the_terminal() -> None:
    found = snippet("a\x1b[2Jwing\ud800\r\n", "wing", ENGLISH)
    assert (found.text, found.matches) == ("a [2Jwing   ", [])
    assert snippet("\x07wing", "wing", ENGLISH).matches == [(1, 5)]


@given(st.text(alphabet=st.sampled_from("wing heat\n.,İ学"), max_size=200), st.integers(5, 60))
def test_every_mark_is_a_term_of_the_query_and_the_length_is_bounded(text: str, width: int) -> None:
    found = snippet(text, "wing 学", ENGLISH, width)
    assert all(ENGLISH.terms(found.text[start:end]) in (["wing"], ["学"]) for start, end in found.matches)
    assert len(found.text) <= width + 30 + 30 + 4
