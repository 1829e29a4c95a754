"""A run's folder: what it says about the run. Without torch, so that a folder that is none is told at once."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sslnlp.errors import UserError
from sslnlp.evaluation.chance import at_chance, loss_of
from sslnlp.metrics import read_metrics

TRAINING, HELD_OUT = "train/", "valid/"
"""Prefixes of the numbers in metrics.jsonl: means since the last log, and figures of held-out data."""
MEASURED = HELD_OUT + "report/"
"""The latter's that belong to the report card (`report.every`)."""


@dataclass
class RunFacts:
    """What a run's folder says about the run."""

    name: str
    path: Path
    biography: Mapping[str, Any]
    """recipe.json: the resolved recipe, versions, data fingerprint."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """metrics.jsonl, one entry a step, in order."""

    @property
    def objective(self) -> str:
        return str(self.recipe.get("objective", {}).get("name", ""))

    @property
    def recipe(self) -> Mapping[str, Any]:
        plain: Mapping[str, Any] = self.biography.get("recipe", {})
        return plain

    def series(self, key: str) -> list[tuple[float, float]]:
        """(step, value) of one logged number."""
        return [(line["step"], line[key]) for line in self.history if _is_number(line.get(key))]

    def at_chance(self, key: str) -> str | None:
        """What is wrong when the training loss stayed at what was logged under `key` (`evaluation.chance`)."""
        lines = [line for line in self.history if _is_number(line.get(key)) and _is_number(line.get(loss_of(key)))]
        return at_chance([line[loss_of(key)] for line in lines], [line[key] for line in lines])

    def held_out(self) -> dict[str, float]:
        """The held-out figures of the weights that were left behind; of a run still going, the newest of each."""
        if result := self.biography.get("result"):
            return dict(result.get("measures", {}))
        newest: dict[str, float] = {}
        for line in self.history:
            figures = {k: v for k, v in line.items() if k.startswith(HELD_OUT)}
            # One that is not finite stands there as text, and is no reason to show the one before it.
            newest.update({key.removeprefix(HELD_OUT): float(value) for key, value in figures.items()})
        return newest


def read_run(run: Path) -> RunFacts:
    """Read a run's folder. Raises UserError when it holds no recipe.json, or one that cannot be read."""
    path = run / "recipe.json"
    if not path.is_file():
        raise UserError(f"{str(run)!r} is not a run's folder (no recipe.json in it); give the `out` of a training run")
    try:
        biography = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {str(path)!r}: {error}") from None
    if not (isinstance(biography, dict) and isinstance(biography.get("recipe", {}), dict)):
        raise UserError(f"{str(path)!r} is not what a run writes; give the `out` of a training run")
    return RunFacts(run.name, run, biography, _history(run / "metrics.jsonl"))


def run_of(folder: Path) -> Path:
    """The run's folder, where `folder` is its export. Raises UserError for the export of a run that is not here: what
    is written into an export would be published with it."""
    if not is_export(folder):
        return folder
    parent = folder.resolve().parent
    if folder.resolve().name == "export" and (parent / "recipe.json").is_file():
        return parent
    raise UserError(f"{str(folder)!r} is an export without its run; give the run's folder, which holds export/")


def is_export(folder: Path) -> bool:
    """Whether a folder is a model's, as the `export/` of a run."""
    return (folder / "config.json").is_file()


def read_runs(folders: Sequence[Path]) -> list[RunFacts]:
    """`read_run` of each, under names that differ: of folders of one name, as many of the parents as it takes."""
    runs = [read_run(folder) for folder in folders]
    full = [folder.resolve().parts for folder in folders]
    for run, parts in zip(runs, full, strict=True):
        length = 1
        while sum(other[-length:] == parts[-length:] for other in set(full)) > 1:
            length += 1
        run.name = "/".join(parts[-length:])
    return runs


def _history(path: Path) -> list[dict[str, Any]]:
    by_step: dict[int, dict[str, Any]] = {}
    for line in read_metrics(path):
        if isinstance(line.get("step"), int):
            by_step.setdefault(line["step"], {}).update(line)
    return [by_step[step] for step in sorted(by_step)]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
