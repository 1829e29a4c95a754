"""What the quickstart's figures stand beside: methods without any pretraining, and guessing."""

from __future__ import annotations

import json
import lzma
from collections.abc import Sequence
from pathlib import Path

from sslnlp.evaluation.baselines import bm25_ranking, tfidf_logreg
from sslnlp.evaluation.beir import load_beir
from sslnlp.evaluation.few_label import subset
from sslnlp.evaluation.ranking import ranking_measures
from sslnlp.quickstart.corpus import Corpus
from sslnlp.writing import write_lines


def few_label_file(corpus: Corpus, k: int, seed: int, path: Path) -> Path:
    """`k` rows of each label of the training file, drawn by `seed`, written to `path`."""
    rows = _rows(corpus.labelled["train"])
    drawn = subset(rows, [row["label"] for row in rows], k, seed)
    write_lines(path, drawn)
    return path


def tfidf(corpus: Corpus, train: Path) -> dict[str, float]:
    """`accuracy` and `macro_f1` of TF-IDF with logistic regression, on the test file."""
    index = {label: i for i, label in enumerate(corpus.labels)}
    known, asked = _rows(train), _rows(corpus.labelled["test"])

    def split(rows: Sequence[dict[str, str]]) -> tuple[list[str], list[int]]:
        return [row["text"] for row in rows], [index[row["label"]] for row in rows]

    return tfidf_logreg(*split(known), *split(asked))


def bm25(corpus: Corpus) -> dict[str, float]:
    """Ranking measures of BM25 on the search task."""
    beir = load_beir(corpus.beir)
    return ranking_measures(beir.qrels, bm25_ranking(beir.corpus, beir.queries))


def xz_bits_per_byte(corpus: Corpus) -> float:
    """Bits per byte of the held-out text under xz: a general compressor that has seen no other text."""
    text = "\n".join(row["text"] for row in _rows(corpus.valid_text)).encode()
    return 8 * len(lzma.compress(text, preset=9)) / len(text)


def _rows(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8") as lines:  # `splitlines` would cut a text at U+2028, which JSON keeps
        return [json.loads(line) for line in lines]
