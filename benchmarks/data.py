"""From raw text to batches, against `tokenizers`, `datasets` and the collator of `transformers`.

    python -m benchmarks.data encode  corpus.parquet [--algorithm bpe|wordpiece|unigram | --tokenizer FOLDER]
    python -m benchmarks.data prepare corpus.parquet [--threads 2 --size 500]
    python -m benchmarks.data mask    corpus.parquet
    python -m benchmarks.data scale   corpus.parquet [--sizes 10 30 100 300 1000]

`encode`: texts to ids; every round begins with a new encoder that remembers nothing. No ratio is printed unless all
ids are equal. `prepare`: a file to the first masked batch, everything on the way included, caches empty; the peer is
`datasets.map` twice (tokenise, then concatenate and cut) and `DataCollatorForLanguageModeling`, as run_mlm.py has it,
and without the masks that nobody reads; with `--threads` 2 or more, one process of ours, so many, and so many of the
peer's. `mask`: rows to masked batches, 15 % of the tokens, 80/10/10. `scale`: time and memory of a preparation as the
corpus grows, of the next start on the same, and the slopes in logarithms.

A corpus is a parquet file with a column `text`, or a text file with blank lines between documents.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import Comparison, command, compare, positive
from benchmarks.data_contenders import (
    RATE,
    encode_ours,
    encode_tokenizers,
    load_tokenizer,
    mask_ours,
    mask_transformers,
    prepare_datasets,
    prepare_ours,
    read_texts,
    scaled,
)
from sslnlp.errors import UserError

MB = 1_000_000


def make_tokenizer(arguments: argparse.Namespace, folder: str) -> str:
    """A folder with the tokenizer of the comparison; contenders load it from there."""
    if arguments.tokenizer:
        if not arguments.tokenizer.exists():
            raise UserError(f"--tokenizer is a folder or a tokenizer.json; {arguments.tokenizer} is not there")
        return str(arguments.tokenizer)
    from sslnlp.tokenizer import train_tokenizer

    texts, left = [], 20 * MB
    for text in read_texts(arguments.corpus):
        texts.append(text)
        if (left := left - len(text)) < 0:
            break
    tokenizer = train_tokenizer(texts, vocab_size=arguments.vocabulary, algorithm=arguments.algorithm)
    path = str(Path(folder) / "tokenizer")
    tokenizer.save_pretrained(path)
    return path


# --- encode -----------------------------------------------------------------------------------------------------------


def same_digest(ready: Mapping[str, Mapping[str, Any]]) -> None:
    if len({facts["digest"] for facts in ready.values()}) > 1:
        raise SystemExit(f"the ids differ: {[(name, facts['digest']) for name, facts in ready.items()]}")


def encode(arguments: argparse.Namespace, folder: str) -> Comparison:
    options = {"corpus": arguments.corpus, "tokenizer": make_tokenizer(arguments, folder)}
    contenders: dict[str, Any] = {
        "sslnlp": (encode_ours, options),
        "tokenizers": (encode_tokenizers, options | {"parallel": False}),
    }
    if arguments.threads > 1:
        contenders["tokenizers, parallel"] = (encode_tokenizers, options | {"parallel": True})
    return compare(contenders, rounds=arguments.rounds, unit="bytes", threads=arguments.threads, check=same_digest)


# --- prepare ----------------------------------------------------------------------------------------------------------


def same_tokens(result: Comparison) -> None:
    """The last round of each says how many tokens of text it made."""
    counts = {name: rounds[-1]["tokens"] for name, rounds in result.rounds.items()}
    if max(counts.values()) > 1.02 * min(counts.values()):
        raise SystemExit(f"not the same text was prepared: {counts}")
    result.setup["tokens"] = counts


def prepare(arguments: argparse.Namespace, folder: str) -> Comparison:
    options = {"corpus": arguments.corpus, "tokenizer": make_tokenizer(arguments, folder)}
    options |= {"length": arguments.length, "batch": arguments.batch}
    if arguments.size:
        options["corpus"] = Path(folder) / f"{arguments.size}.parquet"
        write_corpus(read_texts(arguments.corpus), arguments.size * MB, options["corpus"])
    contenders: dict[str, Any] = {"sslnlp": (prepare_ours, options)}
    if (many := arguments.threads) > 1:
        contenders[f"sslnlp, {many} processes"] = (prepare_ours, options | {"processes": many})
        peer = options | {"processes": many, "lean": True}
        contenders[f"datasets, lean, {many} processes"] = (prepare_datasets, peer)
    else:
        for name, lean in (("run_mlm", False), ("lean", True)):
            contenders[f"datasets, {name}"] = (prepare_datasets, options | {"processes": None, "lean": lean})
    result = compare(contenders, rounds=arguments.rounds, unit="bytes", threads=arguments.threads)
    same_tokens(result)
    return result


# --- mask -------------------------------------------------------------------------------------------------------------


def save_rows(arguments: argparse.Namespace, folder: str, tokenizer: str) -> str:
    """Packed rows of the corpus, as arrays that all contenders load."""
    from sslnlp.data.packing import PackedRows
    from sslnlp.data.tokens import build_store
    from sslnlp.tokenizer import framing

    own = load_tokenizer(tokenizer)
    count = arguments.batch * arguments.batches
    texts, left = [], 8 * count * arguments.length
    for text in read_texts(arguments.corpus):
        texts.append(text)
        if (left := left - len(text)) < 0:
            break
    store = build_store(texts, own, Path(folder) / "store", fingerprint="benchmark")
    frame = framing(own, "encoder")
    rows = PackedRows(store, arguments.length, frame.prefix, frame.suffix, pad_id=own.pad_token_id)
    if len(rows) < count:
        most = len(rows) // arguments.batch
        raise SystemExit(f"{arguments.corpus} makes {len(rows)} rows, {count} are needed: give --batches {most}")
    made = rows.rows(range(count))
    path = str(Path(folder) / "rows.npz")
    np.savez(path, **{name: np.stack([row[name] for row in made]) for name in ("input_ids", "document_ids")})
    return path


def same_rate(ready: Mapping[str, Mapping[str, Any]]) -> None:
    for name, facts in ready.items():
        if abs(facts["share"] - RATE) > 0.005 or facts["specials"]:
            raise SystemExit(f"{name} did not mask {RATE:.0%} of the text and no special token: {dict(facts)}")


def mask(arguments: argparse.Namespace, folder: str) -> Comparison:
    tokenizer = make_tokenizer(arguments, folder)
    options = {"rows": save_rows(arguments, folder, tokenizer), "tokenizer": tokenizer, "batch": arguments.batch}
    contenders: dict[str, Any] = {
        "sslnlp": (mask_ours, options),
        "DataCollatorForLanguageModeling": (mask_transformers, options | {"form": "lists"}),
        "the same, of tensors": (mask_transformers, options | {"form": "tensors"}),
    }
    return compare(contenders, rounds=arguments.rounds, threads=arguments.threads, check=same_rate)


# --- scale ------------------------------------------------------------------------------------------------------------


def varied(texts: list[str], size: int, seed: int = 0) -> Iterator[str]:
    """About `size` bytes: the texts again and again, every fiftieth word another each time.

    New words keep coming, as they do in a real corpus, and no two texts are the same.
    """
    rng = np.random.default_rng(seed)
    letters, lap = np.array(list("etaoinshrdlu")), 0
    while True:
        for text in texts:
            if lap:
                words = text.split(" ")
                places = rng.integers(len(words), size=len(words) // 50 + 1).tolist()
                for place, word in zip(places, rng.choice(letters, (len(places), 7)), strict=True):
                    words[place] = "".join(word)
                text = " ".join(words)
            yield text
            size -= len(text.encode())
            if size <= 0:
                return
        lap += 1


def write_corpus(texts: list[str], size: int, path: Path) -> int:
    """A parquet file of `varied` text, a thousand documents a row group. Returns its bytes of text."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema, total, group = pa.schema([("text", pa.string())]), 0, []
    with pq.ParquetWriter(path, schema) as writer:
        for text in varied(texts, size):
            group.append(text)
            total += len(text.encode())
            if len(group) == 1000:
                writer.write_table(pa.table({"text": group}, schema))
                group = []
        writer.write_table(pa.table({"text": group}, schema))
    return total


def slope(sizes: list[float], times: list[float]) -> float:
    """Of the straight line through the points, in logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(times), 1)[0])


def scale(arguments: argparse.Namespace, folder: str) -> Comparison:
    if len(set(arguments.sizes)) < 2:
        raise UserError("a slope needs two different --sizes at least")
    tokenizer, texts = make_tokenizer(arguments, folder), read_texts(arguments.corpus)
    rounds: dict[str, list[dict[str, Any]]] = {}
    setup: dict[str, Any] = {}
    starts: dict[str, dict[str, Any]] = {}
    warm = Path(folder) / "warm.parquet"
    write_corpus(texts, MB // 2, warm)  # no size that is measured, whose store would be there already
    for size in sorted(set(arguments.sizes)):
        path = Path(folder) / f"{size}.parquet"
        total = write_corpus(texts, size * MB, path)
        options = {"corpus": path, "size": total, "tokenizer": tokenizer, "length": arguments.length, "warm": warm}
        contender: dict[str, Any] = {f"{size} MB": (scaled, options | {"batch": arguments.batch})}
        one = compare(contender, rounds=2, unit="bytes", threads=arguments.threads)
        ((name, (made, found)),) = one.rounds.items()
        rounds[name], starts[name] = [made], found
        setup = one.setup
        path.unlink()
        print(f"{name}: {made}, again {found['wall']:.2f} s, {found['cpu']:.2f} CPU s", flush=True)
    sizes = [facts[0]["units"] for facts in rounds.values()]
    for clock in ("wall", "cpu"):
        setup[f"slope_{clock}"] = slope(sizes, [facts[0][clock] for facts in rounds.values()])
        setup[f"slope_of_a_start_{clock}"] = slope(sizes, [facts[clock] for facts in starts.values()])
    setup["starts"] = starts
    peaks = [facts[0]["peak_rss"] for facts in rounds.values()]
    setup["peak_rss_growth"] = peaks[-1] / peaks[0]
    print({name: round(value, 3) for name, value in setup.items() if name.startswith(("slope", "peak"))})
    return Comparison(rounds, "bytes", next(iter(rounds)), setup)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tasks = parser.add_subparsers(required=True, dest="task")
    for function in (encode, prepare, mask, scale):
        task = tasks.add_parser(function.__name__)
        task.set_defaults(function=function)
        task.add_argument("corpus", type=Path)
        task.add_argument("--tokenizer", type=Path, help="a folder or tokenizer.json; default: trained on the corpus")
        task.add_argument("--algorithm", default="bpe")
        task.add_argument("--vocabulary", type=positive, default=16384)
        task.add_argument("--length", type=positive, default=128, help="tokens of a row")
        task.add_argument("--batch", type=positive, default=64, help="rows of a batch")
        task.add_argument("--threads", type=positive, default=1)
        task.add_argument("--rounds", type=positive, default=5)
        task.add_argument("--out", type=Path, help="stem of the .json and .svg written")
    tasks.choices["prepare"].add_argument("--size", type=positive, help="megabytes of text, the corpus again and again")
    tasks.choices["mask"].add_argument("--batches", type=positive, default=100, help="batches of a round")
    scales = tasks.choices["scale"]
    scales.add_argument("--sizes", type=positive, nargs="+", default=[10, 30, 100], help="megabytes, two or more")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = arguments.function(arguments, folder)
    what = str(arguments.tokenizer or f"{arguments.algorithm} of {arguments.vocabulary:,}")
    result.setup["tokenizer"] = what
    title = f"{arguments.task}, {what}, {arguments.corpus.name}"
    result.show(title)
    if arguments.out:
        result.write(arguments.out, title)


if __name__ == "__main__":
    command(main)
