"""Do the fast paths learn as the slow ones do? Recipes trained twice with every update's loss written down.

    python -m benchmarks.paths DATA [--steps 200] [--bf16] [--out benchmarks/results/DATE-cpu/paths]

DATA is the folder with wiki-en and debian-pairs. A recipe is run in a process of its own as it comes, and in another
with the fast paths closed (tests/slow_paths.py says which): from the raw text on, so that what encodes is compared too.
"an update" is the largest difference of the losses of one update, "held out" that of the last evaluation, in nats; a
recipe that differs by more than the tolerance ends the command with 1.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.common import command, machine, positive

TOLERANCE = {"no": 1e-3, "bf16": 5e-2}
"""Nats that the losses of an update may differ by: sums in another order, carried on by all updates before."""
TEXT = ["data.train={data}/wiki-en/test.parquet", "tokenizer.vocab_size=4096", "model.size=tiny"]
PAIRS = ["data.train={data}/debian-pairs/dev.parquet", 'data.columns={"query": "summary", "positive": "description"}']
CASES: dict[str, tuple[str, list[str]]] = {
    "masked LM": ("pretrain_bert", [*TEXT, "train.batch_size=8"]),
    "masked LM, AdamW": ("pretrain_bert", [*TEXT, "train.batch_size=8", "train.optimizer=adamw", "train.lr=1e-3"]),
    "masked diffusion": ("pretrain_bert", [*TEXT, "train.batch_size=8", "objective.name=masked_diffusion"]),
    "sentence order": ("pretrain_bert", [*TEXT, "train.batch_size=8", "objective.name=sentence_order"]),
    "causal LM": ("pretrain_gpt", [*TEXT, "train.batch_size=4"]),
    "infilling": ("pretrain_gpt", [*TEXT, "train.batch_size=4", "objective.name=fim"]),
    "denoising": ("pretrain_bart", [*TEXT, "train.batch_size=4"]),
    "span corruption": ("pretrain_t5", [*TEXT, "train.batch_size=4"]),
    "hybrid": ("pretrain_hybrid", [*TEXT, "train.batch_size=4"]),
    "ranking": ("finetune_ranking", [*PAIRS, "tokenizer.vocab_size=4096", "model.size=tiny", "train.batch_size=16"]),
}


def run_once(recipe: str, keys: list[str], slow: bool) -> None:
    """The run, in this process, on either paths."""
    if slow:
        from tests import slow_paths

        slow_paths.take()
    from sslnlp.recipe import load_recipe, run

    run(load_recipe(recipe, keys), console=Console(quiet=True))


def curve(folder: Path, split: str) -> list[float]:
    """The losses that a run wrote down."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line[f"{split}/loss"] for line in lines if f"{split}/loss" in line]


def compare(recipe: str, keys: list[str], folder: Path) -> dict[str, Any]:
    """Both runs, and how far they are apart."""
    for path in ("fast", "slow"):
        own = [*keys, f"data.cache={folder}/{path}-cache", f"out={folder}/{path}"]
        command = [sys.executable, "-m", "benchmarks.paths", "--one", json.dumps([recipe, own, path == "slow"])]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{recipe} {' '.join(own)}:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = {}
    for split in ("train", "valid"):
        fast, slow = (curve(folder / path, split) for path in ("fast", "slow"))
        found[split] = {"losses": fast, "apart": [abs(a - b) for a, b in zip(fast, slow, strict=True)]}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="folder of the data")
    parser.add_argument("--steps", type=positive, default=200)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--only", nargs="+", default=list(CASES), choices=list(CASES), metavar="CASE")
    parser.add_argument("--out", type=Path, help="stem of the JSON file")
    options = parser.parse_args()
    precision = "bf16" if options.bf16 else "no"
    table = Table(
        "objective", "updates", "loss", "an update", "in the mean", "held out", title="fast against slow paths"
    )
    rows: dict[str, dict[str, Any]] = {}
    for name in options.only:
        recipe, keys = CASES[name]
        keys = [key.replace("{data}", options.data) for key in keys]
        keys += [f"train.steps={options.steps}", "train.log_every=1", f"train.precision={precision}"]
        with tempfile.TemporaryDirectory() as folder:
            rows[name] = compare(recipe, keys, Path(folder))
        losses, apart = rows[name]["train"]["losses"], rows[name]["train"]["apart"]
        figures = [f"{number:.1e}" for number in (max(apart), statistics.mean(apart), rows[name]["valid"]["apart"][-1])]
        table.add_row(name, str(len(apart)), f"{losses[0]:.2f} → {losses[-1]:.2f}", *figures)
        print(name, *figures, flush=True)
    Console(width=100).print(table)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        story = {"setup": machine(1), "command": "python -m benchmarks.paths", "cases": CASES, "found": rows}
        options.out.with_suffix(".json").write_text(json.dumps(story, indent=1) + "\n")
    far = [name for name, row in rows.items() if max(row["train"]["apart"]) > TOLERANCE[precision]]
    if far:
        raise SystemExit(f"further apart than {TOLERANCE[precision]} nats: {', '.join(far)}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        run_once(*json.loads(sys.argv[2]))
    else:
        command(main)
