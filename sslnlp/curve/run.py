"""Measure every cell, one run at a time, and write the table and the figure."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from sslnlp.curve.cells import FRESH, LEXICAL, Cell, Measured, Results, cells, check_test_rows
from sslnlp.curve.page import write_page
from sslnlp.data.labelled import labelled
from sslnlp.data.table_rows import TableRows
from sslnlp.errors import UserError
from sslnlp.evaluation.baselines import largest_class, tfidf_logreg
from sslnlp.recipe import Recipe, override, read_result, run
from sslnlp.recipe.build import cache_folder
from sslnlp.recipe.checks import check_recipe
from sslnlp.train import NonFiniteError

Told = Callable[[Measured, int, int], None]


def label_curve(
    methods: Mapping[str, Recipe],
    out: Path,
    *,
    labels: list[int | None],
    draws: int = 5,
    seeds: int = 3,
    keep: bool = False,
    told: Told = lambda found, done, total: None,
) -> Path:
    """Train and measure every method on `draws` × `seeds` few-label training sets; returns the path of report.html.

    TF-IDF with logistic regression stands beside them, the first method from fresh weights (`untrained`), and what
    always saying the largest class of the test rows reaches. All figures are of `data.valid`, which chooses nothing: no
    stopping, no best checkpoint. What is measured is kept in `results.jsonl` at once, and a call with the same `out`
    goes on where the last one was stopped. `keep` leaves each run's folder (its export among it) under `out/runs`.

    Raises `UserError`, before anything is trained, for recipes without data or that are no classifiers.
    """
    ready = {name: _prepared(recipe) for name, recipe in methods.items()}
    first = next(iter(ready.values()))
    everything: dict[str, Recipe | None] = {LEXICAL: None, **ready}
    if first.model.pretrained is not None:
        everything[FRESH] = _fresh(first)
    rows = labelled(replace(first.data, labels_per_class=None), cache_dir=cache_folder(first))
    read = {name: rows.facts[name] for name in ("fingerprint", "valid_fingerprint", "columns")}
    results = Results(out, everything, read)
    todo = list(cells(everything, labels, draws, seeds))
    for number, cell in enumerate(todo, start=1):
        if cell not in results.done:
            recipe = everything[cell.method]
            began = time.monotonic()
            found = _lexical(cell, first) if recipe is None else _measure(cell, recipe, out / "runs", keep)
            found.seconds = time.monotonic() - began
            results.add(found)
        told(results.done[cell], number, len(todo))
    assert rows.valid is not None
    largest = largest_class(rows.valid.extra["label"].tolist())
    return write_page(results, list(everything), labels, [*rows.counts.values()], out, largest=largest)


def _prepared(recipe: Recipe) -> Recipe:
    """The recipe with nothing chosen by the held-out rows, which are the test rows here."""
    check_test_rows(recipe.data)
    if recipe.collator_class.label_kind != "one":
        raise UserError(
            f"a label curve is of classifiers with one class a text, not of objective {recipe.objective.name!r}"
        )
    pairs = {"train.keep_best": False, "train.eval_every": 1_000_000, "train.save_every": 1_000_000}
    recipe = override(recipe, pairs)
    check_recipe(override(recipe, {}))
    return recipe


def _fresh(recipe: Recipe) -> Recipe:
    """The same model from random weights: its own configuration and tokenizer, no weights."""
    return replace(recipe, model=replace(recipe.model, fresh=True))


def _measure(cell: Cell, recipe: Recipe, folder: Path, keep: bool) -> Measured:
    place = folder / cell.name.replace(", ", "-").replace(" ", "-")
    shutil.rmtree(place, ignore_errors=True)
    pairs = {"data.labels_per_class": cell.labels, "data.draw": cell.draw, "train.seed": cell.seed, "out": str(place)}
    try:
        run(override(recipe, pairs), console=Console(quiet=True))
    except NonFiniteError as error:
        return Measured(cell, error=str(error))
    measures = read_result(place)["measures"]
    if not keep:
        shutil.rmtree(place, ignore_errors=True)
    return Measured(cell, measures)


def _lexical(cell: Cell, recipe: Recipe) -> Measured:
    data = replace(recipe.data, labels_per_class=cell.labels, draw=cell.draw)
    tables = labelled(data, cache_dir=cache_folder(recipe))
    assert tables.valid is not None
    return Measured(cell, tfidf_logreg(*_split(tables.train), *_split(tables.valid)))


def _split(rows: TableRows) -> tuple[list[str], list[int]]:
    found = rows.rows(range(len(rows)))
    return [" ".join(row[name] for name in rows.columns) for row in found], [row["label"] for row in found]
