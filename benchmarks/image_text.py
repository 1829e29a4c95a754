"""Pictures found by words: what the text tower's past, and self-supervision of the vision tower, bring.

    python -m benchmarks.image_text DATA [--train google,twitter] [--test openmoji] [--caption caption]
        [--tower NAME=PATH ... --locked NAME ...] [--vision plain,info_nce,rotation,masked_patches] [--objective clip]
        [--steps 600] [--before 600] [--batch 128] [--size tiny] [--patch 8] [--seeds 3] [--out DIR]
        [--key KEY=VALUE ...]

DATA holds one parquet file a vendor, of the same emoji. A fifth of the emoji, by a hash of their id, is never trained
on. The model sees those left of the training vendors, and then:

* style shift: the same emoji drawn by the test vendor are found by their captions, and captions by them;
* new concepts: the emoji never seen, drawn by the training vendors, are put into their group (ten classes) by its name
  alone (zero-shot), and by a linear probe on the training vendors' pictures.

The text tower is a fresh BERT; each `--tower NAME=PATH` names an export to start from beside it, which stays as it is
where it is `--locked`. `--vision`: how the
vision tower is pretrained on the training pictures before, for `--before` steps (`plain`: not at all). `--key` goes
to every run. What was measured is kept in `--out` and not measured again.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import itertools
import json
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from benchmarks.common import command, positive
from sslnlp.data.config import DataConfig
from sslnlp.data.pictured import PictureRows, pictured
from sslnlp.errors import suggest
from sslnlp.evaluation.probes import probe_measures
from sslnlp.evaluation.zero_shot import class_vectors, zero_shot_measures
from sslnlp.picture_encoder import PictureEncoder
from sslnlp.recipe import load_recipe, run

SHOWN = {
    "text_to_image_recall@1": "t→i R@1",
    "text_to_image_recall@5": "R@5",
    "text_to_image_median_rank": "median",
    "image_to_text_recall@1": "i→t R@1",
    "image_to_text_recall@5": "R@5",
    "image_to_text_median_rank": "median",
    "chance_median_rank": "chance",
    "loss": "loss",
    "chance_loss": "chance",
    "zero_shot_accuracy": "zero-shot",
    "linear_probe": "probe",
    "majority": "majority",
}
"""Figure -> heading. Recalls and accuracies are shown × 100."""
VISION = ("plain", "info_nce", "rotation", "masked_patches")
RANKS = ("median_rank", "loss")
QUIET = ("train.keep_best=false", "train.eval_every=1000000", "train.save_every=1000000", "train.schedule=cosine")
"""The test pictures choose nothing."""


def unseen(name: str) -> bool:
    """Whether an emoji is one of the fifth that is never trained on."""
    return hashlib.blake2b(name.encode(), digest_size=4).digest()[0] % 5 == 0


def parts(options: argparse.Namespace) -> dict[str, Path]:
    """Files of the pictures that are trained on, of those of the test vendor, and of the emoji never seen."""
    vendors = {"seen": options.train.split(","), "style": [options.test], "new": options.train.split(",")}
    found = {}
    for part, names in vendors.items():
        found[part] = options.out / f"{part}-{'-'.join(names)}.parquet"
        if not found[part].is_file():
            tables = [pq.read_table(options.data / f"{name}.parquet") for name in names]
            rows = [
                table.filter(pa.array([unseen(name) == (part == "new") for name in table["id"].to_pylist()]))
                for table in tables
            ]
            pq.write_table(pa.concat_tables(rows), found[part])
    return found


def vision(options: argparse.Namespace, files: dict[str, Path], kind: str, seed: int) -> list[str]:
    """Keys of the vision tower: a fresh one, or one that is pretrained first."""
    if kind == "plain":
        return [f"objective.vision={options.size}", f"objective.patch_size={options.patch}"]
    out = options.out / f"vision-{kind}-{seed}"
    if not (out / "export").is_dir():
        run(load_recipe("pretrain_vit", [*_vision_keys(options, kind), *_common(options, options.before, seed, out),
                                         f"data.train={files['seen']}"]))  # fmt: skip
    return [f"objective.vision={out / 'export'}"]


def _vision_keys(options: argparse.Namespace, kind: str) -> list[str]:
    keys = [f"model.size={options.size}", f"model.config.patch_size={options.patch}", "data.valid_fraction=0.05"]
    if kind in ("rotation", "masked_patches"):
        return [*keys, f"objective.name={kind}", f"collator.name={kind}"]
    return [*keys, "collator.crop_min=0.3", f"objective.name={kind}", "objective.pooling=cls"]


def _common(options: argparse.Namespace, steps: int, seed: int, out: Path) -> list[str]:
    settings = [f"train.steps={steps}", f"train.batch_size={options.batch}", f"train.seed={seed}", f"out={out}"]
    return [*settings, *QUIET, *options.keys]


def measure(options: argparse.Namespace, tower: tuple[str, str | None], kind: str, seed: int) -> dict[str, float]:
    """The figures of one cell; of one that is there already, without running it again."""
    name, path = tower
    out = options.out / f"{options.objective}-{options.caption}-{name}-{kind}-{seed}"
    kept = out / "figures.json"
    if kept.is_file():
        return dict(json.loads(kept.read_text()))
    files = parts(options)
    began = time.monotonic()
    keys = [f"data.train={files['seen']}", f"data.valid={files['style']}", f"data.columns.caption={options.caption}"]
    keys += [f"objective.name={options.objective}", *vision(options, files, kind, seed)]
    keys += [f"model.pretrained={path}"] if path is not None else ["model.size=tiny"]
    keys += ["objective.lock=text"] if name in options.locked else []
    run(load_recipe("clip_image_text", [*keys, *_common(options, options.steps, seed, out)]))
    figures = dict(json.loads((out / "recipe.json").read_text())["result"]["measures"])
    figures |= groups(PictureEncoder.load(str(out / "export")), files)
    kept.write_text(json.dumps(figures | {"seconds": time.monotonic() - began}, indent=2) + "\n")
    print(out.name, json.dumps({name: round(figures[name], 4) for name in SHOWN}), flush=True)
    return figures


@functools.cache
def labelled(seen: Path, new: Path) -> tuple[PictureRows, PictureRows, list[str]]:
    """The training pictures and those of new concepts, by group, and the names of the groups."""
    config = DataConfig(train=str(seen), valid=str(new), columns={"label": "group"}, deduplicate=False)
    read = pictured(config, captions_needed=False)
    assert read.valid is not None
    return read.train, read.valid, read.label_names


def groups(encoder: PictureEncoder, files: dict[str, Path]) -> dict[str, float]:
    """Accuracy of the groups of emoji that were never seen: by their names, by a linear probe, by the largest one."""
    train, test, names = labelled(files["seen"], files["new"])
    read = [rows.rows(range(len(rows))) for rows in (train, test)]
    vectors = [encoder.pictures([row["image"] for row in rows]) for rows in read]
    labels = [[row["label"] for row in rows] for rows in read]
    said = zero_shot_measures(vectors[1], class_vectors(encoder.texts, names), labels[1], names).figures
    probed = probe_measures(vectors[0], [names[c] for c in labels[0]], vectors[1], [names[c] for c in labels[1]])
    return {
        "zero_shot_accuracy": said["zero_shot_accuracy"].value,
        "linear_probe": probed["linear_probe"].value,
        "majority": said["zero_shot_majority"].value,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--train", default="google,twitter")
    parser.add_argument("--test", default="openmoji")
    parser.add_argument("--caption", default="caption")
    parser.add_argument("--tower", action="append", default=[])
    parser.add_argument("--locked", action="append", default=[], help="name of a tower that stays as it is")
    parser.add_argument("--fresh", action=argparse.BooleanOptionalAction, default=True, help="also a fresh text tower")
    parser.add_argument("--vision", default=",".join(VISION))
    parser.add_argument("--objective", default="clip")
    parser.add_argument("--size", default="tiny")
    parser.add_argument("--patch", type=positive, default=8)
    parser.add_argument("--steps", type=positive, default=600)
    parser.add_argument("--before", type=positive, default=600)
    parser.add_argument("--batch", type=positive, default=128)
    parser.add_argument("--seeds", type=positive, default=3)
    parser.add_argument("--out", type=Path, default=Path("out/image_text"))
    parser.add_argument("--key", dest="keys", action="append", default=[], help="KEY=VALUE of every run")
    options = parser.parse_args()
    for text in options.tower:
        if "=" not in text:
            parser.error(f"--tower {text}: write NAME=PATH")
    known = [text.split("=", 1)[0] for text in options.tower]
    for given, names in ((options.locked, known), (options.vision.split(","), VISION)):
        if wrong := [name for name in given if name not in names]:
            parser.error(f"there is no {wrong[0]!r}.{suggest(wrong[0], names)}")
    options.out.mkdir(parents=True, exist_ok=True)
    towers = [("untrained", None)] if options.fresh else []
    towers += [tuple(text.split("=", 1)) for text in options.tower]
    table = Table("text tower", "vision tower", *SHOWN.values(), title=f"{options.objective}, {options.caption}")
    cells = {(tower, kind): [] for tower in towers for kind in options.vision.split(",")}
    for seed, (tower, kind) in itertools.product(range(options.seeds), cells):
        cells[tower, kind].append(measure(options, tower, kind, seed))
    for (tower, kind), found in cells.items():
        shown = []
        for name in SHOWN:
            values = np.array([figures[name] for figures in found]) * (1 if name.endswith(RANKS) else 100)
            spread = f" ± {values.std(ddof=1):.1f}" if len(values) > 1 and "chance" not in name else ""
            shown.append(f"{values.mean():.2f}" if "loss" in name else f"{values.mean():.1f}{spread}")
        table.add_row(tower[0], kind, *shown)
    Console(width=220).print(table)


if __name__ == "__main__":
    command(main)
