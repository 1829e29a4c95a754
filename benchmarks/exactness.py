"""The same 32 rows, split in four ways: how far gradients and weights differ, for every objective and head.

    python -m benchmarks.exactness

1×32 in one process is the reference; 4×8 and 8×4 accumulate; 2p×16 is two gloo processes under `accelerate launch`.
"gradient" is the largest difference of the first update's gradient, relative to its largest entry; "weights" the
largest absolute difference after five AdamW updates (lr 1e-3), dropout 0.1 on. Objectives that compare rows with each
other (in-batch negatives) are compared over processes only: accumulating gives them other negatives.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.common import command
from sslnlp.objectives import OBJECTIVES, get_objective
from tests.contract import architectures, make_trainer

SPLITS = {"1×32": (32, 1), "4×8": (8, 4), "8×4": (4, 8), "2p×16": (16, 1)}


def measure(name: str, architecture: str, size: int, accumulate: int, out: Path) -> dict[str, Any]:
    """The first gradient and the weights after five updates."""
    trainer = make_trainer(
        name, out, architecture=architecture, dropout=0.1, batch_size=size, accumulate=accumulate, steps=5, eps=1e-8
    )
    gradient: dict[str, torch.Tensor] = {}
    update = trainer.optimizer.step

    def note(*args: Any, **kwargs: Any) -> Any:
        if not gradient:
            gradient.update({n: p.grad.clone() for n, p in trainer.objective.named_parameters() if p.grad is not None})
        return update(*args, **kwargs)

    trainer.optimizer.step = note  # type: ignore[method-assign]
    weights = trainer.fit().state_dict()
    return {"gradient": gradient, "weights": weights, "main": trainer.accelerator.is_main_process}


def worker(folder: Path) -> None:
    """One of the two processes: all cases of the two-process column."""
    for name in sorted(OBJECTIVES):
        for architecture in architectures(name):
            size, accumulate = SPLITS["2p×16"]
            result = measure(name, architecture, size, accumulate, folder / f"{name}-{architecture}")
            if result.pop("main"):
                torch.save(result, folder / f"{name}-{architecture}.pt")


def largest(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return max(float((a[n].double() - b[n].double()).abs().max()) for n in a)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.worker:
        worker(arguments.worker)
        return
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
    table = Table("objective", "architecture", "split", "gradient", "weights", title="differences from 1×32")
    figures = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        # `--cpu` alone starts one process; this is what starts several without a GPU.
        launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
        launcher += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
        subprocess.run(
            [*launcher, "-m", "benchmarks.exactness", "--worker", str(folder)],
            check=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        )
        for name in sorted(OBJECTIVES):
            splits = ["2p×16"] if get_objective(name).couples_rows else ["4×8", "8×4", "2p×16"]
            for architecture in architectures(name):
                one = measure(name, architecture, 32, 1, folder / "one")
                scale = max(float(g.abs().max()) for g in one["gradient"].values())
                for split in splits:
                    if split == "2p×16":
                        other = torch.load(folder / f"{name}-{architecture}.pt")
                    else:
                        other = measure(name, architecture, *SPLITS[split], folder / split)
                    line = {
                        "objective": name,
                        "architecture": architecture,
                        "split": split,
                        "gradient": largest(one["gradient"], other["gradient"]) / scale,
                        "weights": largest(one["weights"], other["weights"]),
                    }
                    figures.append(line)
                    table.add_row(name, architecture, split, f"{line['gradient']:.1e}", f"{line['weights']:.1e}")
    Console(width=100).print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    command(main)
