"""A searchable index: build it, open it, ask it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from sslnlp.errors import UserError, suggest
from sslnlp.search import manifest
from sslnlp.search.analysis import Analyzer
from sslnlp.search.bm25 import BM25, write_bm25
from sslnlp.search.documents import Columns, read_documents, well_formed
from sslnlp.search.fusion import reciprocal_rank_fusion
from sslnlp.search.ranking import EMPTY, Ranking, rescored
from sslnlp.search.store import DocumentStore, write_documents

Mode = Literal["bm25", "dense", "fused", "reranked"]
MODES: tuple[Mode, ...] = get_args(Mode)
DEPTH = 1000
"""How many documents of each part's ranking go into a fused one."""
RERANK_DEPTH = 100
"""How many documents of the first stage the reranker reads, unless told otherwise."""

Progress = Callable[[str, int, int], None]
"""Called with (stage, documents done since the last call, documents in all)."""


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


def build_index(
    data: str | Path,
    out: str | Path,
    *,
    model: str | None = None,
    language: str = "english",
    dtype: str = "float16",
    batch_size: int = 32,
    columns: Columns = Columns(),  # noqa: B008 (immutable)
    progress: Progress = lambda stage, done, total: None,
) -> dict[str, Any]:
    """Index the documents at `data` into the folder `out` (an index already there is replaced, at the very end).

    BM25 always; with `model` (an encoder folder or hub name) also vectors of `dtype` float16 or float32. Returns the
    facts kept in the index: `documents`, `bm25`, `dense`. Raises UserError and leaves `out` as it was for anything
    unreadable, an empty corpus, duplicate ids, or a model that cannot be loaded.
    """
    if dtype not in ("float16", "float32"):
        raise UserError(f"Unknown vector type {dtype!r}.{suggest(dtype, ('float16', 'float32'))}")
    out, analyzer = Path(out), Analyzer(language)
    encoder = _load_encoder(model) if model is not None else None  # before the long work, not after it
    with manifest.new_generation(out) as folder:
        written = write_documents(folder, read_documents(data, columns))
        store = DocumentStore(folder)
        write_bm25(folder / "bm25", (document.content for document in store), analyzer)
        progress("bm25", len(store), len(store))
        facts: dict[str, Any] = {
            "documents": {"count": written.documents, "empty": written.empty},
            "bm25": {"language": language},
            "dense": None,
        }
        if encoder is not None:
            from sslnlp.search.dense import write_vectors

            texts = (document.content for document in store)
            write_vectors(
                folder / "vectors.npy",
                texts,
                len(store),
                encoder,
                dtype=dtype,
                batch_size=batch_size,
                progress=lambda done: progress("dense", done, len(store)),
            )
            facts["dense"] = {
                "model": encoder.name,
                "fingerprint": encoder.fingerprint,
                "dimension": encoder.dimension,
                "dtype": dtype,
            }
        manifest.commit(out, folder, facts)
    return facts


def _load_encoder(name: str) -> Any:
    from sslnlp.search.encoder import Encoder  # brings torch: only where vectors are asked for

    return Encoder.load(name)


class Index:
    """An index opened for searching.

    `model` overrides where the encoder is found; it must be the one the index was made with. `reranker` (a folder or
    hub name of a cross-encoder; default: the one the index remembers, if any) adds the mode `reranked`, in which it
    reads the first `depth` documents. Raises UserError when there is no index, when it is broken, and (at the first
    search that needs it) when a model differs from the one remembered.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        model: str | None = None,
        reranker: str | None = None,
        depth: int = RERANK_DEPTH,
        verify: bool = True,
    ) -> None:
        if depth < 1:
            raise UserError(f"The reranking depth must be at least 1, got {depth}.")
        self.path = Path(path)
        self.facts, self._folder = manifest.read(self.path, verify=verify)
        self.analyzer = Analyzer(self.facts["bm25"]["language"])
        self.documents = DocumentStore(self._folder)
        self.depth = depth
        self._model = model
        self._reranker = reranker

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The modes this index can answer in, the fullest last."""
        vectors: tuple[Mode, ...] = ("dense", "fused") if self.facts["dense"] else ()
        reranks: tuple[Mode, ...] = ("reranked",) if self._reranker or self.facts.get("reranker") else ()
        return ("bm25", *vectors, *reranks)

    def resolve_mode(self, mode: str | None) -> Mode:
        """`mode` checked, or the default: reranked where there is a reranker, else fused where there are vectors."""
        if mode is None:
            return self.modes[-1]
        for known in MODES:
            if mode == known and known in self.modes:
                return known
        if mode == "reranked":
            raise UserError(f"The index at {self.path} remembers no reranker: name one with --reranker.")
        if mode in MODES:
            raise UserError(f"The index at {self.path} has no vectors for mode {mode!r}: index again with --model.")
        raise UserError(f"Unknown mode {mode!r}.{suggest(mode, MODES)}")

    @cached_property
    def bm25(self) -> BM25:
        return BM25(self._folder / "bm25", self.analyzer)

    @cached_property
    def encoder(self) -> Any:
        """The `Encoder` the vectors were made with, its fingerprint checked."""
        facts = self.facts["dense"]
        encoder = _load_encoder(self._model or facts["model"])
        if encoder.fingerprint != facts["fingerprint"]:
            raise UserError(
                f"The vectors were made by another model ({facts['model']}) than {encoder.name}, or its files changed "
                "since: name the same one with --model or index again."
            )
        return encoder

    @cached_property
    def reranker(self) -> Any:
        """The `Reranker` named when opening (any will do), else the remembered one, its fingerprint checked."""
        facts = self.facts.get("reranker") or {}
        reranker = load_reranker(self._reranker or facts["model"])
        if not self._reranker and reranker.fingerprint != facts["fingerprint"]:
            raise UserError(
                f"The reranker {reranker.name} changed since it was indexed with: name it with --reranker to use it."
            )
        return reranker

    @cached_property
    def dense(self) -> Any:
        """The `DenseIndex` over the vectors."""
        from sslnlp.search.dense import DenseIndex

        dense = DenseIndex(self._folder / "vectors.npy")
        if dense.vectors_ND.shape != (len(self.documents), self.facts["dense"]["dimension"]):
            raise UserError(f"The index at {self.path} mixes dimensions: make it again.")
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
            parts.append(("dense", self._rank_dense(queries, depth)))
        if mode == "fused":
            pairs = zip(parts[0][1], parts[1][1], strict=True)
            parts.append(("fused", [reciprocal_rank_fusion(pair, k) for pair in pairs]))
        return parts

    def _rank_dense(self, queries: Sequence[str], k: int) -> list[Ranking]:
        asked = [query for query in queries if query.strip()]
        found = iter(self.dense.search(self.encoder.encode(asked, "query"), k)) if asked else iter(())
        return [next(found) if query.strip() else EMPTY for query in queries]

    def _rerank(self, query: str, first: Ranking, k: int) -> Ranking:
        texts = [self.documents[row].content for row in first.rows[: self.depth].tolist()]
        return rescored(first, self.reranker.score(query, texts), k) if texts else EMPTY

    def search(self, query: str, mode: str | None = None, k: int = 10) -> list[Hit]:
        """The best `k` documents for one query, best first. Raises UserError for an empty query and k below 1."""
        _check(query, k)
        return self.hits(self.rank([query], mode, k)[0])

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

    def hits(self, ranking: Ranking) -> list[Hit]:
        """A ranking with the documents' ids."""
        pairs = zip(ranking.rows.tolist(), ranking.scores.tolist(), strict=True)
        return [Hit(rank, row, self.documents.ids[row], score) for rank, (row, score) in enumerate(pairs, start=1)]


def load_reranker(name: str) -> Any:
    """The cross-encoder at `name` (it brings torch: only where reranking is asked for)."""
    from sslnlp.search.reranker import Reranker  # type: ignore[import-untyped, unused-ignore]

    return Reranker.load(name)


def _check(query: str, k: int) -> None:
    if not query.strip():
        raise UserError("The query is empty: give at least one word.")
    if k < 1:
        raise UserError(f"k must be at least 1, got {k}.")
