"""Segments: documents that came together, filled stage by stage, and joined again when small ones pile up."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sslnlp.arrays import Bools
from sslnlp.errors import UserError
from sslnlp.search import manifest
from sslnlp.search.analysis import Analyzer
from sslnlp.search.bm25 import write_table
from sslnlp.search.loading import MAP
from sslnlp.search.postings import Postings, join, write_postings
from sslnlp.search.resume import Work
from sslnlp.search.sources import Progress, Source
from sslnlp.search.store import DocumentStore

POSTINGS, VECTORS, DELETED, TABLE = "postings", "vectors.npy", "deleted.npy", "bm25"


def fill(
    work: Work, facts: Mapping[str, Any], source: Source, encoder: Any, batch_size: int, progress: Progress
) -> None:
    """Do what is not done yet for the documents in the folder of `work`: postings, vectors, graph, as `facts` say."""
    folder, store = work.folder, DocumentStore([work.folder])
    if "postings" not in work.done:
        analyzer = Analyzer(facts["bm25"]["language"])
        texts = (document.content for document in store)
        write_postings(folder / POSTINGS, texts, analyzer, lambda done: progress("bm25", done, len(store)))
        work.finish("postings", True)
    if facts["dense"] and (start := work.done.get("vectors", 0)) < len(store):
        from sslnlp.search.dense import write_vectors

        progress("dense", start, len(store))

        def flushed(done: int) -> None:
            progress("dense", done - work.done.get("vectors", 0), len(store))
            work.finish("vectors", done, flush=False)  # its writer has flushed the block

        contents = source.contents(folder, work.done["documents"], start)
        write_vectors(
            folder / VECTORS, contents, len(store), encoder, dtype=facts["dense"]["dtype"], batch_size=batch_size,
            block=source.block, start=start, flushed=flushed,
        )  # fmt: skip
    if facts["dense"] and facts["dense"]["ann"] and (start := work.done.get("ann", 0)) < len(store):
        progress("ann", start, len(store))
        _write_graph(folder, progress, start, lambda done: work.finish("ann", done))


def _write_graph(
    folder: Path, progress: Progress, start: int = 0, saved: Callable[[int], None] = lambda done: None
) -> None:
    from sslnlp.search import ann

    vectors_ND = np.load(folder / VECTORS, mmap_mode="r")
    ann.write_ann(
        folder / ann.NAME,
        vectors_ND,
        start=start,
        saved=saved,
        progress=lambda done: progress("ann", done, len(vectors_ND)),
    )


def commit(
    out: Path,
    facts: Mapping[str, Any],
    segments: Sequence[str],
    deleted: Iterable[int],
    key: str,
    former: Mapping[str, Any] | None,
    progress: Progress,
) -> dict[str, Any]:
    """Make the collection of `segments` without the `deleted` rows the index at `out`; returns its facts.

    What depends on the whole collection (BM25's table, the map behind the encoder's) goes into a new folder, named by
    `key`. Raises UserError, and leaves nothing of its own behind, where no text holds a searchable word.
    """
    folders, made = [out / name for name in segments], [out / f"table-{key[:12]}"]
    store = DocumentStore(folders, deleted)
    live = _live(store)
    if (first := first_to_join(store.counts, [int(alive_N.sum()) for alive_N in live])) is not None:
        joined = out / f"segment-{key[12:24]}"
        _join_segments(joined, folders[first:], live[first:], facts, progress)
        made.append(joined)
        folders, live = [*folders[:first], joined], [*live[:first], np.ones(sum(map(np.sum, live[first:])), bool)]
        store = DocumentStore(folders, np.flatnonzero(~np.concatenate(live)).tolist())
    table = made[0]
    shutil.rmtree(table, ignore_errors=True)  # of the same change, stopped while it wrote it
    table.mkdir()
    np.save(table / DELETED, np.array(sorted(store.deleted), np.int64))
    if facts["dense"] and facts["dense"].get("whitened"):
        shutil.copytree((out / former["table"] if former else folders[0]) / MAP, table / MAP)
    postings = join([Postings.load(folder / POSTINGS) for folder in folders], live)
    if postings.terms or not holds_pictures(facts):  # pictures may do without captions; texts without words are refused
        try:
            write_table(table / TABLE, postings)
        except UserError as error:
            for folder in made:
                shutil.rmtree(folder)
            if former is None:
                raise
            raise UserError(
                f"what would be left holds no searchable word: the index is as it was; to be rid of it, remove {out}"
            ) from error
    named = [
        {"name": folder.name, "documents": int(alive_N.sum()), "deleted": int((~alive_N).sum())}
        for folder, alive_N in zip(folders, live, strict=True)
    ]
    found = {**facts, "documents": {**facts["documents"], "count": len(store)}, "segments": named, "table": table.name}
    found["bm25"] = {**facts["bm25"], "terms": len(postings.terms)}
    found.pop("files", None)
    manifest.commit(out, found, [*folders, table], former)
    return found


def holds_pictures(facts: Mapping[str, Any]) -> bool:
    """Whether the documents of an index with these `facts` are pictures."""
    return bool(facts["dense"]) and facts["dense"].get("reads") == "pictures"


def first_to_join(rows: Sequence[int], live: Sequence[int]) -> int | None:
    """The segment from which on all are worth joining into one, None for none.

    It is the first one at most twice as large as all after it, or with more than half of its rows deleted. So each
    segment is over twice what follows: a million documents added one at a time are never more than 20 segments, and
    each document is copied about as often.
    """
    for at in range(len(rows)):
        after = sum(live[at + 1 :])
        if (at + 1 < len(rows) and live[at] <= 2 * after) or 2 * live[at] < rows[at]:
            return at
    return None


def _live(store: DocumentStore) -> list[Bools]:
    """Which rows of each segment are left."""
    alive_N = np.ones(store.rows, bool)
    alive_N[list(store.deleted)] = False
    return np.split(alive_N, np.cumsum(store.counts)[:-1])


def _join_segments(
    folder: Path, parts: Sequence[Path], live: Sequence[Bools], facts: Mapping[str, Any], progress: Progress
) -> None:
    """Write the live documents of `parts` as one segment: copied, not encoded again; only the graph is built anew."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    DocumentStore(parts, np.flatnonzero(~np.concatenate(live)).tolist()).copy(folder)
    join([Postings.load(part / POSTINGS) for part in parts], live).save(folder / POSTINGS)
    if holds_pictures(facts):
        from sslnlp.search.thumbnails import Thumbnails

        Thumbnails(parts).copy(folder, live)
    if facts["dense"]:
        from sslnlp.search.dense import copy_vectors

        copy_vectors(folder / VECTORS, [np.load(part / VECTORS, mmap_mode="r") for part in parts], live)
        if facts["dense"]["ann"]:
            _write_graph(folder, progress)
