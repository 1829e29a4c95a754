"""Search collections in the BEIR folder layout, and how well a text embedder ranks them.

A folder holds `corpus.jsonl` (_id, title, text), `queries.jsonl` (_id, text) and `qrels/<split>.tsv` (query-id,
corpus-id, score). See Thakur et al., 2021, arXiv:2104.08663.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sslnlp.arrays import Vectors
from sslnlp.errors import UserError
from sslnlp.evaluation.ranking import mean_measures, nearest, query_measures
from sslnlp.nn import evaluating
from sslnlp.types import Encoding

Encoder = Callable[[list[str]], Vectors]


@dataclass(frozen=True, kw_only=True)
class Beir:
    """A search collection: documents (title and text joined), queries that are judged, and their judgements."""

    corpus: dict[str, str]
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]
    """Also of documents that the corpus lacks: nobody can find them, recall says so."""


def load_beir(folder: str | Path, split: str = "test") -> Beir:
    """Read a BEIR folder; `UserError` names the file, line or column that is missing or malformed."""
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"no folder {root}; a BEIR folder holds corpus.jsonl, queries.jsonl and qrels/{split}.tsv")
    documents = _by_id(root / "corpus.jsonl")
    corpus = {name: f"{row.get('title') or ''} {row['text']}".strip() for name, row in documents.items()}
    queries = {name: row["text"] for name, row in _by_id(root / "queries.jsonl").items()}
    qrels = _qrels(root / "qrels" / f"{split}.tsv")
    known = {query: judged for query, judged in qrels.items() if query in queries}
    if not known:
        raise UserError(f"no query id of {root / 'qrels' / f'{split}.tsv'} is in {root / 'queries.jsonl'}")
    if not any(grade > 0 for judged in known.values() for grade in judged.values()):
        raise UserError(f"{root}: no query has a relevant document (a score above 0 in qrels/{split}.tsv)")
    return Beir(corpus=corpus, queries={query: queries[query] for query in known}, qrels=known)


def _open(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines that are not blank."""
    if not path.is_file():
        raise UserError(f"no file {path}; a BEIR folder holds corpus.jsonl, queries.jsonl and qrels/<split>.tsv")
    try:
        with path.open(encoding="utf-8-sig") as file:
            yield from ((number, line) for number, line in enumerate(file, 1) if line.strip())
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from None


def _by_id(path: Path) -> dict[str, dict[str, Any]]:
    """The rows by their `_id`. One that comes twice is refused: a judgement of it would mean both."""
    rows: dict[str, dict[str, Any]] = {}
    for number, line in _open(path):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {number}: not JSON ({error.msg})") from None
        for column in ("_id", "text"):
            if not isinstance(row, dict) or not isinstance(row.get(column), str):
                raise UserError(f"{path}, line {number}: no text in column {column!r}")
        if rows.setdefault(row["_id"], row) is not row:
            raise UserError(f"{path}, line {number}: the id {row['_id']!r} comes twice")
    if not rows:
        raise UserError(f"{path} is empty")
    return rows


def _qrels(path: Path) -> dict[str, dict[str, int]]:
    qrels: dict[str, dict[str, int]] = {}
    for number, line in _open(path):
        fields = line.rstrip("\r\n").split("\t")
        if number == 1 and fields[0] == "query-id":
            continue
        try:
            query, document, grade = fields
            known = qrels.setdefault(query, {}).setdefault(document, int(grade))
        except ValueError:
            raise UserError(
                f"{path}, line {number}: expected query-id, corpus-id and a whole-number score between tabs"
            ) from None
        if known != int(grade):
            raise UserError(f"{path}, line {number}: {document!r} is judged another way for {query!r} than before")
    if not qrels:
        raise UserError(f"{path} holds no judgements")
    return qrels


def evaluate_queries(
    encode: Encoder, beir: Beir, *, encode_queries: Encoder | None = None, depth: int = 1000
) -> list[dict[str, float]]:
    """`query_measures` of each query: `ndcg@10`, `mrr@10`, `recall@100`, `map` of ranking the corpus by the dot product
    of vectors, `depth` deep. Queries without a relevant document are left out.

    `encode` maps texts to vectors [N, H]; queries go through `encode_queries` where they are encoded otherwise.
    Exact search: all document vectors are held in memory at 4 x H bytes each.
    """
    document_DH = encode(list(beir.corpus.values()))
    query_QH = (encode_queries or encode)(list(beir.queries.values()))
    found = nearest(query_QH, document_DH, list(beir.corpus), depth)
    measured = (query_measures(beir.qrels[query], scores) for query, scores in zip(beir.queries, found, strict=True))
    return [figures for figures in measured if figures]


def evaluate_embedder(
    encode: Encoder, beir: Beir, *, encode_queries: Encoder | None = None, depth: int = 1000
) -> dict[str, float]:
    """The means of `evaluate_queries`. Raises `UserError` when no query has a relevant document."""
    return mean_measures(evaluate_queries(encode, beir, encode_queries=encode_queries, depth=depth))


def encode_sorted(
    embed: Callable[[Encoding], Tensor],
    tokenize: Callable[[Sequence[str]], Encoding],
    texts: Sequence[str],
    *,
    batch_size: int,
    device: torch.device | str,
) -> Vectors:
    """Vectors of texts in their own order, computed longest first: little padding, and no late surprise of memory."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]), reverse=True)
    parts = []
    with torch.no_grad():
        for start in range(0, len(order), batch_size):
            encoding = tokenize([texts[i] for i in order[start : start + batch_size]])
            parts.append(embed({name: value.to(device) for name, value in encoding.items()}).float().cpu())
    vectors = torch.cat(parts) if parts else torch.zeros(0, 0)
    out = torch.empty_like(vectors)
    out[torch.tensor(order, dtype=torch.int64)] = vectors
    return out.numpy()


class _Embedder(Protocol):
    """An objective whose model is an embedder (`pooling` is set)."""

    model: PreTrainedModel

    def embed(self, encoding: Encoding) -> Tensor: ...


class _TwoSided(Protocol):
    """A collator that encodes queries and documents each in their way."""

    def encode_queries(self, texts: Sequence[str]) -> Encoding: ...

    def encode_documents(self, texts: Sequence[str]) -> Encoding: ...


def beir_measures(
    objective: _Embedder, collator: _TwoSided, folder: str | Path, *, batch_size: int = 32
) -> dict[str, float]:
    """Measures of the model as it stands on a BEIR folder, named `beir_ndcg@10` and so on, prefixes and lengths as
    in training."""
    device = objective.model.device
    with evaluating(objective.model):
        figures = evaluate_embedder(
            partial(encode_sorted, objective.embed, collator.encode_documents, batch_size=batch_size, device=device),
            load_beir(folder),
            encode_queries=partial(
                encode_sorted, objective.embed, collator.encode_queries, batch_size=batch_size, device=device
            ),
        )
    return {f"beir_{name}": value for name, value in figures.items()}
