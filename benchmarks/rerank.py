"""What reranking adds to BM25: the first results of a known-item search, put in another order.

    python -m benchmarks.rerank PAIRS RERANKER ... [--query summary] [--document description] [--queries 300]

PAIRS is a .parquet or .jsonl file of queries and the one text each looks for, among all texts of the file. BM25 orders
them (bm25s defaults, English stop words and stemmer); each RERANKER orders the first `--depth` of its list anew and
leaves the rest. The first `--queries` rows are asked, and are the same for all. Recall@1 and MRR, and the difference to
BM25 with a 95 % bootstrap interval and the p of a paired randomisation test.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import datasets
from rich.console import Console
from rich.table import Table

from benchmarks.common import command, positive
from sslnlp.evaluation.baselines import bm25_ranking
from sslnlp.evaluation.ranking import Run, query_measures, ranked
from sslnlp.search.reranker import Reranker
from sslnlp.search.significance import compare

MEASURES = ("recall@1", "mrr")


def known_items(path: Path, query: str, document: str, number: int) -> tuple[dict[str, str], dict[str, str], Run]:
    """Texts by id, the first `number` queries by id, and which texts each is paired with."""
    kind = "parquet" if path.suffix == ".parquet" else "json"
    rows = datasets.load_dataset(kind, data_files=str(path), split="train")
    texts = {text: f"d{n}" for n, text in enumerate(dict.fromkeys(rows[document]))}
    asked = {text: f"q{n}" for n, text in enumerate(list(dict.fromkeys(rows[query]))[:number])}
    qrels: dict[str, dict[str, float]] = {name: {} for name in asked.values()}
    for row in rows:
        if row[query] in asked:
            qrels[asked[row[query]]][texts[row[document]]] = 1
    return {name: text for text, name in texts.items()}, {name: text for text, name in asked.items()}, qrels


def reranked(run: Run, reranker: Reranker, corpus: dict[str, str], queries: dict[str, str], depth: int) -> Run:
    """The first `depth` of each list by the reranker's scores, the others behind them in their order."""
    out = {}
    for query, scores in run.items():
        order = ranked(scores)
        head = order[:depth]
        new = reranker.score(queries[query], [corpus[document] for document in head]) if head else []
        best = dict(sorted(zip(head, map(float, new), strict=True), key=lambda item: -item[1]))
        out[query] = {document: -float(place) for place, document in enumerate([*best, *order[depth:]])}
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path)
    parser.add_argument("reranker", nargs="*")
    parser.add_argument("--query", default="summary")
    parser.add_argument("--document", default="description")
    parser.add_argument("--queries", type=positive, default=300)
    parser.add_argument("--depth", type=positive, default=50)
    options = parser.parse_args()
    corpus, queries, qrels = known_items(options.pairs, options.query, options.document, options.queries)
    first = bm25_ranking(corpus, queries)
    table = Table(title=f"{len(queries)} queries, {len(corpus)} texts, {options.depth} reranked; × 100")
    for title in ("", *MEASURES, *(f"{name} − BM25" for name in MEASURES), "ms/query"):
        table.add_column(title)
    baseline: dict[str, list[float]] = {}
    for name in (None, *options.reranker):
        began = time.perf_counter()
        run = first if name is None else reranked(first, Reranker.load(name), corpus, queries, options.depth)
        milliseconds = 1000 * (time.perf_counter() - began) / len(queries)
        found = [query_measures(judged, run.get(query, {}), MEASURES) for query, judged in qrels.items()]
        values = {measure: [figures[measure] for figures in found] for measure in MEASURES}
        cells = [f"{100 * sum(values[m]) / len(found):.1f}" for m in MEASURES]
        if name is None:
            baseline = values
            table.add_row("BM25", *cells, "", "", "")
            continue
        for measure in MEASURES:
            c = compare(values[measure], baseline[measure])
            cells.append(f"{100 * c.difference:+.1f} ({100 * c.low:+.1f} to {100 * c.high:+.1f}), p = {c.p:.3g}")
        table.add_row(name, *cells, f"{milliseconds:,.0f}")
    Console(width=150).print(table)


if __name__ == "__main__":
    command(main)
