"""How good rankings are on queries with judged documents, and whether they differ by more than luck."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from sslnlp.errors import UserError, suggest
from sslnlp.evaluation.ranking import MEASURES, mean_measures, parse_measure, query_measures
from sslnlp.search.index import Index
from sslnlp.search.significance import Comparison, compare, holm
from sslnlp.search.trec import Qrels, Run, read_qrels, read_queries, read_run
from sslnlp.text_files import COMPRESSED

RUN_DEPTH = 1000
"""Results kept per query, trec_eval's custom: MAP and recall@100 see the same list in every tool. A measure with a
larger cut-off asks for more."""
KNOWN_ITEM = ("recall@1", "recall@10", "mrr")
"""Measures where each query looks for one document: whether it comes first; MAP would be the reciprocal rank again."""


class Judged(NamedTuple):
    """Queries with their judgements, and what did not fit together."""

    queries: dict[str, str]
    """The text of each query; empty where none was read."""
    qrels: Qrels
    absent_documents: int
    """Relevant documents of the judgements that the index does not hold; they count as not found."""
    unjudged_queries: int
    """Queries without a relevant document: left out of every mean (trec_eval would count them as 0)."""
    absent_queries: int = 0
    """Judged queries whose text is not among the queries; left out of every mean."""


@dataclass(frozen=True)
class Evaluation:
    """Every system's measures on every query, and how the systems differ from the baseline."""

    measures: tuple[str, ...]
    values: dict[str, dict[str, dict[str, float]]]
    """System -> query -> measure -> value."""
    baseline: str | None
    """The system the others are held against; None when there is only one."""
    comparisons: dict[str, dict[str, Comparison]]
    """System -> measure -> its difference from the baseline; corrected for the number of systems."""

    def means(self) -> dict[str, dict[str, float]]:
        """System -> measure -> mean over queries."""
        return {system: mean_measures(by_query.values()) for system, by_query in self.values.items()}

    def as_json(self) -> dict[str, Any]:
        """All of it as plain objects: `means`, `comparisons` and `queries` (by system and query)."""
        compared = {
            system: {measure: asdict(found) for measure, found in by_measure.items()}
            for system, by_measure in self.comparisons.items()
        }
        return {
            "measures": list(self.measures),
            "means": self.means(),
            "baseline": self.baseline,
            "comparisons": compared,
            "queries": self.values,
        }


def beir_files(folder: str | Path) -> tuple[Path, Path]:
    """The queries (`beir_queries`) and the judgements of a BEIR folder (the test split, or the only one)."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"no BEIR folder at {folder}")
    splits = sorted((folder / "qrels").glob("*.tsv"))
    qrels = next((split for split in splits if split.name == "test.tsv"), splits[0] if len(splits) == 1 else None)
    if qrels is None:
        raise UserError(f"{folder} has no qrels/test.tsv: name the judgements with --qrels")
    return beir_queries(folder), qrels


def beir_queries(folder: Path) -> Path:
    """The file of queries of a BEIR folder, compressed where only that is there."""
    plain = folder / "queries.jsonl"
    compressed = [folder / f"{plain.name}{suffix}" for suffix in COMPRESSED]
    return next((path for path in (plain, *compressed) if path.is_file()), plain)


def run_depth(measures: Sequence[str] | None) -> int:
    """How many results of a query `measures` are of."""
    return max([RUN_DEPTH, *(cut for name in measures or () if (cut := parse_measure(name)[1]) is not None)])


def load_judged(index: Index | None, queries: str | Path | None, qrels: str | Path) -> Judged:
    """Read judgements, and queries where given, and hold them against each other and against the index.

    Raises UserError when no query is left that has a relevant document.
    """
    judgements = read_qrels(qrels)
    texts = dict.fromkeys(judgements, "") if queries is None else read_queries(queries)
    relevant = {query: {doc for doc, gain in found.items() if gain > 0} for query, found in judgements.items()}
    usable = {query: text for query, text in texts.items() if relevant.get(query)}
    if not usable:
        asked = "" if queries is None else f" of {queries}"
        raise UserError(f"no query{asked} has a relevant document in {qrels}: do their ids match?")
    known = {doc for query in usable for doc in relevant[query]} if index is None else set(index.documents.ids)
    absent = {doc for query in usable for doc in relevant[query]} - known
    judged = {query: judgements[query] for query in usable}
    textless = sum(bool(found) and query not in texts for query, found in relevant.items())
    return Judged(usable, judged, len(absent), len(texts) - len(usable), textless)


def run_queries(index: Index, queries: Mapping[str, str], mode: str, depth: int = RUN_DEPTH) -> Run:
    """The ranked documents of every query, best first."""
    rankings = index.rank(list(queries.values()), mode, depth)
    return {
        query: {hit.id: hit.score for hit in index.hits(ranking)}
        for query, ranking in zip(queries, rankings, strict=True)
    }


def read_runs(paths: Sequence[Path], qrels: Qrels, taken: Sequence[str] = ()) -> dict[str, Run]:
    """TREC runs by the names of their files (by their paths, where a name is taken).

    Raises UserError for a run that comes twice, and for one that answers none of the judged queries: as a row of zeros
    it would pass for a bad system.
    """
    runs: dict[str, Run] = {}
    for path in paths:
        name = path.name if path.name not in (*taken, *runs) else str(path)
        if name in (*taken, *runs):
            raise UserError(f"the run {path} is given twice")
        runs[name] = read_run(path)
        if not runs[name].keys() & qrels.keys():
            raise UserError(f"no query of the run {path} is among the judged ones: do their ids match?")
    return runs


def evaluate_runs(
    runs: Mapping[str, Run],
    qrels: Qrels,
    *,
    measures: Sequence[str] | None = None,
    baseline: str | None = None,
) -> Evaluation:
    """Measure named runs, and compare each with `baseline` (default: `bm25` where there is one, else the first).

    `measures` are named as in `sslnlp.evaluation.ranking`; the default is nDCG@10, MRR@10, recall@100 and MAP, or
    `KNOWN_ITEM` where every query has one relevant document. Queries in `qrels` without a relevant document are left
    out, queries that a run does not answer count as 0. The p-values of a measure are corrected for the number of
    systems held against the baseline (Holm); nothing is corrected for the number of measures, so choose the one that
    decides before looking.
    """
    baseline = resolve_baseline(baseline, list(runs))
    if measures is None:
        single = all(sum(grade > 0 for grade in judged.values()) == 1 for judged in qrels.values())
        measures = KNOWN_ITEM if single else MEASURES
    # In the order of their ids, so that the draws of a test do not depend on the order of a file.
    judged = {query: qrels[query] for query in sorted(qrels) if any(grade > 0 for grade in qrels[query].values())}
    values = {
        system: {query: query_measures(found, run.get(query, {}), measures) for query, found in judged.items()}
        for system, run in runs.items()
    }
    if len(runs) < 2:
        return Evaluation(tuple(measures), values, None, {})
    others = [system for system in runs if system != baseline]
    comparisons: dict[str, dict[str, Comparison]] = {system: {} for system in others}
    for measure in measures:
        column = {system: [figures[measure] for figures in by_query.values()] for system, by_query in values.items()}
        found = [compare(column[system], column[baseline]) for system in others]
        for system, one, p in zip(others, found, holm([one.p for one in found]), strict=True):
            comparisons[system][measure] = replace(one, p_holm=p)
    return Evaluation(tuple(measures), values, baseline, comparisons)


def resolve_baseline(baseline: str | None, systems: Sequence[str]) -> str:
    """`baseline` checked, or the default: `bm25` where it is among the systems, else the first."""
    if baseline is None:
        return "bm25" if "bm25" in systems else systems[0]
    if baseline not in systems:
        raise UserError(f"no system is called {baseline!r} here.{suggest(baseline, systems)}")
    return baseline


def parse_measures(text: str) -> tuple[str, ...]:
    """`ndcg@10, recall@1` (commas or blanks between) as a tuple, each known, none twice."""
    names = tuple(dict.fromkeys(text.replace(",", " ").split()))
    if not names:
        raise UserError(f"no measure in {text!r}; an example: ndcg@10,mrr,recall@1")
    for name in names:
        parse_measure(name)
    return names


def modes_of(index: Index, mode: str) -> Sequence[str]:
    """`all` spelled out, or the one mode, checked."""
    return index.modes if mode == "all" else [index.resolve_mode(mode)]
