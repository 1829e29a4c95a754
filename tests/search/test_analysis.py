import unicodedata

import bm25s
import pytest
import Stemmer
from hypothesis import given
from hypothesis import strategies as st

from sslnlp.errors import UserError
from sslnlp.search.analysis import Analyzer


def test_english_terms_are_those_of_bm25s_with_its_stop_words_and_stemmer() -> None:
    text = "The Wings of flying aircraft, and the wing's angle; it is 3 or 42 degrees. naïve_word I-beam"
    [expected] = bm25s.tokenize([text], stemmer=Stemmer.Stemmer("english"), return_ids=False, show_progress=False)
    assert Analyzer().terms(text) == expected
    assert "the" not in expected
    assert "wing" in expected


@given(st.text(alphabet=st.sampled_from("aB éİß 学习の하 .,'_-9\n"), max_size=60))
def test_every_term_points_at_the_characters_it_came_from(text: str) -> None:
    for term, start, end in Analyzer("none").located(text):
        piece = text[start:end]
        assert "".join(low if len(low := letter.lower()) == 1 else letter for letter in piece) == term


def test_words_without_spaces_become_pairs() -> None:
    assert Analyzer("none").terms("深度学习 cpu学") == ["深度", "度学", "学习", "cpu", "学"]


def test_a_letter_and_its_marks_stay_together() -> None:
    composed = "Müller wohnt in Straße 7a, naïve café"
    apart = unicodedata.normalize("NFD", composed)
    assert apart != composed
    assert Analyzer("german").terms(apart) == Analyzer("german").terms(composed)
    # The vowels of Hindi and Tamil are marks that compose with nothing.
    assert Analyzer("none").terms("हिन्दी भाषा, தமிழ் e\u0301") == ["हिन्दी", "भाषा", "தமிழ்"]
    assert Analyzer("hindi").terms("किताबें") == Analyzer("hindi").terms("किताब")


def test_a_language_without_stemmer_keeps_its_words() -> None:
    assert Analyzer("none").terms("the flying wings") == ["the", "flying", "wings"]
    assert Analyzer("german").terms("die Häuser und das Haus") == ["haus", "haus"]


def test_unknown_language_names_the_near_one() -> None:
    with pytest.raises(UserError, match="Did you mean 'english'"):
        Analyzer("englsh")


@pytest.mark.parametrize(
    ("text", "query"),
    [("ผมอยากกินข้าวผัดกุ้ง", "ข้าวผัด"), ("ພາສາລາວແມ່ນພາສາ", "ພາສາ"), ("မြန်မာစာကိုဖတ်ပါ", "မြန်မာ"), ("ភាសាខ្មែរពិបាក", "ខ្មែរ")],
)
def test_words_of_scripts_without_spaces_are_found_inside_a_run(text: str, query: str) -> None:
    analyzer = Analyzer("none")
    assert len(analyzer.terms(query)) > 1
    assert set(analyzer.terms(query)) <= set(analyzer.terms(text))
    assert [text[found.start : found.end] for found in analyzer.located(text)] == analyzer.terms(text)
