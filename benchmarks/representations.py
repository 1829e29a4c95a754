"""What each objective between views makes of a masked-LM start, at an equal budget of tokens.

    python -m benchmarks.representations train START TRAIN VALID OUT [--tokens 1_000_000] [--only moco byol]
    python -m benchmarks.representations table START OUT --fit TRAIN --texts TEXTS --sts STS
        --probe PROBE_TRAIN PROBE_TEST --beir FOLDER ... --pairs QUESTIONS_ANSWERS

START is the export of a masked-LM run; TRAIN and VALID are the text it was made of. `train` goes on from it with each
objective on the shipped recipe's views until as many tokens have gone through the encoder, those of both views counted,
and with masked LM itself. `table` measures them beside the start and the same model with fresh weights, as they are and
whitened, and TF-IDF.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from sklearn.feature_extraction.text import TfidfVectorizer
from transformers import AutoConfig, AutoModel, AutoTokenizer

from benchmarks.common import command, positive
from sslnlp.data.sources import open_source
from sslnlp.evaluation.beir import evaluate_embedder, load_beir
from sslnlp.evaluation.geometry import geometry_measures
from sslnlp.evaluation.known_item import halves, known_item_figures
from sslnlp.evaluation.probes import probe_measures
from sslnlp.evaluation.similarity import read_similar, similarity_measures
from sslnlp.metrics import read_metrics
from sslnlp.objectives.whitening import TEXTS
from sslnlp.recipe import load_recipe, override, run
from sslnlp.report.subject import in_memory, subject_of
from sslnlp.search.encoder import Encoder, EncoderSettings
from sslnlp.vector_map import whitener

Vectors = npt.NDArray[np.float32]
Encode = Callable[[list[str]], Vectors]

CROPS = {"collator.views": ["crop+delete", "crop+delete"], "collator.crop_min": 0.2, "collator.crop_max": 0.6}
OBJECTIVES: dict[str, tuple[str, dict[str, Any]]] = {
    "masked_lm": ("pretrain_bert", {"train.lr": 1e-3}),
    "info_nce, twins (SimCSE)": ("embed_simcse", {}),
    "info_nce, crops": ("embed_simcse", {**CROPS, "model.dropout": 0.0}),
    "moco": ("embed_moco", CROPS),
    "byol": ("embed_byol", {}),
    "barlow_twins": ("embed_barlow", {}),
    "vicreg": ("embed_barlow", {"objective.name": "vicreg"}),
    "tsdae": ("embed_tsdae", {"train.lr": 5e-4}),
}
"""Row of the table -> shipped recipe and what is changed in it. All crops are alike."""
RATES = (2e-4, 1e-3)
"""The recipes' learning rates suit thousands of updates; here the better of two is taken, by held-out mrr@10."""


def train(arguments: argparse.Namespace) -> None:
    for row, (name, keys) in OBJECTIVES.items():
        if arguments.only and row.split(",")[0] not in arguments.only:
            continue
        rates = arguments.rates if "train.lr" not in keys else [keys["train.lr"]]
        for rate in rates:
            out = arguments.out / f"{slug(row)}-{rate:g}"
            if (out / "export").is_dir():
                continue
            shared = {
                "data.train": str(arguments.train), "data.valid": str(arguments.valid), "train.batch_size": 64,
                "model.pretrained": str(arguments.start), "train.lr": rate, "train.eval_every": 10**9,
            }  # fmt: skip
            trial = arguments.out / f"trial-{slug(row)}"
            seen = tokens_of(name, {**shared, **keys, "train.lr": rate, "train.steps": 3, "out": str(trial)}) / 3
            steps = max(1, round(arguments.tokens / seen))
            shutil.rmtree(out, ignore_errors=True)
            tokens = tokens_of(name, {**shared, **keys, "train.lr": rate, "train.steps": steps, "out": str(out)})
            shutil.rmtree(trial)
            print(f"{row}, lr {rate:g}: {steps} updates, {tokens:,} tokens", flush=True)


def tokens_of(name: str, keys: dict[str, Any]) -> int:
    """Make a run; the tokens that went through the encoder."""
    shutil.rmtree(keys["out"], ignore_errors=True)
    out = run(override(load_recipe(name), keys), console=Console(quiet=True))
    return max(int(line["train/tokens"]) for line in read_metrics(out / "metrics.jsonl") if "train/tokens" in line)


def slug(row: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in row).strip("-")


# --- the table --------------------------------------------------------------------------------------------------------


def measures(encode: Encode, arguments: argparse.Namespace) -> dict[str, tuple[float, float, float]]:
    """Column -> figure and its interval (none for the search collections)."""
    first, second = halves(open_source(str(arguments.texts)).documents(), arguments.documents)
    query, document = encode(first), encode(second)
    figures = known_item_figures(query, document)
    figures |= {"effective_rank": geometry_measures(query)["effective_rank"]}
    figures |= similarity_measures(encode, read_similar(open_source(str(arguments.sts)).rows(), "sts"))
    train, test = (list(open_source(str(path)).rows()) for path in arguments.probe)
    vectors = [encode([row["text"] for row in rows]) for rows in (train, test)]
    labels = [[str(row["label"]) for row in rows] for rows in (train, test)]
    figures |= probe_measures(vectors[0], labels[0], vectors[1], labels[1])
    pairs = list(open_source(str(arguments.pairs)).rows())
    figures["pairs recall@1"] = pair_recall(encode, pairs, arguments.pair_columns)
    found = {name: (figure.value, figure.low, figure.high) for name, figure in figures.items()}
    for folder in arguments.beir:
        value = evaluate_embedder(encode, load_beir(folder))["ndcg@10"]
        found[f"{folder.name} nDCG@10"] = (value, value, value)
    return found


def pair_recall(encode: Encode, rows: list[dict[str, Any]], columns: list[str]) -> Any:
    """Whether the nearest of all different answers is the question's own; equal answers are one."""
    from sslnlp.evaluation.bootstrap import ratio_figure

    question, answer = columns
    answers = list(dict.fromkeys(str(row[answer]) for row in rows))
    own = np.array([answers.index(str(row[answer])) for row in rows])
    score = encode([str(row[question]) for row in rows]) @ encode(answers).T
    hits = (score >= score[np.arange(len(own)), own][:, None]).sum(1) == 1
    return ratio_figure(hits, chance=1 / len(answers))


def tfidf(arguments: argparse.Namespace) -> Encode:
    """The 10,000 most frequent words of all that is measured, test queries not among it, weighted on the same."""

    def encode(texts: list[str]) -> Vectors:
        return np.asarray(model.transform(texts).todense(), dtype=np.float32)

    texts = [text for text, _ in zip(open_source(str(arguments.texts)).documents(), range(500), strict=False)]
    texts += [row["text"] for row in open_source(str(arguments.probe[0])).rows()]
    texts += [row[arguments.pair_columns[1]] for row in open_source(str(arguments.pairs)).rows()]
    texts += [row["sentence1"] for row in open_source(str(arguments.sts)).rows()]
    texts += [text for folder in arguments.beir for text in load_beir(folder).corpus.values()]
    model = TfidfVectorizer(max_features=10_000, sublinear_tf=True).fit(texts)
    return encode


def encoders(arguments: argparse.Namespace) -> dict[str, Encode]:
    start = subject_of(arguments.start).encoder
    torch.manual_seed(0)
    fresh_model = AutoModel.from_config(AutoConfig.from_pretrained(arguments.start))
    tokenizer = AutoTokenizer.from_pretrained(arguments.start)
    fresh = in_memory(fresh_model.eval(), tokenizer, settings=EncoderSettings()).encoder
    texts = [text for text, _ in zip(open_source(str(arguments.fit)).documents(), range(TEXTS), strict=False)]
    found: dict[str, Encode] = {}
    for row, encoder in {"untrained": fresh, "masked-LM start": start}.items():
        found[row] = partial(encoder.encode, kind="document")
        found[f"{row}, whitened"] = partial(whitened(encoder, texts).encode, kind="document")
    for row in OBJECTIVES:
        runs = sorted(arguments.out.glob(f"{slug(row)}-[0-9]*"))
        if runs:
            encoder = subject_of(max(runs, key=held_out) / "export").encoder
            found[row] = partial(encoder.encode, kind="document")
    return found | {"TF-IDF": tfidf(arguments)}


def whitened(encoder: Encoder, texts: list[str]) -> Encoder:
    """With the map that the view recipes fit before their first update."""
    raw = Encoder(encoder.model, encoder.tokenizer, replace(encoder.settings, normalize=False), "", "")
    found = whitener(torch.from_numpy(raw.encode(texts, "document")), 0.5)
    return Encoder(encoder.model, encoder.tokenizer, replace(encoder.settings, vector_map=found), "", "")


def held_out(folder: Path) -> float:
    return float(json.loads((folder / "recipe.json").read_text())["result"]["measures"].get("mrr@10", 0.0))


def table(arguments: argparse.Namespace) -> None:
    path = arguments.out / "representations.json"
    done: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for row, encode in encoders(arguments).items():
        if row not in done:
            done[row] = measures(encode, arguments)
            path.write_text(json.dumps(done, indent=1) + "\n")
            print(row, {name: round(value[0], 3) for name, value in done[row].items()}, flush=True)
    columns = list(next(iter(done.values())))
    print("| | " + " | ".join(columns) + " |\n|---|" + "---|" * len(columns))
    for row, figures in done.items():
        print(f"| {row} | " + " | ".join(_cell(*figures[name]) for name in columns) + " |")


def _cell(value: float, low: float, high: float) -> str:
    digits = 1 if value >= 10 else 3
    return f"{value:.{digits}f}" + (f" ± {(high - low) / 2:.{digits}f}" if high > low else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tasks = parser.add_subparsers(dest="task", required=True)
    trains = tasks.add_parser("train")
    trains.add_argument("start", type=Path)
    trains.add_argument("train", type=Path)
    trains.add_argument("valid", type=Path)
    trains.add_argument("out", type=Path)
    trains.add_argument("--tokens", type=positive, default=1_000_000)
    trains.add_argument("--only", nargs="+", help="names of objectives")
    trains.add_argument("--rates", type=float, nargs="+", default=RATES)
    tables = tasks.add_parser("table")
    tables.add_argument("start", type=Path)
    tables.add_argument("out", type=Path)
    tables.add_argument("--fit", type=Path, required=True, help="texts that the starts are whitened with: TRAIN")
    tables.add_argument("--texts", type=Path, required=True)
    tables.add_argument("--sts", type=Path, required=True)
    tables.add_argument("--probe", type=Path, nargs=2, required=True)
    tables.add_argument("--pairs", type=Path, required=True)
    tables.add_argument("--pair-columns", nargs=2, default=["question", "answer"])
    tables.add_argument("--beir", type=Path, nargs="+", required=True)
    tables.add_argument("--documents", type=int, default=1000)
    arguments = parser.parse_args()
    (train if arguments.task == "train" else table)(arguments)


if __name__ == "__main__":
    command(main)
