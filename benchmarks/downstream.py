"""What pretraining brings downstream: the same model pretrained and untrained, beside TF-IDF and BM25.

    python -m benchmarks.downstream classify PRETRAINED TRAIN TEST [--labels 8 64 all] [--seeds 0 1 2]
    python -m benchmarks.downstream rank PRETRAINED PAIRS BEIR [--seeds 0 1 2]

PRETRAINED is an `export/`. Classification: k labels of each class (draw = seed), a fixed number of updates for each k,
the last weights (never the best on the test split), accuracy and macro-F1 on TEST; mean ± standard deviation over
seeds. Ranking: trained on PAIRS, measured on the BEIR folder, whose queries are never trained on. Both rows of a table
use the same tokenizer, architecture, size, updates and learning rate (without `--lr` the recipe's rule, by the
weights that each starts from); "untrained" differs only in its first weights.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.common import command
from sslnlp.data.config import DataConfig
from sslnlp.data.labelled import labelled
from sslnlp.errors import UserError
from sslnlp.evaluation.baselines import bm25_ranking, tfidf_logreg
from sslnlp.evaluation.beir import load_beir
from sslnlp.evaluation.ranking import ranking_measures
from sslnlp.recipe import load_recipe, override, run

STEPS = {"8": 200, "64": 500, "all": 1000}
console = Console(width=110)


def start(pretrained: Path, untrained: bool) -> dict[str, Any]:
    """The keys that give the pretrained model, or one of the same configuration with fresh weights."""
    if not untrained:
        return {"model.pretrained": str(pretrained)}
    story = json.loads((pretrained / "recipe.json").read_text())["recipe"]
    if story["model"].get("pretrained"):  # its size is that of the model it went on from, which no key names
        raise UserError(f"{pretrained} went on from other weights; give a run that began with fresh ones")
    model = {f"model.{key}": story["model"][key] for key in ("architecture", "size")}
    model |= {f"model.config.{key}": value for key, value in story["model"].get("config", {}).items()}
    return {**model, "tokenizer.path": str(pretrained), "data.seq_length": story["data"]["seq_length"]}


def measures(name: str, keys: dict[str, Any], scratch: Path) -> dict[str, float]:
    """Run a shipped recipe and return its final figures."""
    out = scratch / "run"
    shutil.rmtree(out, ignore_errors=True)
    run(override(load_recipe(name), {**keys, "out": str(out)}), console=Console(quiet=True))
    result: dict[str, float] = json.loads((out / "recipe.json").read_text())["result"]["measures"]
    return result


def fixed(arguments: argparse.Namespace, seed: int) -> dict[str, Any]:
    """What both tasks do alike: one evaluation, after the last update, which chooses nothing."""
    rate = {} if arguments.lr is None else {"train.lr": arguments.lr}
    return {
        **rate,
        "train.seed": seed,
        "train.eval_every": 10**9,
        "train.save_every": 10**9,
        "train.keep_best": False,
        "train.precision": arguments.precision,
    }


def cell(values: list[float]) -> str:
    spread = f" ± {100 * stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * mean(values):.1f}{spread}"


def classify(arguments: argparse.Namespace, scratch: Path) -> None:
    table = Table("labels a class", "model", "accuracy", "macro-F1", title=arguments.train.parent.name)
    for k in arguments.labels:
        few = {} if k == "all" else {"data.labels_per_class": int(k)}
        for model in ("TF-IDF + LR", "untrained", "pretrained"):
            found: list[dict[str, float]] = []
            for seed in arguments.seeds:
                draw = {**few, "data.draw": seed} if few else {}
                if model == "TF-IDF + LR":
                    found.append(_tfidf(arguments, draw))
                    continue
                keys = {
                    **start(arguments.pretrained, model == "untrained"),
                    **draw,
                    "data.train": str(arguments.train),
                    "data.valid": str(arguments.test),
                    "train.steps": arguments.steps or STEPS.get(k, 500),
                    "train.batch_size": 32,
                    **fixed(arguments, seed),
                    "collator.max_length": arguments.max_length,
                }
                found.append(measures("finetune_classification", keys, scratch))
                console.print(k, model, seed, {n: round(v, 4) for n, v in found[-1].items()})
            table.add_row(k, model, *(cell([f[name] for f in found]) for name in ("accuracy", "macro_f1")))
    console.print(table)


def _tfidf(arguments: argparse.Namespace, draw: dict[str, Any]) -> dict[str, float]:
    keys = {key.removeprefix("data."): value for key, value in draw.items()}
    data = labelled(DataConfig(train=str(arguments.train), valid=str(arguments.test), **keys))
    sides = []
    for rows in (data.train, data.valid):
        assert rows is not None
        sides += [[row[name] for row in rows.rows(range(len(rows)))] for name in ("text", "label")]
    return tfidf_logreg(*sides)


def rank(arguments: argparse.Namespace, scratch: Path) -> None:
    names = ("ndcg@10", "mrr@10", "recall@100", "map")
    table = Table("model", *names, title=f"{arguments.pairs.parent.name} → {arguments.beir.name}")
    beir = load_beir(arguments.beir)
    bm25 = ranking_measures(beir.qrels, bm25_ranking(beir.corpus, beir.queries))
    table.add_row("BM25", *(cell([bm25[name]]) for name in names))
    for model in ("untrained", "pretrained"):
        found = []
        for seed in arguments.seeds:
            keys = {
                **start(arguments.pretrained, model == "untrained"),
                "data.train": str(arguments.pairs),
                "data.beir": str(arguments.beir),
                "data.valid_fraction": 0.01,
                "train.steps": arguments.steps or 600,
                "train.batch_size": arguments.batch_size,
                **fixed(arguments, seed),
                "collator.query_length": 32,
                "collator.document_length": 96,
                **dict(pair.split("=", 1) for pair in arguments.set),
            }
            found.append(measures("finetune_ranking", keys, scratch))
            console.print(model, seed, {n: round(v, 4) for n, v in found[-1].items()})
        table.add_row(model, *(cell([f[f"beir_{name}"] for f in found]) for name in names))
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tasks = parser.add_subparsers(required=True)
    for name, function, paths in (
        ("classify", classify, ("pretrained", "train", "test")),
        ("rank", rank, ("pretrained", "pairs", "beir")),
    ):
        task = tasks.add_parser(name)
        task.set_defaults(function=function)
        for path in paths:
            task.add_argument(path, type=Path)
        task.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
        task.add_argument("--lr", type=float, help="one rate for all, in place of the recipe's own of each model")
        task.add_argument("--steps", type=int, help="updates, instead of the defaults")
        task.add_argument("--precision", default="no")
        if function is classify:
            task.add_argument("--labels", nargs="+", default=list(STEPS))
            task.add_argument("--max-length", type=int, default=64)
        else:
            task.add_argument("--batch-size", type=int, default=64)
            task.add_argument("--set", nargs="*", default=[], help="further key=value of the recipe")
    arguments = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with tempfile.TemporaryDirectory() as scratch:
        arguments.function(arguments, Path(scratch))


if __name__ == "__main__":
    command(main)
