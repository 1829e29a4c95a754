from hypothesis import given
from hypothesis import strategies as st

from sslnlp.search.analysis import Analyzer
from sslnlp.search.snippets import Snippet, pieces, snippet

ENGLISH = Analyzer()
FILLER = "nothing to see here " * 30


def test_matches_are_marked_where_they_stand_whatever_their_form() -> None:
    found = snippet("Wings fly.\nA Wing flew.", "flying wing", ENGLISH)
    assert found.text == "Wings fly. A Wing flew."
    assert [found.text[start:end] for start, end in found.matches] == ["Wings", "fly", "Wing"]


def test_an_accent_that_stands_by_itself_is_marked_with_its_letter() -> None:
    found = snippet("in Mu\u0308nchen", "München", ENGLISH)
    assert [found.text[start:end] for start, end in found.matches] == ["München"]


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


def test_pieces_by_hand() -> None:
    assert pieces(Snippet("a wing.", [(2, 6)])) == [("a ", False), ("wing", True), (".", False)]
    assert pieces(Snippet("abcde", [(0, 2), (1, 3), (3, 4)])) == [("abcd", True), ("e", False)]
    assert pieces(Snippet("abc", [])) == [("abc", False)]
    assert pieces(Snippet("", [])) == []


@given(st.text(max_size=12), st.lists(st.tuples(st.integers(0, 11), st.integers(1, 4)), max_size=5))
def test_pieces_lose_nothing_and_mark_what_is_matched(text: str, drawn: list[tuple[int, int]]) -> None:
    spans = [(start, min(start + length, len(text))) for start, length in drawn if start < len(text)]
    cut = pieces(Snippet(text, spans))
    assert "".join(piece for piece, _ in cut) == text
    marked = [flag for piece, flag in cut for _ in piece]
    assert marked == [any(start <= at < end for start, end in spans) for at in range(len(text))]
