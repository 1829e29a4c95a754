"""A searchable index: build it, change it, open it, ask it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from sslnlp.errors import UserError, suggest
from sslnlp.search import manifest
from sslnlp.search.analysis import Analyzer
from sslnlp.search.bm25 import BM25
from sslnlp.search.changes import Added, add_documents, build_index, delete_documents
from sslnlp.search.defaults import RERANK_DEPTH, RERANK_WEIGHT
from sslnlp.search.documents import well_formed
from sslnlp.search.fusion import reciprocal_rank_fusion, rescored, score_fusion
from sslnlp.search.loading import load_reranker, same_encoder, same_reranker
from sslnlp.search.ranking import EMPTY, Ranking
from sslnlp.search.segments import DELETED, TABLE, VECTORS, holds_pictures
from sslnlp.search.store import DocumentStore

__all__ = [  # what is made elsewhere is found here too: one place to import from
    "Added", "Explained", "Hit", "Index", "Mode", "Place", "add_documents", "build_index", "delete_documents",
    "load_reranker",
]  # fmt: skip

Mode = Literal["bm25", "dense", "fused", "reranked"]
MODES: tuple[Mode, ...] = get_args(Mode)
Fusion = Literal["scores", "ranks"]
FUSIONS: tuple[Fusion, ...] = get_args(Fusion)
DEPTH = 1000
"""How many documents of each part's ranking go into a fused one."""


class Hit(NamedTuple):
    """One ranked document."""

    rank: int
    row: int
    id: str
    score: float


class Place(NamedTuple):
    """Where one part of the pipeline put a document: its rank from 1 and its score there."""

    rank: int
    score: float


class Explained(NamedTuple):
    """A hit and its place in the ranking of each of the index's modes; None where that part did not list it."""

    hit: Hit
    places: dict[Mode, Place | None]


class Index:
    """An index opened for searching.

    `model` overrides where the encoder is found; it must be the one the index was made with. `reranker` (a folder or
    hub name of a cross-encoder; default: the one the index remembers, if any) adds the mode `reranked`, in which it
    reads the first `depth` documents and has `rerank_weight` (0 to 1) of the say in their order. `ann` searches the
    vectors by their graph instead of exactly. `fusion` joins BM25 and vectors by their "scores" (`score_fusion`) or
    their "ranks" (`reciprocal_rank_fusion`); None: by scores where those of the vectors are cosines of texts. Raises
    UserError when there is no index, when it is broken, and (at the first search that needs it) when a model differs
    from the one remembered.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        model: str | None = None,
        reranker: str | None = None,
        depth: int = RERANK_DEPTH,
        rerank_weight: float = RERANK_WEIGHT,
        ann: bool = False,
        fusion: str | None = None,
        verify: bool = True,
    ) -> None:
        if fusion is not None and fusion not in FUSIONS:
            raise UserError(f"unknown fusion {fusion!r}.{suggest(fusion, FUSIONS)}")
        if depth < 1:
            raise UserError(f"the reranking depth must be at least 1, got {depth}")
        if not 0 <= rerank_weight <= 1:
            raise UserError(f"the reranker's weight is a share from 0 to 1, got {rerank_weight}")
        self.path = Path(path)
        self.facts = manifest.read(self.path, verify=verify)
        if ann and not (self.facts["dense"] and self.facts["dense"]["ann"]):
            raise UserError(f"the index at {self.path} has no graph for approximate search: index again with --ann")
        if model is not None and not self.facts["dense"]:
            raise UserError(f"the index at {self.path} has no vectors, so --model has no use: leave it out")
        self.pictures = holds_pictures(self.facts)
        self.wordless = self.pictures and not self.facts["bm25"]["terms"]
        if reranker is not None and self.wordless:
            raise UserError(f"the pictures in the index at {self.path} have no captions for a reranker to read")
        self.analyzer = Analyzer(self.facts["bm25"]["language"])
        self._folders = [self.path / segment["name"] for segment in self.facts["segments"]]
        deleted = np.load(self.path / self.facts["table"] / DELETED)
        self.documents = DocumentStore(self._folders, deleted.tolist())
        self._ann, self._fusion = ann, fusion
        self.depth, self.rerank_weight = depth, rerank_weight
        self._model = model
        self._reranker = reranker

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The modes this index can answer in, the fullest last. Pictures without captions have vectors alone."""
        if self.wordless:
            return ("dense",)
        vectors: tuple[Mode, ...] = ("dense", "fused") if self.facts["dense"] else ()
        reranks: tuple[Mode, ...] = ("reranked",) if self._reranker or self.facts["reranker"] else ()
        return ("bm25", *vectors, *reranks)

    def resolve_mode(self, mode: str | None) -> Mode:
        """`mode` checked, or the default: reranked where there is a reranker, else fused where there are vectors."""
        if mode is None:
            return self.modes[-1]
        for known in MODES:
            if mode == known and known in self.modes:
                return known
        if mode in MODES and self.wordless:
            raise UserError(
                f"the pictures in the index at {self.path} have no captions, so there are no words for mode {mode!r}: "
                "only dense"
            )
        if mode == "reranked":
            raise UserError(f"the index at {self.path} remembers no reranker: name one with --reranker")
        if mode in MODES:
            raise UserError(f"the index at {self.path} has no vectors for mode {mode!r}: index again with --model")
        raise UserError(f"unknown mode {mode!r}.{suggest(mode, MODES)}")

    @cached_property
    def bm25(self) -> BM25:
        live = None
        if self.documents.deleted:
            live = np.setdiff1d(np.arange(self.documents.rows), np.array(sorted(self.documents.deleted)))
        return BM25(self.path / self.facts["table"] / TABLE, self.analyzer, live)

    @cached_property
    def encoder(self) -> Any:
        """The `Encoder` (of pictures: `DualEncoder`) the vectors were made with, its fingerprint checked."""
        return same_encoder(self.path, self.facts, self._model)

    @cached_property
    def reranker(self) -> Any:
        """The `Reranker` named when opening (any will do), else the remembered one, its fingerprint checked."""
        return same_reranker(self.facts["reranker"], self._reranker)

    @cached_property
    def thumbnails(self) -> Any:
        """The `Thumbnails` of an index of pictures, by row."""
        from sslnlp.search.thumbnails import Thumbnails

        return Thumbnails(self._folders)

    @cached_property
    def dense(self) -> Any:
        """The `DenseIndex` over the vectors (an `AnnIndex` when opened so)."""
        from sslnlp.search.ann import AnnIndex
        from sslnlp.search.dense import DenseIndex

        kind = AnnIndex if self._ann else DenseIndex
        dense = kind([folder / VECTORS for folder in self._folders], self.documents.deleted)
        if (len(dense.alive_N), dense.dimension) != (self.documents.rows, self.facts["dense"]["dimension"]):
            raise UserError(f"the index at {self.path} mixes dimensions: make it again")
        return dense

    def rank(self, queries: Sequence[str], mode: str | None = None, k: int = 10) -> list[Ranking]:
        """The best `k` documents of each query as rows and scores; an empty query has none."""
        return self._parts(queries, self.resolve_mode(mode), k)[-1][1]

    def _parts(self, queries: Sequence[str], mode: Mode, k: int) -> list[tuple[Mode, list[Ranking]]]:
        """The rankings of `mode` (last) and of every mode it is made of, each part deep enough for `k` of the whole."""
        queries = [well_formed(query) for query in queries]
        parts: list[tuple[Mode, list[Ranking]]] = []
        if mode == "reranked":
            parts = self._parts(queries, "fused" if self.facts["dense"] else "bm25", max(k, self.depth))
            return [*parts, ("reranked", [self._rerank(*pair, k) for pair in zip(queries, parts[-1][1], strict=True)])]
        depth = max(k, DEPTH) if mode == "fused" else k
        if mode != "dense":
            parts.append(("bm25", self.bm25.search(queries, depth)))
        if mode != "bm25":
            vectors = self._vectors(queries)
            parts.append(("dense", self._rank_dense(vectors, len(queries), depth)))
        if mode == "fused":
            parts.append(("fused", self._fuse(queries, parts[0][1], parts[1][1], vectors, k)))
        return parts

    def _vectors(self, queries: Sequence[str]) -> dict[int, Any]:
        """Those of the queries that are not empty, by number."""
        asked = [number for number, query in enumerate(queries) if query.strip()]
        found = self.encoder.encode([queries[number] for number in asked], "query") if asked else ()
        return dict(zip(asked, found, strict=True))

    def _rank_dense(self, vectors: Mapping[int, Any], queries: int, k: int) -> list[Ranking]:
        found = self.dense.search(np.stack(list(vectors.values())), k) if vectors else ()
        near = dict(zip(vectors, found, strict=True))
        return [near.get(number, EMPTY) for number in range(queries)]

    def _fuse(
        self, queries: Sequence[str], words: list[Ranking], near: list[Ranking], vectors: Mapping[int, Any], k: int
    ) -> list[Ranking]:
        if not self._fuses_by_scores:
            return [reciprocal_rank_fusion(pair, k) for pair in zip(words, near, strict=True)]
        fused = [EMPTY] * len(queries)
        for number, vector in vectors.items():
            counted, cosines = partial(self.bm25.scores, queries[number]), partial(self.dense.scores, vector)
            fused[number] = score_fusion(words[number], near[number], counted, cosines, k)
        return fused

    @property
    def _fuses_by_scores(self) -> bool:
        """Raises UserError where that is asked for, and the scores of the vectors are no cosines of texts."""
        if self._fusion == "scores" and not self.encoder.cosines:
            why = "pictures and words" if self.pictures else "dot products"
            raise UserError(f"the vectors of the index at {self.path} give {why} no cosines to add up: --fusion ranks")
        return self._fusion != "ranks" and bool(self.encoder.cosines)

    def _rerank(self, query: str, first: Ranking, k: int) -> Ranking:
        texts = [self.documents[row].content for row in first.rows[: self.depth].tolist()]
        return rescored(first, self.reranker.score(query, texts), k, self.rerank_weight) if texts else EMPTY

    def search(self, query: str, mode: str | None = None, k: int = 10) -> list[Hit]:
        """The best `k` documents for one query, best first. Raises UserError for an empty query and k below 1."""
        _check(query, k)
        return self.hits(self.rank([query], mode, k)[0])

    def search_picture(self, content: bytes, k: int = 10) -> list[Hit]:
        """The `k` pictures most like the one in the file `content`, by their vectors.

        Raises UserError where the index holds texts, for what is no picture, and k below 1.
        """
        from sslnlp.pictures import BrokenPicture, decode

        if not self.pictures:
            raise UserError(f"the index at {self.path} holds texts: a picture finds nothing there")
        _check_number(k)
        try:
            decode(content)
        except BrokenPicture as error:
            raise UserError(f"this is no picture to search by ({error})") from error
        return self.hits(self.dense.search(self.encoder.encode([content], "document"), k)[0])

    def explain(self, query: str, k: int = 10, mode: str | None = None) -> list[Explained]:
        """`search`, and for every hit its place in each part that `mode` is made of (1,000 documents deep).

        Modes that took no part, or did not list the document, are None.
        """
        _check(query, k)
        mode = self.resolve_mode(mode)
        parts = self._parts([query], mode, max(k, DEPTH))
        places: dict[Mode, dict[int, Place]] = {
            name: {hit.row: Place(hit.rank, hit.score) for hit in self.hits(rankings[0])} for name, rankings in parts
        }
        found = parts[-1][1][0]
        found = Ranking(found.rows[:k], found.scores[:k])
        return [Explained(hit, {name: places.get(name, {}).get(hit.row) for name in MODES}) for hit in self.hits(found)]

    def wordless_query(self, query: str, mode: Mode) -> str:
        """What is to be said of a query that holds no word for BM25, where it has a part in `mode`; else nothing."""
        if mode == "dense" or self.analyzer.terms(query):
            return ""
        what = "contributed nothing" if self.facts["dense"] and mode != "bm25" else "found nothing"
        return f"BM25 {what}: the query holds only stop words, single letters or signs (emoji too)."

    def hits(self, ranking: Ranking) -> list[Hit]:
        """A ranking with the documents' ids."""
        pairs = zip(ranking.rows.tolist(), ranking.scores.tolist(), strict=True)
        return [Hit(rank, row, self.documents.ids[row], score) for rank, (row, score) in enumerate(pairs, start=1)]


def _check(query: str, k: int) -> None:
    if not query.strip():
        raise UserError("the query is empty: give at least one word")
    _check_number(k)


def _check_number(k: int) -> None:
    if k < 1:
        raise UserError(f"k must be at least 1, got {k}")
