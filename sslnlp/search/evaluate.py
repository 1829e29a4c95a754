"""How good a ranking is, for every mode of an index, on queries with judged documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from sslnlp.errors import UserError
from sslnlp.search.index import Index
from sslnlp.search.trec import Qrels, Run, read_qrels, read_queries

RUN_DEPTH = 1000
"""Results kept per query, trec_eval's custom: MAP and recall@100 see the same list in every tool."""


class Judged(NamedTuple):
    """Queries with their judgements, and what did not fit together."""

    queries: dict[str, str]
    qrels: Qrels
    absent_documents: int
    """Relevant documents of the judgements that the index does not hold; they count as not found."""
    unjudged_queries: int
    """Queries without a relevant document; trec_eval leaves them out of every mean, and so do we."""


def beir_files(folder: str | Path) -> tuple[Path, Path]:
    """The queries and the judgements of a BEIR folder (the test split, or the only one)."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"No BEIR folder at {folder}.")
    splits = sorted((folder / "qrels").glob("*.tsv"))
    qrels = next((split for split in splits if split.name == "test.tsv"), splits[0] if len(splits) == 1 else None)
    if qrels is None:
        raise UserError(f"{folder} has no qrels/test.tsv: name the judgements with --qrels.")
    return folder / "queries.jsonl", qrels


def load_judged(index: Index, queries: str | Path, qrels: str | Path) -> Judged:
    """Read queries and judgements and hold them against each other and against the index.

    Raises UserError when no query is left that has a relevant document.
    """
    texts, judgements = read_queries(queries), read_qrels(qrels)
    relevant = {query: {doc for doc, gain in found.items() if gain > 0} for query, found in judgements.items()}
    usable = {query: text for query, text in texts.items() if relevant.get(query)}
    if not usable:
        raise UserError(f"No query of {queries} has a relevant document in {qrels}: do their ids match?")
    known = set(index.documents.ids)
    absent = {doc for query in usable for doc in relevant[query]} - known
    return Judged(usable, {query: judgements[query] for query in usable}, len(absent), len(texts) - len(usable))


def run_queries(index: Index, queries: Mapping[str, str], mode: str, depth: int = RUN_DEPTH) -> Run:
    """The ranked documents of every query, best first."""
    rankings = index.rank(list(queries.values()), mode, depth)
    return {
        query: {hit.id: hit.score for hit in index.hits(ranking)}
        for query, ranking in zip(queries, rankings, strict=True)
    }


def evaluate_runs(runs: Mapping[str, Run], qrels: Qrels) -> dict[str, dict[str, float]]:
    """Measures per named run: nDCG@10, MRR@10, recall@100, MAP (definitions in `sslnlp.evaluation.ranking`)."""
    from sslnlp.evaluation.ranking import ranking_measures

    return {name: ranking_measures(qrels, run) for name, run in runs.items()}


def modes_of(index: Index, mode: str) -> Sequence[str]:
    """`all` spelled out, or the one mode, checked."""
    return index.modes if mode == "all" else [index.resolve_mode(mode)]
