"""Does `sslnlp plan` say what the run then takes? Plan, then run, a process for each pair, for recipes of all kinds.

    OMP_NUM_THREADS=1 taskset -c 1 python -m benchmarks.plan DATA --rounds 2 --out benchmarks/results/DATE-cpu/plan

DATA is the folder with wiki-en, banking77 and debian-pairs. Every plan is made twice in its process, by wall clock and
by CPU seconds, and held against the run's own: CPU seconds beside wall seconds tell a stolen core from a wrong plan.
The memory that was counted is held against what the planning process grew by; with MALLOC_MMAP_THRESHOLD_=65536 and
MALLOC_TRIM_THRESHOLD_=65536 in front, glibc gives back what is freed, and without them it keeps some of it.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.common import command, machine, positive

SHORT = ["data.train={data}/wiki-en/test.parquet", "tokenizer.vocab_size=4096"]
CASES: dict[str, tuple[str, list[str]]] = {
    "encoder": ("pretrain_bert", [*SHORT, "train.steps=30", "train.batch_size=8"]),
    "encoder, rate falls, 2 accumulated": (
        "pretrain_bert",
        [*SHORT, "train.steps=20", "train.batch_size=6", "train.accumulate=2", "collator.rate_end=0.1"],
    ),
    "encoder, 40 s": ("pretrain_bert", [*SHORT, "train.budget=40s"]),
    "decoder": ("pretrain_gpt", [*SHORT, "train.steps=30", "train.batch_size=4"]),
    "encoder-decoder": ("pretrain_t5", [*SHORT, "train.steps=40", "train.batch_size=4"]),
    "generator, discriminator": ("pretrain_electra", [*SHORT, "train.steps=40", "train.batch_size=4"]),
    "teacher": ("pretrain_bert", [*SHORT, "objective.name=data2vec", "train.steps=30", "train.batch_size=6"]),
    "classifier": (
        "finetune_classification",
        ["data.train={data}/banking77/train.jsonl", "train.steps=120", "data.valid_fraction=0.05",
         "tokenizer.vocab_size=4096"],
    ),
    "ranker": (
        "finetune_ranking",
        ["data.train={data}/debian-pairs/dev.parquet", 'data.columns={"query": "summary", "positive": "description"}',
         "train.epochs=1", "train.batch_size=32", "model.size=tiny", "tokenizer.vocab_size=4096"],
    ),
}  # fmt: skip


def plan_once(recipe: str, keys: list[str]) -> dict[str, Any]:
    """The plan by wall clock, and by CPU seconds."""
    from sslnlp import budget
    from sslnlp.recipe import load_recipe
    from sslnlp.recipe.plan import plan

    nowhere = Console(file=open(os.devnull, "w"))  # noqa: SIM115
    wall = plan(load_recipe(recipe, keys), console=nowhere)
    budget.clock = time.process_time
    cpu = plan(load_recipe(recipe, keys), console=nowhere)
    budget.clock = time.perf_counter  # the run that follows keeps to its budget by wall clock
    return {"wall": wall, "cpu": cpu}


def run_once(recipe: str, keys: list[str]) -> dict[str, Any]:
    """The run's seconds: of `Trainer.fit`, and from the loaded recipe to the export."""
    from sslnlp.recipe import load_recipe, run
    from sslnlp.train import Trainer

    found: dict[str, Any] = {}
    fit = Trainer.fit

    def timed(trainer: Trainer, resume: bool = False) -> Any:
        began = time.perf_counter(), time.process_time()
        result = fit(trainer, resume)
        found["training"] = time.perf_counter() - began[0], time.process_time() - began[1]
        found["updates"] = trainer.progress.steps
        return result

    Trainer.fit = timed  # type: ignore[method-assign]
    began = time.perf_counter(), time.process_time()
    run(load_recipe(recipe, keys), console=Console(quiet=True))
    return found | {"all": (time.perf_counter() - began[0], time.process_time() - began[1])}


def _pair(recipe: str, keys: list[str]) -> dict[str, Any]:
    """`plan_once`, then `run_once`, in a process of their own."""
    command = [sys.executable, "-m", "benchmarks.plan", "--pair", json.dumps([recipe, keys])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{recipe} {' '.join(keys)}:\n{done.stderr[-3000:]}")
    plans, actual = json.loads(done.stdout.splitlines()[-1])
    return compare(plans, actual) | {"plan": plans}


@contextlib.contextmanager
def _locked(path: Path | None) -> Iterator[None]:
    """Alone on the machine, as far as the others ask for the same lock; a plan and its run are not parted."""
    with contextlib.ExitStack() as stack:
        if path is not None:
            fcntl.flock(stack.enter_context(path.open("a")), fcntl.LOCK_EX)
        yield


def compare(plans: dict[str, Any], actual: dict[str, Any]) -> dict[str, Any]:
    """Predicted and actual seconds, their ratios, and counted against measured bytes."""
    row: dict[str, Any] = {"updates": (plans["wall"]["updates"], actual["updates"])}
    for place, clock in enumerate(("wall", "cpu")):
        for ours, theirs in (("training", "training"), ("expected_time", "all")):
            predicted, taken = plans[clock][ours], actual[theirs][place]
            row[f"{theirs}_{clock}"] = {"predicted": predicted, "actual": taken, "ratio": predicted / taken}
    return row | {"memory": compare_memory(plans["wall"])}


def compare_memory(plan: dict[str, float]) -> dict[str, float]:
    """Bytes that were counted, and those by which the process grew beyond what it had before the model."""
    counted, grown = plan["memory"], plan["peak_memory"] - plan["before_the_model"]
    return {"counted": counted, "measured": grown, "ratio": counted / grown}


def show(name: str, rows: list[dict[str, Any]], table: Table) -> None:
    for row in rows:
        seconds = [row[f"{what}_{clock}"] for what in ("training", "all") for clock in ("wall", "cpu")]
        memory = row["memory"]
        table.add_row(
            name,
            "{:,.0f} / {:,.0f}".format(*row["updates"]),
            *(f"{s['predicted']:.1f} / {s['actual']:.1f} = {s['ratio']:.2f}" for s in seconds),
            f"{memory['counted'] / 1e6:,.0f} / {memory['measured'] / 1e6:,.0f} = {memory['ratio']:.2f}",
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="folder of the data")
    parser.add_argument("--rounds", type=positive, default=2)
    parser.add_argument("--only", nargs="+", default=list(CASES), choices=list(CASES), metavar="CASE")
    parser.add_argument("--keys", nargs="*", default=[], help="further key=value of every recipe")
    parser.add_argument("--lock", type=Path, help="a file that others who measure on this machine lock too")
    parser.add_argument("--out", type=Path, help="stem of the JSON file")
    options = parser.parse_args()
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in options.only}
    table = Table("recipe", "updates", "training, s", "training, CPU s", "all, s", "all, CPU s", "memory, MB")
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.rounds):
            for name in options.only:
                recipe, keys = CASES[name]
                keys = [key.replace("{data}", options.data) for key in keys] + [f"data.cache={folder}/cache"]
                keys += [*options.keys, f"out={folder}/{number}-{list(CASES).index(name)}"]
                with _locked(options.lock):
                    found[name].append(_pair(recipe, keys))
                print(name, json.dumps({k: v for k, v in found[name][-1].items() if k != "plan"}), flush=True)
    for name, rows in found.items():
        show(name, rows, table)
    Console(width=170).print(table)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        story = {"setup": machine(1), "command": "python -m benchmarks.plan", "cases": CASES, "rounds": found}
        options.out.with_suffix(".json").write_text(json.dumps(story, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--pair"]:
        print(json.dumps([step(*json.loads(sys.argv[2])) for step in (plan_once, run_once)]))
    else:
        command(main)
