"""How good search is: BM25, vectors and both fused (and reranked), with significance against BM25.

    python -m benchmarks.search_quality DATA --model ENCODER --work FOLDER [--only NAME ...] [--out DIR]
        [--reranker R] [--depth 100] [--rerank-weight 1] [--fusion scores|ranks]
    python -m benchmarks.search_quality --alarms

DATA holds cranfield/ and npl/ (BEIR folders) and medquad/ and debian-pairs/ (test.parquet). The latter two are searches
for known items: a question looks for its answer, a summary for its description, among all of the test split. FOLDER
keeps the indexes, so a second run only queries. `--out` takes every query's figures as JSON.

`--alarms` needs no data: how often the tests call two rankers different that are equally good (p < 0.05, in 10,000
draws of 50 queries each), and how often they find a ranker that is better.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from rich.console import Console
from scipy.stats import ttest_rel

from benchmarks.common import command
from sslnlp.search.defaults import RERANK_DEPTH, RERANK_WEIGHT
from sslnlp.search.evaluate import beir_files, evaluate_runs, load_judged, run_queries
from sslnlp.search.evaluate_cli import print_evaluation
from sslnlp.search.index import FUSIONS, Index, build_index
from sslnlp.search.significance import randomisation_p
from sslnlp.writing import write_json

PAIRS = {"medquad": ("question", "answer"), "debian-pairs": ("summary", "description")}
COLLECTIONS = ("cranfield", "npl", *PAIRS)


def known_items(table: Path, folder: Path, query: str, document: str) -> Path:
    """A BEIR folder of pairs: each row is a query that looks for its own document; equal documents are one."""
    rows = pq.read_table(table, columns=[query, document]).to_pylist()
    documents = {text: f"d{at}" for at, text in enumerate(dict.fromkeys(row[document] for row in rows))}
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    corpus = [{"_id": key, "text": text} for text, key in documents.items()]
    queries = [{"_id": f"q{at}", "text": row[query]} for at, row in enumerate(rows)]
    for name, lines in (("corpus.jsonl", corpus), ("queries.jsonl", queries)):
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    judged = [f"q{at}\t{documents[row[document]]}\t1" for at, row in enumerate(rows)]
    (folder / "qrels" / "test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *judged]) + "\n")
    return folder


def measure(name: str, options: argparse.Namespace) -> None:
    """Print one collection's tables."""
    folder, place = options.data / name, options.work / f"{name}.index"
    if name in PAIRS:
        folder = known_items(folder / "test.parquet", options.work / f"{name}.beir", *PAIRS[name])
    if not (place / "index.json").is_file():
        build_index(folder, place, model=options.model)
    index = Index(
        place,
        model=options.model,
        reranker=options.reranker,
        depth=options.depth,
        rerank_weight=options.rerank_weight,
        fusion=options.fusion,
    )
    judged = load_judged(index, *beir_files(folder))
    runs = {mode: run_queries(index, judged.queries, mode) for mode in index.modes}
    evaluation = evaluate_runs(runs, judged.qrels)
    Console().print(f"\n[bold]{name}[/bold]: {len(index.documents):,} documents")
    print_evaluation(evaluation, len(judged.queries))
    if options.out is not None:
        write_json(options.out / f"{name}.json", evaluation.as_json())


def alarms(draws: int = 10_000, queries: int = 50) -> None:
    """Reciprocal ranks of two rankers: a query is as hard for both; where its document stands is drawn for each."""
    generator = np.random.default_rng(0)
    found = generator.geometric(generator.beta(1, 2, (draws, queries, 1)), (draws, queries, 2))
    first, second = 1 / found[..., 0], 1 / found[..., 1]
    # Equal on the whole, in another way: a gain of 0.3 on a quarter of the queries, a loss of 0.1 on the others.
    skewed = np.where(generator.random((draws, queries)) < 0.25, 0.3, -0.1) + generator.normal(
        0, 0.05, (draws, queries)
    )
    better = np.where(generator.random((draws, queries)) < 0.3, np.minimum(1, 2 * first), second)
    for name, a, b in (
        ("equal, the same by kind", first, second),
        ("equal, seldom much better and often a little worse", skewed, np.zeros_like(skewed)),
        ("better on three queries of ten", better, second),
    ):
        p_values = [
            randomisation_p(x - y, permutations=1000, seed=at) for at, (x, y) in enumerate(zip(a, b, strict=True))
        ]
        by_signs = np.mean(np.array(p_values) < 0.05)
        by_t = np.mean(ttest_rel(a, b, axis=1).pvalue < 0.05)
        print(f"{name}: p < 0.05 in {100 * by_signs:.1f} % (randomisation), {100 * by_t:.1f} % (t)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--model")
    parser.add_argument("--reranker")
    parser.add_argument("--depth", type=int, default=RERANK_DEPTH)
    parser.add_argument("--rerank-weight", type=float, default=RERANK_WEIGHT)
    parser.add_argument("--fusion", choices=FUSIONS)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", nargs="*", default=COLLECTIONS, choices=COLLECTIONS)
    parser.add_argument("--alarms", action="store_true")
    options = parser.parse_args()
    if options.alarms:
        return alarms()
    if options.data is None or options.model is None or options.work is None:
        parser.error("DATA, --model and --work are needed (or --alarms)")
    for name in options.only:
        measure(name, options)


if __name__ == "__main__":
    command(main)
