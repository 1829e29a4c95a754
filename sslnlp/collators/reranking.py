"""Rows of query, relevant text and irrelevant texts into the pairs that a cross-encoder reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch

from sslnlp.collators.base import Collator
from sslnlp.collators.pairs import PairTokenizer
from sslnlp.collators.ranking import check_as_many, drawn_of, negatives_of, texts_of
from sslnlp.collators.tokens import FreshPositions, carried
from sslnlp.data.hashes import HashSet, hash_texts
from sslnlp.data.stream import in_runs
from sslnlp.errors import UserError
from sslnlp.rng import uniform
from sslnlp.types import Batch, Row

DRAWN = 4
"""Negatives of a row that brings none, unless `num_negatives` says how many."""


@dataclass(kw_only=True)
class RerankingCollator(Collator):
    """The query of each row beside its relevant text, then beside each of its n irrelevant ones.

    Irrelevant are the row's own `negatives` (a text or a list of texts, as `sslnlp search mine` finds them). A row
    without any gets texts that are relevant to other training rows, drawn anew at each position: such texts are easy
    to tell, so they teach less. From the whole table and not from the batch, because a batch that is split would have
    other ones. A negative that some training row says is relevant to the same query is left out of the loss.

    Batch: `pairs` encoding of [B * (1 + n), S] (row-major: the 1 + n pairs of row 0 first); `relevance` int64
    [B, 1 + n], 1 for the relevant text (the first), 0 for the others, -100 where left out; `position` int64 [B] when
    the rows carry it; else negatives are drawn anew at every call.
    """

    name: ClassVar[str] = "reranking"
    makes: ClassVar[frozenset[str]] = frozenset({"pairs", "relevance", "position"})
    reads: ClassVar[str] = "rows"
    columns: ClassVar[tuple[str, ...]] = ("query", "positive")
    requires: ClassVar[frozenset[str]] = frozenset({"pad"})
    lengths: ClassVar[tuple[str, ...]] = ("max_length",)
    inherits: ClassVar[tuple[str, ...]] = ("query_prefix", "document_prefix", "query_length")

    query_prefix: str = ""
    """Put before every query ("query: "); must be used again at search time."""
    document_prefix: str = ""
    """Put before every document."""
    query_length: int = 64
    """Tokens of a query that are read, special tokens aside; never more than half of the pair."""
    max_length: int = 256
    """Tokens a pair may have, special tokens included; a longer one loses the end of its document."""
    num_negatives: int | None = None
    """How many of a row's negatives to use, drawn anew each pass; None = all (then every row has as many)."""
    table: Any = field(default=None, repr=False)
    """The training rows; set by the run."""

    def __post_init__(self) -> None:
        around = self.tokenizer.num_special_tokens_to_add(pair=True)
        if self.max_length < around + 2:
            raise UserError(f"collator.max_length={self.max_length} leaves no room beside {around} special tokens")
        for option in ("query_length", "num_negatives"):
            if (value := getattr(self, option)) is not None and value < 1:
                raise UserError(f"collator.{option}={value} must be 1 or more")
        self._fresh = FreshPositions()
        self._tokenize = PairTokenizer(
            self.tokenizer,
            max_length=self.max_length,
            query_length=self.query_length,
            query_prefix=self.query_prefix,
            document_prefix=self.document_prefix,
        )

    def __call__(self, rows: Sequence[Row]) -> Batch:
        queries, positives = texts_of(rows, "query"), texts_of(rows, "positive")
        positions = self._fresh.of(rows)
        negatives = [self._negatives(row, at) for row, at in zip(rows, positions, strict=True)]
        check_as_many(negatives)
        number = len(negatives[0])
        asked = [query for query in queries for _ in range(1 + number)]
        texts = [text for own, others in zip(positives, negatives, strict=True) for text in (own, *others)]
        relevance = self._known(asked, texts, positives).reshape(len(rows), 1 + number)
        relevance[:, 0] = 1
        batch: Batch = {
            "pairs": self._tokenize.pad(self._tokenize(asked, texts)),
            "relevance": torch.from_numpy(relevance),
        }
        return batch | carried(rows)

    def for_evaluation(self, seed: int) -> RerankingCollator:
        other = super().for_evaluation(seed)
        assert isinstance(other, RerankingCollator)
        if self.table is not None:
            other.__dict__["_relevant"] = self._relevant  # read once
        return other

    @property
    def prompts(self) -> dict[str, str]:
        return {"query": self.query_prefix, "document": self.document_prefix}

    @property
    def text_lengths(self) -> dict[str, int]:
        return {"query": self.query_length}

    def _negatives(self, row: Row, position: int) -> list[str]:
        """The negatives of a row that are used."""
        given = negatives_of(row)
        if not given:
            return self._drawn(position)
        return [given[n] for n in drawn_of(len(given), self.num_negatives, self.seed, position)]

    def _drawn(self, position: int) -> list[str]:
        """Texts of other rows."""
        if self.table is None or len(self.table) < 2:
            raise UserError("a row has no negatives: find some with sslnlp search mine PAIRS --out FILE")
        drawn = uniform(self.seed, "other texts", [position], self.num_negatives or DRAWN)[0]
        return [str(row["positive"]) for row in self.table.rows((drawn * len(self.table)).astype(np.int64))]

    def _known(self, asked: Sequence[str], texts: Sequence[str], positives: Sequence[str]) -> Any:
        """-100 for a text that is known to be relevant, else 0: int64 [N]."""
        hashes = _pair_hashes(asked, texts)
        size = len(texts) // len(positives)
        own = _pair_hashes(asked[::size], positives).repeat(size)
        known = hashes == own
        if self.table is not None:
            known |= self._relevant.contains(hashes)
        return np.where(known, -100, 0).astype(np.int64)

    @cached_property
    def _relevant(self) -> HashSet:
        """The pairs of query and relevant text of the training rows: 8 bytes each."""
        pairs = HashSet()
        for rows in in_runs(self.table):
            pairs.add(_pair_hashes([row["query"] for row in rows], [row["positive"] for row in rows]))
        return pairs


def _pair_hashes(queries: Sequence[str], texts: Sequence[str]) -> Any:
    """Hashes of the pairs, without the texts' outer white space and case: uint64 [N]."""
    return hash_texts([f"{q.strip().lower()}\x1f{t.strip().lower()}" for q, t in zip(queries, texts, strict=True)])
