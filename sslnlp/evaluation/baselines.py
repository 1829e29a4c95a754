"""Honest baselines to stand beside every figure: what a person gets without any pretraining."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import bm25s
import Stemmer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from sslnlp.evaluation.classification import class_figures
from sslnlp.search.analysis import has_unspaced


def tfidf_logreg(
    train_texts: Sequence[str], train_labels: Sequence[int], test_texts: Sequence[str], test_labels: Sequence[int]
) -> dict[str, float]:
    """`accuracy` and `macro_f1` of TF-IDF (words and word pairs; one to three characters where most texts are in a
    script without spaces) and logistic regression, C = 10."""
    unspaced = sum(map(has_unspaced, train_texts)) > len(train_texts) / 2
    vectors = TfidfVectorizer(analyzer="char", ngram_range=(1, 3)) if unspaced else TfidfVectorizer(ngram_range=(1, 2))
    model = make_pipeline(vectors, LogisticRegression(C=10, max_iter=1000))
    model.fit(train_texts, train_labels)
    return class_figures(model.predict(test_texts), test_labels)


def largest_class(test_labels: Sequence[int]) -> dict[str, float]:
    """`accuracy` and `macro_f1` of always saying the class that most of the test labels are."""
    ((most, _),) = Counter(test_labels).most_common(1)
    return class_figures([most] * len(test_labels), test_labels)


def bm25_ranking(
    corpus: Mapping[str, str], queries: Mapping[str, str], *, depth: int = 1000
) -> dict[str, dict[str, float]]:
    """A run {query id: {document id: score}} by BM25 (bm25s defaults, English stop words and stemmer)."""
    stemmer, ids = Stemmer.Stemmer("english"), list(corpus)
    index = bm25s.BM25()
    index.index(_tokens(list(corpus.values()), stemmer), show_progress=False)
    documents, scores = index.retrieve(
        _tokens(list(queries.values()), stemmer), k=min(depth, len(ids)), show_progress=False
    )
    # A score of 0 means no shared word: not retrieved.
    return {
        query: {ids[d]: float(s) for d, s in zip(row, row_scores, strict=True) if s > 0}
        for query, row, row_scores in zip(queries, documents, scores, strict=True)
    }


def _tokens(texts: list[str], stemmer: Stemmer.Stemmer) -> bm25s.tokenization.Tokenized:
    return bm25s.tokenize(texts, stopwords="en", stemmer=stemmer, show_progress=False)
