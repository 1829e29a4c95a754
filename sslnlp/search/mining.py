"""Hard negatives for a ranker: documents that a search puts high for a query and that are not what it asks for.

The search is that of an index (BM25, dense, both fused), the documents are the positives of the pairs or a corpus of
their own. What is left out: whatever the pairs call relevant to the query, the query's own text, near-copies of the
positive, and what scores too near to the positive (NV-Retriever's TopK-PercPos; Moreira et al., 2024,
arXiv:2407.15831), judged by the search or by a cross-encoder (RocketQA's denoising; Qu et al., 2021, arXiv:2010.08191).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sslnlp.arrays import Ints
from sslnlp.data.config import OptionData
from sslnlp.data.hashes import Hashes, hash_same
from sslnlp.data.paired import paired
from sslnlp.data.stream import in_runs
from sslnlp.data.table_rows import TableRows, set_of
from sslnlp.errors import UserError
from sslnlp.locks import exclusive
from sslnlp.search.documents import Columns, data_fingerprint, read_documents
from sslnlp.search.index import Index, build_index, load_reranker
from sslnlp.search.loading import reads_pictures
from sslnlp.search.negatives import Known, Miner, Mining, Retriever
from sslnlp.search.sources import Progress
from sslnlp.writing import check_output, naming, room_in

_BLOCK = 256
SIDES = ("query", "positive")
_OPTIONS = {f"columns.{side}": f"--{side}-column" for side in SIDES}


class Mined(NamedTuple):
    """What `mine` did."""

    read: int
    """Rows of the file."""
    pairs: int
    """Of those, the ones with both texts, repeats taken out."""
    asked: int
    """Of those, the ones that negatives were looked for: `limit` of them."""
    written: int
    """Pairs with their negatives; for the others asked the whole corpus held too few."""
    documents: int
    """Documents that negatives came from."""
    counts: dict[str, int]
    """Candidates left out as `relevant`, `copies`, `margin` (those that came before the last one taken), and negatives
    `filled` up at random."""


def mine(
    pairs: str | Path,
    out: str | Path,
    *,
    model: str | None = None,
    bm25: bool = True,
    reranker: str | None = None,
    options: Mining = Mining(),  # noqa: B008 (immutable)
    language: str = "english",
    corpus: str | Path | None = None,
    columns: Mapping[str, str] | None = None,
    limit: int | None = None,
    corpus_limit: int | None = None,
    corpus_columns: Columns = Columns(),  # noqa: B008 (immutable)
    batch_size: int = 32,
    block: int = _BLOCK,
    progress: Progress = lambda stage, done, total: None,
) -> Mined:
    """Write `out` (JSON lines: query, positive, negatives, and with a `reranker` its scores, the positive's first).

    `pairs` is what `data.paired` reads, `columns` names its columns. Documents are the distinct positives, or those of
    `corpus` (what `sslnlp search index` reads); they are ranked by `bm25`, by `model` (an encoder), or by both, fused.
    The score that `options.margin` judges is that of BM25, the cosine where there is a model, and the reranker's where
    there is one: its scores are logits, so there a share is one of the odds, exp(score - positive's). A pair that has
    too few negatives within `options.depth` is filled up with documents drawn at random, which no margin judges. With a
    `limit` only so many pairs get negatives, as they would without it: those whose queries have the smallest hashes,
    which training holds out first. With a `corpus_limit` they come from so many documents, those of the smallest
    hashes (and from the positives of the pairs that get some, where there is no corpus).

    The same input gives the same file, whatever the `block` of queries in memory at once. Killed or interrupted, the
    same call does not index anew what it had indexed. Raises UserError, and leaves
    `out` as it was, for what cannot be read or loaded and for fewer documents than negatives.
    """
    out = Path(out)
    if out.suffix != ".jsonl":
        raise UserError(f"the mined pairs are JSON lines: name a file that ends in .jsonl, not {out}")
    check_output(out, pairs, corpus)
    if model is None and not bm25:
        raise UserError("there is nothing to search by: name an encoder, or search by BM25")
    if model is not None and reads_pictures(model):
        raise UserError(f"{model} finds pictures: the negatives of texts are mined by an encoder of texts")
    judge = load_reranker(reranker) if reranker is not None else None  # before the long work, not after it
    with _workshop(out) as folder:
        asked = OptionData(train=str(pairs), columns=dict(columns or {}), valid_fraction=0, options=_OPTIONS)
        table = paired(asked, cache_dir=folder / "tables")
        rows = table.train
        query, positive = _read_hashes(rows, block)
        chosen = _chosen(query, limit)
        given = _Corpus(corpus, corpus_columns, positive, block) if corpus is not None else None
        hashes, number = _write_corpus(folder / "corpus.jsonl", rows, positive, chosen, given, corpus_limit, block)
        if number <= options.negatives:
            raise UserError(
                f"{corpus or pairs} holds {number} different documents: too few for {options.negatives} negatives "
                "beside a positive; ask for fewer, or name a larger --corpus"
            )
        known = Known(query, positive, hashes)
        index = _indexed(folder, model, language, batch_size, progress)
        retriever = Retriever(index, dense=model is not None, bm25=bm25, depth=options.depth, batch_size=batch_size)
        miner = Miner(retriever, known, number, options, judge, batch_size=batch_size)
        written = _write(folder / out.name, _mined(miner, rows.take(chosen), chosen, block, progress))
        os.replace(folder / out.name, out)
    return Mined(table.facts["read"], len(rows), len(chosen), written, number, miner.counts)


@contextlib.contextmanager
def _workshop(out: Path) -> Iterator[Path]:
    """A folder beside `out`, gone at the end. One that is killed or interrupted leaves what it has indexed, which is
    there at the beginning of the next; so does a failing disk.

    Raises `Held` when another process mines into `out`: the two would work in one folder.
    """
    folder = out.with_name(f".{out.name}.unfinished")
    with naming(out), room_in(out.parent):
        out.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(out.with_name(f".{out.name}.lock"), f"mining into {out}"):
            folder.mkdir(exist_ok=True)
            try:
                yield folder
            except Exception as error:
                if not isinstance(error.__cause__ or error, OSError):
                    shutil.rmtree(folder, ignore_errors=True)
                raise
            shutil.rmtree(folder, ignore_errors=True)


def _indexed(folder: Path, model: str | None, language: str, batch_size: int, progress: Progress) -> Index:
    """The index of the corpus in `folder`: as a killed run has left it, or gone on with, or made."""
    corpus = folder / "corpus.jsonl"
    place = folder / f"index-{data_fingerprint(corpus)[:24]}"
    for other in folder.glob("index-*"):
        if other != place:
            shutil.rmtree(other)
    with contextlib.suppress(UserError):  # it is not finished, or its vectors are of another model
        found = Index(place, model=model, verify=False)
        if found.facts["bm25"]["language"] == language and (model is None or found.encoder):
            return found
    build_index(corpus, place, model=model, language=language, batch_size=batch_size, progress=progress)
    return Index(place, verify=False)


def _read_hashes(rows: TableRows, block: int) -> tuple[Hashes, Hashes]:
    """Of the queries and of the positives."""
    parts = [[hash_same([row[side] for row in some]) for side in SIDES] for some in in_runs(rows, block)]
    query, positive = (np.concatenate(side) for side in zip(*parts, strict=True))
    return query, positive


class _Corpus(NamedTuple):
    """Documents that are not the pairs' own."""

    path: str | Path
    columns: Columns
    positive: Hashes
    """Of all pairs."""
    block: int

    def runs(self) -> Iterator[tuple[list[str], Hashes]]:
        """Some documents at a time, and their hashes."""
        positives = set_of(self.positive)
        documents = (document for document in read_documents(self.path, self.columns) if document.content)
        while found := list(islice(documents, self.block)):
            texts = [document.content for document in found]
            whole, untitled = hash_same(texts), hash_same([document.text for document in found])
            # A pair may hold the text of a document without its title: that is the same document.
            yield texts, np.where(positives.contains(untitled) & ~positives.contains(whole), untitled, whole)


def _write_corpus(
    path: Path,
    rows: TableRows,
    positive: Hashes,
    chosen: Ints,
    corpus: _Corpus | None,
    limit: int | None,
    block: int,
) -> tuple[Hashes, int]:
    """Write the different documents, and behind those of a corpus the positives that are not among them: those are
    ranked and scored, but nobody's negatives. `positive` are the hashes of all positives, `chosen` the rows that get
    negatives, whose positives have to be there. Returns every document's hash, and how many may be negatives."""
    bound = np.uint64(2**64 - 1)
    if limit is not None:
        known = np.unique(positive if corpus is None else np.concatenate([keys for _, keys in corpus.runs()]))
        bound = known[min(limit, len(known)) - 1]
    hashes: dict[int, None] = {}

    def add(texts: Sequence[str], keys: Hashes) -> None:
        for text, key in zip(texts, keys.tolist(), strict=True):
            if key not in hashes:
                file.write(json.dumps({"id": str(len(hashes)), "text": text}) + "\n")
                hashes[key] = None

    with open(path, "w", encoding="ascii") as file:
        for texts, keys in corpus.runs() if corpus is not None else ():
            few = np.flatnonzero(keys <= bound)
            add([texts[at] for at in few], keys[few])
        given = len(hashes)
        wanted = positive <= bound
        wanted[chosen] = True
        for some in in_runs(rows.take(np.flatnonzero(wanted)), block):
            texts = [row["positive"] for row in some]
            add(texts, hash_same(texts))
    return np.fromiter(hashes, np.uint64, len(hashes)), given if corpus is not None else len(hashes)


def _chosen(query: Hashes, limit: int | None) -> Ints:
    """The rows that get negatives, in their order."""
    if limit is None or limit >= len(query):
        return np.arange(len(query))
    return np.sort(np.argsort(query, kind="stable")[:limit])


def _mined(miner: Miner, rows: TableRows, numbers: Ints, block: int, progress: Progress) -> Iterator[dict[str, Any]]:
    """`numbers` are those of the rows among all, by which a row's draws are the same under any limit."""
    start = 0
    for some in in_runs(rows, block):
        yield from miner.mined(some, numbers[start : start + len(some)].tolist())
        progress("mine", len(some), len(rows))
        start += len(some)


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    number = 0
    with open(path, "w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            number += 1
        file.flush()
        os.fsync(file.fileno())
    if not number:
        raise UserError("no pair has enough documents that are neither relevant to it nor copies: ask for fewer")
    return number
