"""Pictures found by words: train on the pictures of some vendors, search those of another.

    python -m benchmarks.image_text DATA [--train google,twitter] [--test openmoji] [--caption caption]
        [--tower NAME=PATH ...] [--objective clip] [--steps 600] [--batch 128] [--vision tiny] [--seeds 3] [--out DIR]

DATA holds one parquet file a vendor, of the same emoji: every picture of the test vendor is of a known thing in a style
that was never seen. The text tower is a fresh BERT; each `--tower NAME=PATH` names an export to start from beside it.
Recall of the test vendor's pictures by their captions and the other way round, over all of them.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from sslnlp.recipe import load_recipe, run

SHOWN = (
    *("text_to_image_recall@1", "text_to_image_recall@5", "text_to_image_median_rank"),
    *("image_to_text_recall@1", "image_to_text_recall@5", "image_to_text_median_rank"),
    *("chance_median_rank", "loss", "chance_loss"),
)


def measure(options: argparse.Namespace, tower: str | None, seed: int, out: Path) -> dict[str, float]:
    """The held-out figures of one run; of one that is there already, without running it again."""
    biography = out / "recipe.json"
    if not (biography.is_file() and "result" in json.loads(biography.read_text())):
        train = [str(options.data / f"{vendor}.parquet") for vendor in options.train.split(",")]
        keys = [
            f"data.train={json.dumps(train)}",
            f"data.valid={options.data / options.test}.parquet",
            f"data.columns.caption={options.caption}",
            f"objective.name={options.objective}",
            f"objective.vision={options.vision}",
            f"train.steps={options.steps}",
            f"train.batch_size={options.batch}",
            f"train.seed={seed}",
            # The test pictures choose nothing.
            *("train.keep_best=false", "train.eval_every=1000000", "train.save_every=1000000"),
            f"out={out}",
        ]
        keys += [f"model.pretrained={tower}"] if tower is not None else [f"model.size={options.size}"]
        began = time.monotonic()
        run(load_recipe("clip_image_text", keys))
        (out / "seconds.txt").write_text(f"{time.monotonic() - began:.0f}\n")
    measures: dict[str, float] = json.loads(biography.read_text())["result"]["measures"]
    return measures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--train", default="google,twitter")
    parser.add_argument("--test", default="openmoji")
    parser.add_argument("--caption", default="caption")
    parser.add_argument("--tower", action="append", default=[])
    parser.add_argument("--objective", default="clip")
    parser.add_argument("--vision", default="tiny")
    parser.add_argument("--size", default="tiny")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("out/image_text"))
    options = parser.parse_args()
    towers: dict[str, str | None] = {"untrained": None, **dict(text.split("=", 1) for text in options.tower)}
    table = Table(
        "text tower",
        *(name.replace("_", " ") for name in SHOWN),
        title=f"{options.objective}, {options.train} → {options.test}, ×100 for recalls",
    )
    for name, tower in towers.items():
        found = [
            measure(options, tower, seed, options.out / f"{options.objective}-{options.caption}-{name}-{seed}")
            for seed in range(options.seeds)
        ]
        cells = []
        for figure in SHOWN:
            values = np.array([measures[figure] for measures in found]) * (100 if "recall" in figure else 1)
            spread = f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else ""
            cells.append(f"{values.mean():.2f}{spread}" if "loss" in figure else f"{values.mean():.1f}{spread}")
        table.add_row(name, *cells)
    Console(width=200).print(table)


if __name__ == "__main__":
    main()
