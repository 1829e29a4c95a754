"""The baselines learn what a bag of words can learn, and no more."""

import pytest

from sslnlp.evaluation.baselines import bm25_ranking, largest_class, tfidf_logreg


def test_tfidf_logreg_of_a_script_without_spaces_reads_characters() -> None:
    train = ["我想查余额", "我的余额不对", "请取消订单", "订单还没到"]
    assert tfidf_logreg(train, [0, 0, 1, 1], ["余额是多少", "怎么取消这个订单呢"], [0, 1])["accuracy"] == 1.0


def test_tfidf_logreg_learns_words() -> None:
    train = ["cats purr softly", "a cat sleeps", "dogs bark loudly", "a dog runs"]
    figures = tfidf_logreg(train, [0, 0, 1, 1], ["the cat purr", "loudly bark the dog", "a dog runs"], [0, 1, 0])
    assert figures["accuracy"] == 2 / 3  # the last label is wrong on purpose
    assert 0 < figures["macro_f1"] < 1


def test_one_class_for_all_texts() -> None:
    """What 999 texts of one class in 1,000 give to any model, and its macro-F1, which shows it."""
    figures = largest_class([1] * 999 + [0])
    assert figures["accuracy"] == 0.999
    assert figures["macro_f1"] == pytest.approx(0.999 / 1.999)
    assert largest_class([3, 3]) == {"accuracy": 1.0, "macro_f1": 1.0}


def test_bm25_finds_stems_and_leaves_out_what_shares_no_word() -> None:
    corpus = {"a": "running shoes for runners", "b": "the cooking of rice", "c": "rice fields"}
    run = bm25_ranking(corpus, {"q": "who runs", "r": "cook rice", "s": "zebra"})
    assert list(run["q"]) == ["a"]
    assert list(run["r"]) == ["b", "c"]
    assert run["r"]["b"] > run["r"]["c"] > 0
    assert run["s"] == {}
    assert len(bm25_ranking(corpus, {"r": "cook rice"}, depth=1)["r"]) == 1
