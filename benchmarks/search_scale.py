"""Search at a million documents: time, size, memory and latency of each part of an index.

    OMP_NUM_THREADS=1 nice python -m benchmarks.search_scale 10000 100000 1000000 --work DIR --out FILE.json

Documents are generated, not downloaded: words by a Zipf law (exponent 1.07, 200,000 words, the 50 commonest left out
as a stop-word list would), about 40 a document, some of them from one of 2,000 topics. A query is four words of a
document: half of them are common, so BM25 has long lists to sum. No network encodes a million texts on two cores in
reasonable time, so the vectors come from a stand-in through the same writer: each word has a fixed vector of 24 latent
numbers seen through a random matrix, with noise of a tenth; a text is their sum, normalised. Its own time is counted
under "vectors". Indexing and querying run in a process each, so that peak memory (resident, pages of mapped files that
the kernel happens to keep included) is theirs alone. The stages share whatever else the machine does: read CPU seconds
beside wall seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import command, machine
from sslnlp.search import changes, loading
from sslnlp.search.index import Index, add_documents, build_index, delete_documents

WORDS, LATENT, TOPICS, BLOCK = 200_000, 24, 2_000, 10_000
QUERIES, K = 200, 10


def documents(first: int, last: int, seed: int = 0) -> Iterator[str]:
    """The texts of documents first to last: the same whatever the range asked for (it begins at a whole block)."""
    weights = np.cumsum(1.0 / np.arange(50, WORDS + 50) ** 1.07)
    names = np.array([f"w{at}" for at in range(WORDS)])
    for block in range(first // BLOCK, -(-last // BLOCK)):
        draws = np.random.default_rng([seed, block])
        lengths = np.clip(draws.lognormal(np.log(34), 0.5, BLOCK), 5, 300).astype(int)
        drawn = np.searchsorted(weights, draws.random(lengths.sum()) * weights[-1])
        topics = np.repeat(draws.integers(0, TOPICS, BLOCK), lengths)
        # One word in four is among the 40 of the document's topic, which lie all over the vocabulary.
        own = (topics * 7919 + draws.integers(0, 40, len(drawn)) * 104_729) % WORDS
        words = names[np.where(draws.random(len(drawn)) < 0.25, own, drawn)]
        for text in np.split(words, np.cumsum(lengths)[:-1])[: last - block * BLOCK]:
            yield " ".join(text)


class StandIn:
    """What an index needs of an encoder, without a network."""

    name, fingerprint, reads, described, cosines = "stand-in", "0", "texts", True, True

    def __init__(self, dimension: int) -> None:
        draws = np.random.default_rng(1)
        latent = draws.standard_normal((WORDS, LATENT), dtype=np.float32)
        self.table = latent @ (draws.standard_normal((LATENT, dimension), dtype=np.float32) / np.float32(LATENT**0.5))
        for start in range(0, WORDS, BLOCK):  # a block at a time: the peak of memory should be the index's
            self.table[start : start + BLOCK] += 0.1 * draws.standard_normal((BLOCK, dimension), dtype=np.float32)
        self.dimension = dimension

    def encode(self, texts: Sequence[str], kind: str, *, batch_size: int = 32) -> np.ndarray:
        found = np.stack([self.table[[int(word[1:]) for word in text.split()]].sum(0) for text in texts])
        return found / np.linalg.norm(found, axis=1, keepdims=True)


def write_corpus(path: Path, first: int, last: int, seed: int = 0) -> None:
    """Documents as JSON lines; their ids carry the seed."""
    with open(path, "w", encoding="utf-8") as file:
        for row, text in enumerate(documents(first, last, seed), start=first):
            file.write(json.dumps({"_id": f"{seed}-{row}", "text": text}) + "\n")


def use_stand_in(dimension: int) -> None:
    encoder = StandIn(dimension)
    changes.load_encoder = loading.load_encoder = lambda name: encoder  # type: ignore[assignment]


def index_stage(work: Path, dimension: int) -> dict[str, Any]:
    """Build the index; wall seconds until each stage's last report, CPU seconds and peak memory of the process."""
    use_stand_in(dimension)
    begun, ended = time.perf_counter(), defaultdict(float)

    def progress(stage: str, done: int, total: int) -> None:
        ended[stage] = time.perf_counter() - begun

    build_index(work / "corpus.jsonl", work / "index", model="stand-in", language="none", ann=True, progress=progress)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "bm25_s": ended["bm25"],
        "vectors_s": ended["dense"] - ended["bm25"],
        "graph_s": ended["ann"] - ended["dense"],
        "commit_s": time.perf_counter() - begun - ended["ann"],
        "index_cpu_s": usage.ru_utime + usage.ru_stime,
        "index_peak_mb": usage.ru_maxrss / 1024,
        "mb": sizes(work / "index"),
    }


def sizes(index: Path) -> dict[str, float]:
    """Megabytes by part of the index."""
    found: dict[str, float] = defaultdict(float)
    for path in (path for path in index.rglob("*") if path.is_file()):
        part = {"vectors.npy": "vectors", "vectors.usearch": "graph", "documents.jsonl": "documents"}.get(path.name)
        kind = part or {"bm25": "bm25 table", "postings": "postings"}.get(path.parent.name, "rest")
        found[kind] += path.stat().st_size / 1e6
    return dict(found)


def query_stage(work: Path, dimension: int, count: int) -> dict[str, Any]:
    """Latency of every mode over the same queries, one at a time, and how many of the exact ten the graph finds."""
    use_stand_in(dimension)
    draws = np.random.default_rng(2)
    texts = [text.split() for text in documents(0, BLOCK)]
    queries = [" ".join(draws.choice(texts[at], 4)) for at in draws.choice(min(count, BLOCK), QUERIES, replace=False)]
    begun = time.perf_counter()
    exact = Index(work / "index", verify=False)
    near = Index(work / "index", verify=False, ann=True)
    found: dict[str, Any] = {"open_s": time.perf_counter() - begun}
    runs = {}
    for name, index, mode in [
        ("bm25", exact, "bm25"), ("exact", exact, "dense"), ("ann", near, "dense"),
        ("fused_exact", exact, "fused"), ("fused_ann", near, "fused"),
    ]:  # fmt: skip
        index.rank(queries[:3], mode, K)  # loads what the mode needs
        runs[name], found[name] = timed(lambda text, index=index, mode=mode: index.rank([text], mode, K)[0], queries)
    shared = [len(np.intersect1d(a.rows, b.rows)) / K for a, b in zip(runs["exact"], runs["ann"], strict=True)]
    found["recall"] = float(np.mean(shared))
    found["query_peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return found


def timed(ask: Callable[[str], Any], queries: Sequence[str]) -> tuple[list[Any], dict[str, float]]:
    answers, seconds, cpu = [], [], []
    for query in queries:
        begun, cpu_begun = time.perf_counter(), time.process_time()
        answers.append(ask(query))
        seconds.append(time.perf_counter() - begun)
        cpu.append(time.process_time() - cpu_begun)
    p50, p99 = 1000 * np.percentile(seconds, [50, 99])
    return answers, {"p50": float(p50), "p99": float(p99), "cpu_p50": float(1000 * np.median(cpu))}


def change_stage(work: Path, dimension: int) -> dict[str, Any]:
    """Seconds to add a thousand documents to the index and to delete a thousand from it."""
    use_stand_in(dimension)
    write_corpus(work / "more.jsonl", 0, 1000, seed=1)
    begun = time.perf_counter()
    add_documents(work / "index", work / "more.jsonl")
    added = time.perf_counter()
    delete_documents(work / "index", [f"0-{row}" for row in range(1000)])
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "add_s": added - begun,
        "delete_s": time.perf_counter() - added,
        "change_cpu_s": usage.ru_utime + usage.ru_stime,
        "change_peak_mb": usage.ru_maxrss / 1024,
    }


def measure(count: int, dimension: int, work: Path) -> dict[str, Any]:
    """All stages for one size, each in a process of its own."""
    work.mkdir(parents=True, exist_ok=True)
    write_corpus(work / "corpus.jsonl", 0, count)
    found: dict[str, Any] = {"documents": count, "dimension": dimension}
    for stage in ("index", "query", "change"):
        command = ["-m", "benchmarks.search_scale", str(count), "--stage", stage, "--dimension", str(dimension)]
        done = subprocess.run([sys.executable, *command, "--work", str(work)], check=True, stdout=subprocess.PIPE)
        found |= json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("documents", type=int, nargs="+")
    parser.add_argument("--dimension", type=int, default=128)
    parser.add_argument("--work", type=Path, required=True, help="a folder for corpora and indexes (4 GB at a million)")
    parser.add_argument("--out", type=Path, help="where the figures go, as JSON")
    parser.add_argument("--stage", choices=["index", "query", "change"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stage:
        stages = {"index": index_stage, "change": change_stage}
        if arguments.stage == "query":
            print(json.dumps(query_stage(arguments.work, arguments.dimension, arguments.documents[0])))
        else:
            print(json.dumps(stages[arguments.stage](arguments.work, arguments.dimension)))
        return
    found: dict[str, Any] = {
        "machine": machine(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))),
        "runs": [],
    }
    for count in arguments.documents:
        found["runs"].append(measure(count, arguments.dimension, arguments.work / str(count)))
        print(json.dumps(found["runs"][-1], indent=1), flush=True)
        if arguments.out:
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    command(main)
