"""The small runs that the shipped recipes' optimiser, rates and batch sizes are chosen by.

    python -m benchmarks.defaults TRAIN VALID OUT --objective masked_lm --tokens 1_000_000 \\
        --set train.batch_size=8,16,32 train.lr=5e-3,1e-2 [--seeds 0 1]
    python -m benchmarks.defaults OUT

Every combination of the values is one run of the shipped recipe at the same token budget, text and tokenizer; held-out
masks are fixed and always [MASK], so losses compare across mask rates and replacements of training. Each finished run
is a line of OUT/defaults.jsonl and is not run again; the second form prints the table.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.common import command, positive
from sslnlp.data.prepare import sample_texts
from sslnlp.errors import UserError
from sslnlp.recipe import load_recipe, override, run
from sslnlp.tokenizer import train_tokenizer
from sslnlp.train import NonFiniteError

RECIPES = {
    "masked_lm": "pretrain_bert", "causal_lm": "pretrain_gpt", "hybrid": "pretrain_hybrid",
    "span_corruption": "pretrain_t5", "denoising": "pretrain_bart", "electra": "pretrain_electra",
}  # fmt: skip
MEASURE = {"causal_lm": "bits_per_byte", "electra": "discriminator_loss"}
"""Of what is no loss alone."""
console = Console(width=140)


def combinations(pairs: list[str], seeds: list[int]) -> list[dict[str, str]]:
    """`key=a,b` of several keys -> every choice of one value each, for each seed; a list is a value: [0.5,0.98]."""
    if wrong := [pair for pair in pairs if "=" not in pair]:
        raise UserError(f"--set {wrong[0]}: write KEY=VALUE or KEY=A,B,...")
    named = [(key, re.split(r",(?![^\[]*\])", values)) for key, values in (pair.split("=", 1) for pair in pairs)]
    keys = [key for key, _ in named]
    return [
        dict(zip(keys, chosen, strict=True)) | {"train.seed": str(seed)}
        for seed in seeds
        for chosen in itertools.product(*(values for _, values in named))
    ]


def lines(out: Path) -> list[dict[str, Any]]:
    path = out / "defaults.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def one(arguments: argparse.Namespace, chosen: Mapping[str, str]) -> dict[str, Any]:
    """The figures of one run; its folder is not kept."""
    recipe = load_recipe(RECIPES[arguments.objective])
    fixed = {
        "data.train": str(arguments.train),
        "data.valid": str(arguments.valid),
        "data.cache": str(arguments.out / "cache"),
        "data.seq_length": arguments.seq_length,
        "tokenizer.path": str(arguments.out / "tokenizer"),
        "model.size": arguments.size,
        "train.save_every": 10**9,
        "train.eval_every": 10**9,
        "train.keep_best": "false",
        "out": str(arguments.out / f"run-{os.getpid()}"),
    }
    rows = int(chosen.get("train.batch_size", recipe.train.batch_size))
    fixed["train.steps"] = max(1, round(arguments.tokens / (rows * arguments.seq_length)))
    shutil.rmtree(fixed["out"], ignore_errors=True)
    began = time.process_time()
    folder = run(override(recipe, {**fixed, **chosen}), console=Console(quiet=True))
    result = json.loads((folder / "recipe.json").read_text())["result"]["measures"]
    shutil.rmtree(folder)
    return {"figures": result, "steps": fixed["train.steps"], "cpu_seconds": round(time.process_time() - began, 1)}


def train(arguments: argparse.Namespace) -> None:
    arguments.out.mkdir(parents=True, exist_ok=True)
    if not (arguments.out / "tokenizer").is_dir():
        first = override(load_recipe("pretrain_gpt"), {"data.train": str(arguments.train)})
        texts = sample_texts(first.data, 10 << 20)
        train_tokenizer(texts, vocab_size=arguments.vocab_size).save_pretrained(arguments.out / "tokenizer")
    for chosen in combinations(arguments.set, arguments.seeds):
        key = {"objective": arguments.objective, "size": arguments.size, "tokens": arguments.tokens, "set": chosen}
        key |= {"seq_length": arguments.seq_length}
        if any(all(line[name] == value for name, value in key.items()) for line in lines(arguments.out)):
            continue
        try:
            found = one(arguments, chosen)
        except NonFiniteError as error:  # a rate too high is a result too; all else is run again the next time
            found = {"figures": {}, "error": f"{type(error).__name__}: {error}"}
        with open(arguments.out / "defaults.jsonl", "a") as file:
            file.write(json.dumps(key | found) + "\n")
        console.print(chosen, found)


def show(out: Path) -> None:
    """One table of all runs, seeds averaged, the lowest of each (objective, size, budget, length of a row) first."""
    grouped: dict[tuple[Any, ...], list[float]] = {}
    for line in lines(out):
        setting = tuple(sorted((k, v) for k, v in line["set"].items() if k != "train.seed"))
        key = (line["objective"], line["size"], line["tokens"], line["seq_length"], setting)
        # What diverged is worse than everything: a NaN would leave the others in no order.
        grouped.setdefault(key, []).append(line["figures"].get(MEASURE.get(line["objective"], "loss"), float("inf")))
    table = Table("objective", "size", "tokens", "row", "setting", "held out", "seeds")
    for key, values in sorted(grouped.items(), key=lambda item: (*item[0][:4], sum(item[1]) / len(item[1]))):
        objective, size, tokens, length, setting = key
        shown = " ".join(f"{k.removeprefix('train.')}={v}" for k, v in setting)
        table.add_row(
            objective, size, f"{tokens:,}", str(length), shown, f"{sum(values) / len(values):.4f}", str(len(values))
        )
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", type=Path, metavar="TRAIN VALID OUT | OUT")
    parser.add_argument("--objective", choices=list(RECIPES), default="masked_lm")
    parser.add_argument("--size", default="tiny")
    parser.add_argument("--tokens", type=positive, default=1_000_000)
    parser.add_argument("--seq-length", type=positive, default=128)
    parser.add_argument("--vocab-size", type=positive, default=4096)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=A,B,...")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    arguments = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if len(arguments.paths) not in (1, 3):
        parser.error("give TRAIN VALID OUT to run, or OUT alone to see the table")
    if len(arguments.paths) == 3:
        arguments.train, arguments.valid, arguments.out = arguments.paths
        train(arguments)
    show(arguments.paths[-1])


if __name__ == "__main__":
    command(main)
