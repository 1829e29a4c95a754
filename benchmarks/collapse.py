"""How far the figures of the collapse alarm fall, in runs that collapse and in runs that do not.

    python -m benchmarks.collapse TEXT.parquet [--seeds 10] [--steps 100] [--only NAME ...] [--out FILE.json]

Every objective between views with the recipes' views and schedule and the default cadence of logs, on a small model,
fresh and from a short masked LM; and the same with what keeps it from a collapse taken away. `caught` counts the runs
in which the alarm was raised, `at` the median of the steps. The other columns are what is left of a figure when it is
lowest: the lowest share of its best so far under which it stayed for `PATIENCE` logs in a row, from the lowest to the
highest over the seeds.
The alarm is raised at `FALLEN`: above the least share of runs that collapse, and below those of healthy ones.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, AutoModelForMaskedLM

from benchmarks.common import command, positive
from sslnlp import rng
from sslnlp.collators import get_collator
from sslnlp.data.packing import PackedRows
from sslnlp.data.stream import Stream
from sslnlp.data.tokens import build_store
from sslnlp.evaluation.collapse import FIGURES, FLOOR, PATIENCE, CollapseWatch
from sslnlp.metrics import read_metrics
from sslnlp.models import ModelConfig, build_model
from sslnlp.objectives import get_objective
from sslnlp.tokenizer import framing, set_framing, train_tokenizer
from sslnlp.train import TrainConfig, Trainer

LENGTH = 32
BATCH = 16
CROPS = {"views": ["crop+delete", "crop+delete"], "crop_min": 0.2, "crop_max": 0.6}
TWINS = {"views": ["text", "text"]}
RUNS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    # title -> objective, its options, the collator's options
    "info_nce, twins": ("info_nce", {"pooling": "cls"}, TWINS),
    "info_nce": ("info_nce", {}, CROPS),
    "moco": ("moco", {"queue": 256}, CROPS),
    "byol": ("byol", {}, CROPS),
    "barlow_twins": ("barlow_twins", {}, CROPS),
    "vicreg": ("vicreg", {}, CROPS),
}
COLLAPSING: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "byol, no predictor, no slow copy": ("byol", {"momentum": 0.0, "momentum_end": 0.0}, CROPS),
    "vicreg, variance 0": ("vicreg", {"variance": 0.0}, CROPS),
    "vicreg, variance and covariance 0": ("vicreg", {"variance": 0.0, "covariance": 0.0}, CROPS),
    "barlow_twins, off_diagonal 0": ("barlow_twins", {"off_diagonal": 0.0}, CROPS),
}


class Bench:
    """The text, the tokenizer, and where masked LM gets in a few updates."""

    def __init__(self, file: Path, column: str, architecture: str, folder: Path) -> None:
        import pyarrow.parquet

        texts = pyarrow.parquet.read_table(file, columns=[column])[column].to_pylist()
        self.folder, self.architecture = folder, architecture
        self.tokenizer = train_tokenizer(texts, vocab_size=2048)
        self.store = build_store(texts, self.tokenizer, folder / "store", fingerprint="collapse")
        model = self.model(ModelConfig(architecture=architecture, size="nano"), AutoModelForMaskedLM, 0)
        objective = get_objective("masked_lm")(model)
        self.train(objective, {}, folder / "mlm", steps=400, lr=2e-3, batch_size=32, save_every=400)
        objective.exported.save_pretrained(folder / "start")

    def model(self, config: ModelConfig, auto: Any, seed: int) -> Any:
        return build_model(config, self.tokenizer, auto, max_length=LENGTH, seed=seed)

    def train(self, objective: Any, options: Mapping[str, Any], out: Path, **config: Any) -> list[dict[str, Any]]:
        tokenizer = set_framing(self.tokenizer, objective.framing)
        seed = config.get("seed", 0)
        collator = get_collator(objective.collator)(tokenizer=tokenizer, seed=seed, **options)
        frame = framing(tokenizer, objective.framing)
        rows = PackedRows(self.store, LENGTH, frame.prefix, frame.suffix, suffix_every_piece=True)
        Trainer(objective, collator, Stream(rows, seed), TrainConfig(**config), out=out).fit()
        return read_metrics(out / "metrics.jsonl")

    def run(self, title: str, start: str, seed: int, steps: int, lr: float) -> list[dict[str, float]]:
        """The figures of every log of a run."""
        name, options, views = (RUNS | COLLAPSING)[title]
        pretrained = None if start == "fresh" else str(self.folder / "start")
        dropout = 0.1 if views == TWINS else 0.0
        config = ModelConfig(architecture=self.architecture, size="nano", dropout=dropout, pretrained=pretrained)
        model = self.model(config, AutoModel, seed)
        torch.manual_seed(rng.key(seed, "objective"))
        objective: Any = get_objective(name)(model, **options)
        if "no predictor" in title:
            objective.predictor = nn.Identity()
        with tempfile.TemporaryDirectory() as out:
            lines = self.train(
                objective, views, Path(out), steps=steps, batch_size=BATCH, lr=lr, schedule="cosine", warmup=0.1,
                seed=seed, save_every=steps,
            )  # fmt: skip
        return [{key.removeprefix("train/"): value for key, value in line.items()} for line in lines]


def left(values: Sequence[float], floor: float) -> float:
    """The lowest share of its best so far under which a figure stayed for `PATIENCE` logs in a row.

    As the alarm has it, its best is where it began or what it has held for as many.
    """
    above = [value - floor for value in values]
    best, lowest = above[0], 1.0
    for i in range(PATIENCE, len(above) + 1):
        recent = above[i - PATIENCE : i]
        best = max(best, min(recent))
        lowest = min(lowest, max(recent) / best) if best > 0 else lowest
    return lowest


def alarm(lines: Sequence[Mapping[str, float]]) -> int | None:
    """The step at which the run was accused."""
    watch = CollapseWatch()
    return next((int(line["step"]) for line in lines if watch(int(line["step"]), line)), None)


def summary(runs: Sequence[Sequence[Mapping[str, float]]]) -> dict[str, Any]:
    alarms = [step for run in runs if (step := alarm(run)) is not None]
    facts: dict[str, Any] = {"runs": len(runs), "caught": len(alarms), "steps": sorted(alarms)}
    facts["at"] = statistics.median(alarms) if alarms else None
    for figure in FIGURES:
        if figure in runs[0][0]:
            shares = sorted(left([line[figure] for line in run], FLOOR.get(figure, 0.0)) for run in runs)
            facts[figure] = [shares[0], shares[-1]]
    return facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--column", default="text")
    parser.add_argument("--seeds", type=positive, default=10)
    parser.add_argument("--steps", type=positive, default=100)
    parser.add_argument("--architecture", default="bert")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--only", nargs="*", choices=[*RUNS, *COLLAPSING])
    parser.add_argument("--starts", nargs="*", choices=["fresh", "masked_lm"], default=["fresh", "masked_lm"])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    told = {name: getattr(arguments, name) for name in ("architecture", "seeds", "steps", "lr")}
    found: dict[str, Any] = {**told, "runs": {}}
    print(f"{'':50}" + "".join(f"{title:>16}" for title in ("caught", "at", *FIGURES)))
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(arguments.file, arguments.column, arguments.architecture, Path(folder))
        for title in arguments.only or [*RUNS, *COLLAPSING]:
            for start in arguments.starts:
                seeds = range(arguments.seeds)
                runs = [bench.run(title, start, seed, arguments.steps, arguments.lr) for seed in seeds]
                facts = summary(runs)
                found["runs"][f"{title}, {start}"] = facts
                shares = [f"{facts[f][0]:.2f} to {facts[f][1]:.2f}" if f in facts else "" for f in FIGURES]
                cells = [f"{facts['caught']} of {len(runs)}", str(facts["at"] or ""), *shares]
                print(f"{title + ', ' + start:50}" + "".join(f"{cell:>16}" for cell in cells), flush=True)
                if arguments.out:
                    arguments.out.write_text(json.dumps(found))


if __name__ == "__main__":
    command(main)
