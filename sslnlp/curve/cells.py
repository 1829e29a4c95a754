"""What is to be measured: one cell for each method, number of labels, draw and seed; and what was measured already."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sslnlp.data import DataConfig
from sslnlp.errors import UserError
from sslnlp.recipe import Recipe, to_dict
from sslnlp.writing import naming, replacing, write_json

ALL = "all"
LEXICAL, FRESH = "TF-IDF + LR", "untrained"
"""The two baselines that stand beside every method."""
LARGEST = "largest class"
"""What always saying the most frequent class of the test rows reaches."""


@dataclass(frozen=True)
class Cell:
    """One training set and one seed for one method."""

    method: str
    labels: int | None
    """Of each class; None: all there are."""
    draw: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.method}, {self.labels or ALL} a class, draw {self.draw}, seed {self.seed}"


@dataclass
class Measured:
    """What came of a cell: held-out figures, or why there are none."""

    cell: Cell
    measures: dict[str, float] = field(default_factory=dict)
    error: str | None = None
    seconds: float = 0.0


def check_test_rows(data: DataConfig) -> None:
    """Refuse data without rows of its own to measure on."""
    if data.valid is None:
        raise UserError("a label curve needs test rows: give data.valid=FILE")


def parse_labels(text: str) -> list[int | None]:
    """`8,64,all` as numbers of labels a class, ascending, None for all. Raises `UserError` for anything else."""
    found: set[int] = set()
    parts = [part.strip() for part in text.split(",") if part.strip()]
    for part in parts:
        if part != ALL and not (part.isdigit() and int(part) > 0):
            raise UserError(f"--labels {text!r}: give numbers of labels a class, and all, such as 8,64,all")
        if part != ALL:
            found.add(int(part))
    if not parts:
        raise UserError("--labels is empty: give numbers of labels a class, such as 8,64,all")
    return [*sorted(found), *([None] if ALL in parts else [])]


def cells(methods: Mapping[str, Recipe | None], labels: Sequence[int | None], draws: int, seeds: int) -> Iterator[Cell]:
    """Every cell, so ordered that a run that is cut short has a little of everything.

    All labels are one draw. What no seed changes has one: TF-IDF (a method without a recipe), and heads that are fitted
    on an encoder which is not trained (`train.steps=0`).
    """
    for draw in range(draws):
        for number in labels:
            if number is None and draw:
                continue
            for method, recipe in methods.items():
                fixed = recipe is None or (recipe.train.steps == 0 and recipe.model.pretrained is not None)
                for seed in range(1 if fixed else seeds):
                    yield Cell(method, number, draw, seed)


class Results:
    """The cells measured so far, a line each in `results.jsonl`: a run that was stopped goes on from there."""

    def __init__(self, folder: Path, recipes: Mapping[str, Recipe | None], data: Any = None) -> None:
        """`data`: what tells the rows that are read from others. Raises `UserError` when the folder holds results of
        other rows or recipes."""
        self.path = folder / "results.jsonl"
        self.done: dict[Cell, Measured] = {}
        with naming(folder):
            folder.mkdir(parents=True, exist_ok=True)
        described = {name: data if recipe is None else _described(recipe) for name, recipe in recipes.items()}
        known = folder / "methods.json"
        before = json.loads(known.read_text(encoding="utf-8")) if known.is_file() else {}
        for name in described:
            if (told := before.get(name)) is not None and told != described[name]:
                if recipes[name] is None:  # the baseline, which stands in every folder
                    raise UserError(f"{folder} holds results of other texts or labels; choose another --out")
                raise UserError(
                    f"{folder} holds results of another method called {name!r}; choose another --out or name"
                )
        write_json(known, before | described)
        if self.path.is_file():
            text = self.path.read_text(encoding="utf-8")
            whole = text[: text.rfind("\n") + 1]
            for line in whole.splitlines():
                self._read(line)
            if whole != text:  # a line that a killed run left unfinished would spoil the next one
                with replacing(self.path) as file:
                    file.write(whole)

    def _read(self, line: str) -> None:
        try:
            plain = json.loads(line)
            found = Measured(Cell(**plain.pop("cell")), **plain)
        except (ValueError, TypeError, KeyError):
            raise UserError(f"{self.path} holds a line that is no result: {line[:80]!r}; remove it") from None
        if found.error is None:
            self.done[found.cell] = found

    def add(self, found: Measured) -> None:
        """Keep what came of a cell."""
        self.done[found.cell] = found
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(found)) + "\n")

    def of(self, method: str, labels: int | None) -> list[Measured]:
        """What was measured of a method with so many labels."""
        return [m for cell, m in self.done.items() if (cell.method, cell.labels) == (method, labels)]


def _described(recipe: Recipe) -> dict[str, Any]:
    plain = to_dict(recipe)
    plain.pop("out")
    return plain
