"""Rows of query, relevant text and optional irrelevant texts into the encodings of a bi-encoder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from reprlib import repr as shorten
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from sslnlp.collators.base import Collator
from sslnlp.collators.pairs import check_room, single_texts
from sslnlp.collators.ragged import pack_texts
from sslnlp.collators.tokens import FreshPositions, carried
from sslnlp.data.hashes import hash_same
from sslnlp.data.label_kinds import plain
from sslnlp.errors import UserError
from sslnlp.rng import uniform
from sslnlp.types import Batch, Encoding, Row

SIDES = ("query", "positive", "negative")
"""The encodings of a batch, in the order in which `places` counts their tokens."""


@dataclass(kw_only=True)
class RankingCollator(Collator):
    """Tokenizes the two sides of each pair on its own, and hashes the texts so that the loss can tell duplicates.

    Batch: `query`, `positive` encodings of [B, S]; `negative` encoding of [B * n, S] (row-major: the n negatives of
    row 0 first) when the rows have a `negative` or `negatives` (a text or a list of texts); `scores` float32
    [B, 1 + n], a teacher's of the positive and of those negatives, when the rows have them; `query_hash`,
    `positive_hash` int64 [B], `negative_hash` int64 [B * n]; `position` int64 [B] when the rows carry it; `places`
    int64 [R, T], how the texts of `query`, `positive` and `negative` fill rows without padding (`ragged.pack_texts`).
    Of rows without a position the negatives are drawn anew at every call.
    """

    name: ClassVar[str] = "ranking"
    makes: ClassVar[frozenset[str]] = frozenset(
        {"query", "positive", "query_hash", "positive_hash", "places", "position"}
    )
    reads: ClassVar[str] = "rows"
    columns: ClassVar[tuple[str, ...]] = ("query", "positive")
    requires: ClassVar[frozenset[str]] = frozenset({"pad"})
    lengths: ClassVar[tuple[str, ...]] = ("query_length", "document_length")
    inherits: ClassVar[tuple[str, ...]] = ("query_prefix", "document_prefix", "query_length", "document_length")

    query_prefix: str = ""
    """Put before every query ("query: "); must be used again at search time."""
    document_prefix: str = ""
    """Put before every positive and negative."""
    query_length: int = 64
    """Tokens a query may have, special tokens included."""
    document_length: int = 256
    """Tokens a document may have, special tokens included."""
    num_negatives: int | None = None
    """How many of a row's negatives to use, drawn anew each pass; None = all (then every row has as many). 0 = none."""

    def __post_init__(self) -> None:
        check_room(self.tokenizer, query_length=self.query_length, document_length=self.document_length)
        if self.num_negatives is not None and self.num_negatives < 0:
            raise UserError(f"collator.num_negatives={self.num_negatives} must be 0 or more")
        self._fresh = FreshPositions()

    def __call__(self, rows: Sequence[Row]) -> Batch:
        queries, positives = texts_of(rows, "query"), texts_of(rows, "positive")
        batch: Batch = {
            "query": self.encode_queries(queries),
            "positive": self.encode_documents(positives),
            "query_hash": _hashes(queries),
            "positive_hash": _hashes(positives),
        }
        used = [self._negatives(row, at) for row, at in zip(rows, self._fresh.of(rows), strict=True)]
        by_row = [texts for texts, _ in used]
        check_as_many(by_row)
        if negatives := [text for texts in by_row for text in texts]:
            batch["negative"] = self.encode_documents(negatives)
            batch["negative_hash"] = _hashes(negatives)
            if (scores := [scores for _, scores in used if scores is not None]) and len(scores) == len(rows):
                batch["scores"] = torch.tensor(scores, dtype=torch.float32)
        batch["places"] = pack_texts([batch[name]["attention_mask"] for name in SIDES if name in batch])
        return batch | carried(rows)

    @property
    def prompts(self) -> dict[str, str]:
        return {"query": self.query_prefix, "document": self.document_prefix}

    @property
    def text_lengths(self) -> dict[str, int]:
        return {"query": self.query_length, "document": self.document_length}

    def encode_queries(self, texts: Sequence[str]) -> Encoding:
        """Queries as the model sees them: prefixed, cut to `query_length`, padded to the longest: [N, S]."""
        return single_texts(self.tokenizer, [self.query_prefix + text for text in texts], self.query_length)

    def encode_documents(self, texts: Sequence[str]) -> Encoding:
        """Documents as the model sees them: prefixed, cut to `document_length`, padded to the longest: [N, S]."""
        return single_texts(self.tokenizer, [self.document_prefix + text for text in texts], self.document_length)

    def _negatives(self, row: Row, position: int) -> tuple[list[str], list[float] | None]:
        """The negatives of a row that are used, and the teacher's scores of its positive and of them."""
        given = negatives_of(row)
        used = drawn_of(len(given), self.num_negatives, self.seed, position)
        scores = _scores(row, len(given))
        return [given[i] for i in used], scores and [scores[0], *(scores[1 + i] for i in used)]


def _scores(row: Row, negatives: int) -> list[float] | None:
    scores = plain(row.get("scores"))
    if scores is None:
        return None
    if not isinstance(scores, list) or not all(isinstance(one, int | float) and math.isfinite(one) for one in scores):
        raise UserError(f"column 'scores' must hold a list of finite numbers in every row; found {shorten(scores)}")
    if len(scores) != 1 + negatives:
        raise UserError(
            f"a row has {len(scores)} scores and {negatives} negatives: give one for the positive, then one for each"
        )
    return scores


def negatives_of(row: Row) -> list[str]:
    """All negatives of a row, none where it has no such column; `UserError` for what is no text or list of texts."""
    given = row.get("negatives") if row.get("negatives") is not None else row.get("negative")
    given = [] if given is None else [given] if isinstance(given, str) else plain(given)
    if not isinstance(given, list) or not all(isinstance(text, str) and text.strip() for text in given):
        raise UserError(f"column 'negative' must hold a text or a list of texts in every row; found {shorten(given)}")
    return given


def drawn_of(given: int, number: int | None, seed: int, position: int) -> list[int]:
    """Which of the negatives of a row are used: `number` of them, drawn by (seed, position), or all."""
    if number is None:
        return list(range(given))
    if given < number:
        raise UserError(f"a row has {given} negatives, but collator.num_negatives={number}")
    order: list[int] = np.argsort(uniform(seed, "negatives", [position], given)[0], kind="stable").tolist()
    return order[:number]


def check_as_many(negatives: Sequence[Sequence[str]]) -> None:
    """Refuse rows that have different numbers of negatives."""
    if len(counts := {len(texts) for texts in negatives}) > 1:
        raise UserError(
            f"rows have different numbers of negatives ({min(counts)} to {max(counts)}); set "
            "collator.num_negatives so that all use as many"
        )


def texts_of(rows: Sequence[Row], column: str) -> list[str]:
    """The texts of a column; `UserError` where a row has none."""
    for row in rows:
        if not isinstance(row.get(column), str) or not row[column].strip():
            raise UserError(f"column {column!r} must hold text in every row; found {shorten(row.get(column))}")
    return [row[column] for row in rows]


def _hashes(texts: Sequence[str]) -> Tensor:
    """64-bit hashes of the texts without outer white space and case: int64 [N], the same on every process and run."""
    return torch.from_numpy(hash_same(texts).astype(np.int64))
