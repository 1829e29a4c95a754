"""Short texts, where padding is most of a batch: against run_mlm.py line by line and against sentence-transformers.

    python -m benchmarks.short masked      pairs.parquet --columns summary description
    python -m benchmarks.short contrastive pairs.parquet --columns summary description

`masked`: BERT, 15 % of the tokens hidden, 80/10/10. A round is one pass over the same texts (what is longer than a row
is cut off, for everyone) in equally many updates, each contender's whole loop. The peer is `transformers.Trainer` with
one text a row: padded to the longest of a batch or to the length of a row, as run_mlm.py does, and tuned: texts of like
length together, no dropout (SDPA and fused AdamW are its defaults). Units are real tokens, padding not counted. Texts
of like length are found among those of a round only, which costs them: 87 % of the places are real in 8 batches of 32,
97 % in 50 (of a corpus the peer sorts 50 batches at a time, ours 64).

`contrastive`: a BERT encoder, mean pooling, cross-entropy over the cosines of all pairs of a batch. The peer is
`SentenceTransformerTrainer` with `MultipleNegativesRankingLoss`, as it comes and without dropout (SDPA and fused AdamW
are its defaults). All go through the same pairs in the same batches, in which no text is twice, so that
`BatchSamplers.NO_DUPLICATES` would change nothing; the vectors of the first batch are compared. Units are pairs.

With `--bf16` ours and the tuned peer compute in bf16, and the peer has the attention that is faster in it on a CPU; for
a machine that has units for it.

All start from the same weights. No ratio is printed where tokens, vectors or loss curves differ. FILE is parquet, jsonl
or csv.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import Comparison, chosen, command, compare, positive
from benchmarks.short_contenders import (
    LEARNING_RATE,
    contrastive_ours,
    masked_ours,
    masked_trainer,
    sentence_transformers_,
)
from sslnlp.errors import UserError, reason_of, suggest

NOISE = {"masked": 0.06, "contrastive": 0.02}
"""How far the mean losses of two contenders may be apart, in nats. Masks and the texts of an update differ in `masked`
(some 10,000 targets with a deviation of 2 give 0.02 each); batches are the same in `contrastive`."""
NOISE_WITH_DROPOUT = {"masked": 0.2, "contrastive": 0.25}
"""Where one of the two drops out, which raises its loss while it trains."""


# --- what all contenders start from -----------------------------------------------------------------------------------


def read_columns(path: Path, names: Sequence[str]) -> list[list[str]]:
    import pyarrow.csv
    import pyarrow.json
    import pyarrow.parquet

    readers: dict[str, Any] = {".csv": pyarrow.csv.read_csv, ".jsonl": pyarrow.json.read_json}
    try:
        table = readers.get(path.suffix, pyarrow.parquet.read_table)(path)
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{path} is not read as parquet, jsonl or csv: {reason_of(error)}") from None
    for name in names:
        if name not in table.column_names:
            raise UserError(f"{path} has no column {name!r}.{suggest(name, table.column_names)}")
    return [["" if text is None else str(text) for text in table[name].to_pylist()] for name in names]


def make_work(kind: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Writes a tokenizer, fresh weights and the texts; returns what contenders are told."""
    from transformers import BertConfig, BertForMaskedLM, BertModel

    from sslnlp.tokenizer import set_framing, train_tokenizer

    columns = [[text.strip() for text in column] for column in read_columns(arguments.file, arguments.columns)]
    mixed = [text for row in zip(*columns, strict=True) for text in row if text]
    tokenizer = set_framing(train_tokenizer(mixed[:40_000], vocab_size=arguments.vocabulary), "encoder")
    tokenizer.save_pretrained(folder / "model")
    config = BertConfig(
        vocab_size=arguments.vocabulary, hidden_size=arguments.width, num_hidden_layers=arguments.layers,
        num_attention_heads=max(1, arguments.width // 64), intermediate_size=4 * arguments.width,
        max_position_embeddings=arguments.length, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    (BertForMaskedLM if kind == "masked" else BertModel)(config).save_pretrained(folder / "model")
    facts = {name: getattr(arguments, name) for name in ("length", "batch", "steps", "bf16")}
    facts |= {"folder": str(folder), "lr": LEARNING_RATE[kind]}
    if kind == "masked":
        texts, rows = choose_texts(mixed, tokenizer, arguments)
        facts |= {"texts": len(texts), "rows": rows}
        lengths = [len(ids) for ids in tokenizer(texts)["input_ids"]]
    else:
        texts = choose_pairs(columns, arguments.batch * arguments.steps * (arguments.rounds + 1))
        lengths = [len(ids) for side in (0, 1) for ids in tokenizer([pair[side] for pair in texts])["input_ids"]]
        lengths = np.minimum(lengths, arguments.length).tolist()
    facts |= {"median": statistics.median(lengths), "mean": round(statistics.mean(lengths), 1), "longest": max(lengths)}
    (folder / "texts.json").write_text(json.dumps(texts))
    return facts


def choose_texts(texts: list[str], tokenizer: Any, arguments: argparse.Namespace) -> tuple[list[str], int]:
    """Texts for one pass, and how many of them packed make a row, on average to a whole number of rows an update.

    Both sides then go through all of them in equally many updates: `batch` texts or `rows` rows a step.
    """
    from sslnlp.data.packing import best_fit

    count, room = arguments.batch * arguments.steps, arguments.length - 2
    order = np.random.default_rng(0).permutation(len(texts))[: 200 * count]
    encoded = tokenizer([texts[i] for i in order], add_special_tokens=False, return_offsets_mapping=True)
    # Cut before, because run_mlm.py drops what is beyond the row and ours goes on with it in another.
    cut = [
        texts[i] if len(offsets) <= room else texts[i][: offsets[room - 1][1]]
        for i, offsets in zip(order, encoded["offset_mapping"], strict=True)
    ]
    lengths = np.array([len(ids) for ids in tokenizer(cut)["input_ids"]])
    cut, lengths = [text for text, n in zip(cut, lengths, strict=True) if n <= room + 2], lengths[lengths <= room + 2]
    for start in range(len(cut) - count):
        _, rows = best_fit(lengths[start : start + count], arguments.length)
        if rows % arguments.steps == 0:
            return cut[start : start + count], rows // arguments.steps
    raise SystemExit("no stretch of the texts fills a whole number of rows an update; change --batch or --steps")


def choose_pairs(columns: list[list[str]], count: int) -> list[tuple[str, str]]:
    """`count` pairs without a text that is there twice."""
    seen: set[str] = set()
    pairs = []
    for i in np.random.default_rng(0).permutation(len(columns[0])).tolist():
        query, document = columns[0][i], columns[1][i]
        if query and document and not seen & {query.lower(), document.lower()} and query.lower() != document.lower():
            seen |= {query.lower(), document.lower()}
            pairs.append((query, document))
            if len(pairs) == count:
                return pairs
    raise SystemExit(f"the file has only {len(pairs)} different pairs, {count} are needed; lower --batch or --steps")


# --- the comparison ---------------------------------------------------------------------------------------------------


def same_vectors(ready: Mapping[str, Mapping[str, Any]]) -> None:
    """The first batch has the same vectors, before anything is learnt."""
    vectors = {name: facts["vectors"] for name, facts in ready.items() if "vectors" in facts}
    for name, found in vectors.items():
        apart = float(np.abs(found - next(iter(vectors.values()))).max())
        if not apart <= 1e-4:
            raise SystemExit(f"{name} gives the first batch other vectors, {apart:.1e} apart")


def other_work(kind: str, result: Comparison, loose: set[str]) -> dict[str, str]:
    """Who saw other tokens than the reference, or did not learn the same, and how so."""
    found = {}
    own = result.rounds[result.reference]
    for name, rounds in result.rounds.items():
        allowed = (NOISE_WITH_DROPOUT if {name, result.reference} & loose else NOISE)[kind]
        if [facts["digest"] for facts in rounds] != [facts["digest"] for facts in own]:
            found[name] = "other tokens"
        elif not abs(mean_loss(rounds) - mean_loss(own)) <= allowed:
            found[name] = f"a mean loss of {mean_loss(rounds):.3f} against {mean_loss(own):.3f}"
    return found


def mean_loss(rounds: list[dict[str, Any]]) -> float:
    """A mean over tokens."""
    losses, weights = ([x for facts in rounds for x in facts[name]] for name in ("losses", "weights"))
    return float(np.average(losses, weights=weights))


def story(name: str, result: Comparison) -> str:
    """How a contender's losses went, and how much of what it computed was text."""
    rounds, own = result.rounds[name], result.rounds[result.reference]
    first, last = mean_loss(rounds[:1]), mean_loss(rounds[-1:])
    used = sum(facts["real"] for facts in rounds) / sum(facts["places"] for facts in rounds)
    apart = abs(mean_loss(rounds) - mean_loss(own))
    return f"{name}: {first:.3f} → {last:.3f}, mean apart {apart:.4f}, {used:.1%} of the places real"


def contenders(kind: str, work: dict[str, Any]) -> tuple[dict[str, Any], set[str]]:
    """Name -> (function, options), ours first; and those that drop out."""
    base = {"work": work}
    if kind == "masked":
        made: dict[str, Any] = {
            "sslnlp, packed": (masked_ours, base | {"packing": "pack"}),
            "sslnlp, buckets": (masked_ours, base | {"packing": "bucket"}),
            "HF Trainer, default": (masked_trainer, base | {"dropout": 0.1}),
            "HF Trainer, pad_to_max_length": (masked_trainer, base | {"dropout": 0.1, "full": True}),
            "HF Trainer, tuned": (masked_trainer, base | {"dropout": 0.0, "tuned": True}),
        }
        return made, {"HF Trainer, default", "HF Trainer, pad_to_max_length"}
    made = {
        "sslnlp, packed": (contrastive_ours, base | {"packed": True}),
        "sslnlp, padded": (contrastive_ours, base | {"packed": False}),
        "sentence-transformers, default": (sentence_transformers_, base | {"dropout": 0.1}),
        "sentence-transformers, tuned": (sentence_transformers_, base | {"dropout": 0.0, "tuned": True}),
    }
    return made, {"sentence-transformers, default"}


def run(arguments: argparse.Namespace) -> None:
    kind = arguments.kind
    if kind == "contrastive" and len(arguments.columns) != 2:
        raise UserError("contrastive compares pairs: name two --columns")
    with tempfile.TemporaryDirectory() as folder:
        work = make_work(kind, Path(folder), arguments)
        made, loose = contenders(kind, work)
        made = chosen(made, arguments.only)
        facts = {name: value for name, value in work.items() if name != "folder"} | {"file": arguments.file.name}
        result = compare(
            made, rounds=arguments.rounds, unit="tokens" if kind == "masked" else "pairs", check=same_vectors,
            facts=facts | {"columns": arguments.columns},
        )  # fmt: skip
    result.setup["other_work"] = other = other_work(kind, result, loose)
    for name in other:
        del result.rounds[name]
    result.setup["work"] = said = [story(name, result) for name in result.rounds]
    title = f"{kind}, short texts (median {work['median']:.0f} tokens, mean {work['mean']}), {work['batch']} an update"
    result.show(title)
    print(*said, sep="\n")
    if arguments.out:
        result.write(arguments.out, title)
    if other:
        raise SystemExit("no ratio for who did other work: " + "; ".join(f"{n}: {why}" for n, why in other.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tasks = parser.add_subparsers(required=True)
    sizes = {"layers": 4, "width": 256, "vocabulary": 8192, "length": 128, "rounds": 5}
    for kind, batch, steps in (("masked", 32, 8), ("contrastive", 64, 3)):
        task = tasks.add_parser(kind)
        task.set_defaults(function=run, kind=kind)
        task.add_argument("file", type=Path)
        task.add_argument("--columns", nargs="+", required=True)
        for name, value in {**sizes, "batch": batch, "steps": steps}.items():
            task.add_argument(f"--{name}", type=positive, default=value)
        task.add_argument("--bf16", action="store_true", help="ours and the tuned peer in bf16")
        task.add_argument("--only", nargs="*", help="names of contenders")
        task.add_argument("--out", type=Path, help="stem of the .json and .svg written")
    arguments = parser.parse_args()
    arguments.function(arguments)


if __name__ == "__main__":
    command(main)
