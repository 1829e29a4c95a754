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
from sslnlp.search.ranking import EMPTY, Ranking
from sslnlp.search.store import DocumentStore, write_documents

Mode = Literal["bm25", "dense", "fused"]
MODES: tuple[Mode, ...] = get_args(Mode)
DEPTH = 1000
"""How many documents of each part's ranking go into a fused one."""

Progress = Callable[[str, int, int], None]
"""Called with (stage, documents done since the last call, documents in all)."""


class Hit(NamedTuple):
    """One ranked document."""

    rank: int
    row: int
    id: str
    score: float


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

    `model` overrides where the encoder is found; it must be the one the index was made with. Raises UserError when
    there is no index, when it is broken, and (at the first dense search) when the model differs.
    """

    def __init__(self, path: str | Path, *, model: str | None = None, verify: bool = True) -> None:
        self.path = Path(path)
        self.facts, self._folder = manifest.read(self.path, verify=verify)
        self.analyzer = Analyzer(self.facts["bm25"]["language"])
        self.documents = DocumentStore(self._folder)
        self._model = model

    @property
    def modes(self) -> tuple[Mode, ...]:
        """The modes this index can answer in."""
        return MODES if self.facts["dense"] else ("bm25",)

    def resolve_mode(self, mode: str | None) -> Mode:
        """`mode` checked, or the default: fused when there are vectors, else bm25."""
        if mode is None:
            return self.modes[-1]
        for known in MODES:
            if mode == known and known in self.modes:
                return known
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
    def dense(self) -> Any:
        """The `DenseIndex` over the vectors."""
        from sslnlp.search.dense import DenseIndex

        dense = DenseIndex(self._folder / "vectors.npy")
        if dense.vectors_ND.shape != (len(self.documents), self.facts["dense"]["dimension"]):
            raise UserError(f"The index at {self.path} mixes dimensions: make it again.")
        return dense

    def rank(self, queries: Sequence[str], mode: str | None = None, k: int = 10) -> list[Ranking]:
        """The best `k` documents of each query as rows and scores; an empty query has none."""
        mode, queries = self.resolve_mode(mode), [well_formed(query) for query in queries]
        if mode == "bm25":
            return self.bm25.search(queries, k)
        if mode == "dense":
            return self._rank_dense(queries, k)
        depth = max(k, DEPTH)
        pairs = zip(self.bm25.search(queries, depth), self._rank_dense(queries, depth), strict=True)
        return [reciprocal_rank_fusion(pair, k) for pair in pairs]

    def _rank_dense(self, queries: Sequence[str], k: int) -> list[Ranking]:
        asked = [query for query in queries if query.strip()]
        found = iter(self.dense.search(self.encoder.encode(asked, "query"), k)) if asked else iter(())
        return [next(found) if query.strip() else EMPTY for query in queries]

    def search(self, query: str, mode: str | None = None, k: int = 10) -> list[Hit]:
        """The best `k` documents for one query, best first. Raises UserError for an empty query and k below 1."""
        if not query.strip():
            raise UserError("The query is empty: give at least one word.")
        if k < 1:
            raise UserError(f"k must be at least 1, got {k}.")
        return self.hits(self.rank([query], mode, k)[0])

    def hits(self, ranking: Ranking) -> list[Hit]:
        """A ranking with the documents' ids."""
        pairs = zip(ranking.rows.tolist(), ranking.scores.tolist(), strict=True)
        return [Hit(rank, row, self.documents.ids[row], score) for rank, (row, score) in enumerate(pairs, start=1)]
