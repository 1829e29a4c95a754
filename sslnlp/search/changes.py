"""What changes an index: building it, adding documents, deleting some. Each is one commit, whole or not at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sslnlp.errors import UserError, suggest
from sslnlp.search import manifest, segments
from sslnlp.search.analysis import Analyzer
from sslnlp.search.documents import Columns, check_documents
from sslnlp.search.loading import load_encoder, load_reranker, same_encoder
from sslnlp.search.resume import Say, kept_unless_wrong, take_up
from sslnlp.search.sources import Progress, Source, open_source, read
from sslnlp.search.store import DocumentStore
from sslnlp.writing import sha256_of


class Added(NamedTuple):
    """What `add_documents` did."""

    documents: int
    replaced: int
    """How many of the documents took the place of one with the same id."""
    empty: int
    """Documents without text, left out."""
    broken: dict[str, int]
    """Reason -> pictures that cannot be read for it, left out."""


def build_index(
    data: str | Path,
    out: str | Path,
    *,
    model: str | None = None,
    reranker: str | None = None,
    ann: bool = False,
    language: str = "english",
    dtype: str = "float16",
    whiten: bool | None = None,
    batch_size: int = 32,
    columns: Columns = Columns(),  # noqa: B008 (immutable)
    progress: Progress = lambda stage, done, total: None,
    say: Say = lambda line: None,
) -> dict[str, Any]:
    """Index the documents at `data` into the folder `out` (an index already there is replaced, at the very end).

    BM25 always; with `model` (an encoder folder or hub name) also vectors of `dtype` float16 or float32, and with `ann`
    a graph for approximate search over them. Where it is a dual encoder `data` are pictures, their captions the text.
    `whiten`: whether a map fitted to the documents takes out of the vectors what all share (`search.whitening`); None:
    where the model does not say how its vectors are made, and these lie beside each other.
    `reranker` is remembered for the mode `reranked`. Returns the facts kept in the index. Killed or interrupted, the
    same call goes on where it was. Raises UserError and leaves `out` as it was for anything unreadable, an empty
    corpus, duplicate ids, or a model that cannot be loaded.
    """
    if dtype not in ("float16", "float32"):
        raise UserError(f"unknown vector type {dtype!r}.{suggest(dtype, ('float16', 'float32'))}")
    out, _ = Path(out), Analyzer(language)
    # Models are loaded before the long work, not after it.
    facts: dict[str, Any] = {"bm25": {"language": language}, "dense": None, "reranker": None}
    encoder = load_encoder(model) if model is not None else None
    if ann:
        _require_ann(encoder is not None)
    if encoder is not None:
        if whiten and encoder.reads != "texts":
            raise UserError("--whiten is for vectors of texts, and this model reads pictures: leave it out")
        made_by = {"model": encoder.name, "fingerprint": encoder.fingerprint, "dimension": encoder.dimension}
        facts["dense"] = {**made_by, "reads": encoder.reads, "described": encoder.described, "dtype": dtype, "ann": ann}
    elif whiten:
        raise UserError("--whiten is for vectors: give --model with it")
    if reranker is not None:
        loaded = load_reranker(reranker)
        facts["reranker"] = {"model": loaded.name, "fingerprint": loaded.fingerprint}
    with manifest.writing(out):
        source = open_source(data, columns, encoder)
        if reranker is not None and not source.captioned:
            raise UserError(f"a reranker reads words, and no picture at {data} has a caption: leave --reranker out")
        if (before := manifest.documents_in(out)) is not None:
            say(f"The index of {before:,} documents that is at {out} will be replaced, at the end.")
        key = _key(out, "index", source, columns, {**facts, "reranker": None, "whiten": whiten})
        work = take_up(out, key, say)
        with kept_unless_wrong(work):
            facts["documents"] = read(work, source, progress, say)
            if encoder is not None:
                from sslnlp.search.whitening import fit_once

                encoder = fit_once(work, encoder, whiten, batch_size, progress)
                facts["dense"]["whitened"] = work.done["whitened"]
            segments.fill(work, facts, source, encoder, batch_size, progress)
            return segments.commit(out, facts, [work.folder.name], (), key, None, progress)


def add_documents(
    index: str | Path,
    data: str | Path,
    *,
    model: str | None = None,
    replace: bool = False,
    batch_size: int = 32,
    columns: Columns = Columns(),  # noqa: B008 (immutable)
    progress: Progress = lambda stage, done, total: None,
    say: Say = lambda line: None,
) -> Added:
    """Add the documents at `data` to an index; only they are read, counted and encoded.

    Afterwards the index ranks as one built from all its documents at once, the new ones last (but that a whitened one
    keeps the map of the documents it was made of). `model` says where the index's encoder is, if it moved. Documents
    whose id the index holds already replace those with `replace`. Raises UserError and leaves the index as it was when
    there is none, for such ids without `replace`, for another model than the index's, and for whatever `build_index`
    refuses.
    """
    index = Path(index)
    manifest.read(index, verify=False)  # an index, or an error that says so, before anything is written
    with manifest.writing(index):
        facts = manifest.read(index)
        if model is not None and not facts["dense"]:
            raise UserError(f"the index at {index} has no vectors, so --model has no use: leave it out")
        if model is None and not segments.holds_pictures(facts):
            check_documents(data, columns)  # before torch is imported, for the model that reads them
        encoder = same_encoder(index, facts, model) if facts["dense"] else None
        if facts["dense"] and facts["dense"]["ann"]:
            _require_ann(True)
        source = open_source(data, columns, encoder)
        key = _key(index, "add", source, columns, replace)
        work = take_up(index, key, say)
        with kept_unless_wrong(work):
            new = read(work, source, progress, say)
            old = _store(index, facts)
            replaced = _doubled(old, DocumentStore([work.folder]).ids, replace)
            segments.fill(work, facts, source, encoder, batch_size, progress)
            former = facts["documents"]
            former["empty"] += new["empty"]
            if "broken" in new:
                former["broken"] = dict(Counter(former["broken"]) + Counter(new["broken"]))
            names = [*(segment["name"] for segment in facts["segments"]), work.folder.name]
            segments.commit(index, facts, names, [*old.deleted, *replaced], key, facts, progress)
    return Added(new["count"], len(replaced), new["empty"], new.get("broken", {}))


def delete_documents(index: str | Path, ids: Iterable[str]) -> int:
    """Take the documents with these ids out of an index; returns how many that were.

    Afterwards it ranks as one built from the documents that are left (but that a whitened one keeps its map). Raises
    UserError and changes nothing for an id that the index does not hold, and when no document would be left.
    """
    index, wanted = Path(index), list(dict.fromkeys(ids))
    manifest.read(index, verify=False)
    if not wanted:
        raise UserError("no ids to delete: name at least one")
    with manifest.writing(index):
        facts = manifest.read(index)
        store = _store(index, facts)
        rows = store.row_of
        if unknown := [name for name in wanted if name not in rows]:
            raise UserError(
                f"{len(unknown):,} of {len(wanted):,} ids are not in the index, {unknown[0]!r} among them: "
                "nothing was deleted"
            )
        if len(wanted) == len(store):
            raise UserError(f"no document would be left; to be rid of the index, remove the folder {index}")
        deleted = [*store.deleted, *(rows[name] for name in wanted)]
        key = manifest.digest_of(["delete", sha256_of(index / manifest.NAME), sorted(wanted)])
        names = [segment["name"] for segment in facts["segments"]]
        segments.commit(index, facts, names, deleted, key, facts, lambda stage, done, total: None)
    return len(wanted)


def _key(out: Path, kind: str, source: Source, columns: Columns, facts: Any) -> str:
    """What a resumed run must share with the one that was killed, as one SHA-256."""
    former = sha256_of(out / manifest.NAME) if (out / manifest.NAME).is_file() else ""
    return manifest.digest_of([manifest.FORMAT, kind, former, source.fingerprint(), columns, facts])


def _store(index: Path, facts: dict[str, Any]) -> DocumentStore:
    deleted = np.load(index / facts["table"] / segments.DELETED)
    return DocumentStore([index / segment["name"] for segment in facts["segments"]], deleted.tolist())


def _doubled(old: DocumentStore, ids: list[str], replace: bool) -> list[int]:
    """The rows of `old` whose id is among the new ones."""
    rows = old.row_of
    doubled = [name for name in ids if name in rows]
    if doubled and not replace:
        # Rows without an id are numbered from 0 in every file, so other documents have the same numbers.
        numbered = doubled[0].isdigit()
        hint = " (a row without an id is called by its number: give other documents ids)" if numbered else ""
        raise UserError(
            f"{len(doubled):,} of {len(ids):,} ids are in the index already, {doubled[0]!r} among them: "
            f"--replace puts the new documents in their place{hint}"
        )
    return [rows[name] for name in doubled]


def _require_ann(vectors: bool) -> None:
    from sslnlp.search.ann import require_ann

    if not vectors:
        raise UserError("approximate search is over vectors: give --model with --ann")
    require_ann()
