"""`sslnlp curve`: methods from the command line, progress, the table."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table as Grid

from sslnlp.curve.cells import FRESH, LARGEST, LEXICAL, Measured, check_test_rows, parse_labels
from sslnlp.errors import UserError
from sslnlp.quiet import progress_bar
from sslnlp.recipe import Recipe, load_recipe
from sslnlp.recipe.complete import check_inputs
from sslnlp.recipe.schema import DURATIONS

USUAL = (
    "frozen + LR: finetune_few_shot train.steps=0",
    "few-shot: finetune_few_shot",
    "fine-tuned: finetune_classification",
)
"""What is compared where nobody says what."""
_OPTIONS = {"out": "--out", "data.labels_per_class": "--labels", "data.draw": "--draws", "train.seed": "--seeds"}
"""Keys of a recipe that every cell has a value of its own for -> the option that says which."""


def curve(
    overrides: Sequence[str],
    methods: Sequence[str],
    out: Path,
    labels: str,
    draws: int,
    seeds: int,
    *,
    keep: bool = False,
    console: Console | None = None,
) -> Path:
    """Run it and print its table; returns the path of report.html."""
    console = console or Console(stderr=True)
    recipes: dict[str, Recipe] = {}
    for name, recipe in (parse_method(method, overrides) for method in methods or USUAL):
        if name in (*recipes, LEXICAL, FRESH, LARGEST):  # it would take the other's place in every table
            raise UserError(f"--method {name!r} is the name of another method; give each one of its own")
        recipes[name] = recipe
    numbers = parse_labels(labels)
    for recipe in recipes.values():
        check_inputs(recipe)
        check_test_rows(recipe.data)
    from sslnlp.curve.run import label_curve  # brings torch, without which the above is looked at

    with progress_bar(console) as progress:
        task = progress.add_task("", total=None)

        def told(found: Measured, done: int, total: int) -> None:
            said = found.error or f"accuracy {found.measures['accuracy']:.3f}"
            progress.update(task, completed=done, total=total, description=escape(f"{found.cell.name}: {said}"))

        page = label_curve(recipes, out, labels=numbers, draws=draws, seeds=seeds, keep=keep, told=told)
    _print(page, console)
    return page


def parse_method(text: str, overrides: Sequence[str]) -> tuple[str, Recipe]:
    """`NAME: RECIPE key=value ...` as a name and its recipe. A key of its own takes the place of a shared one."""
    name, colon, rest = text.partition(":")
    words = shlex.split(rest)
    if not colon or not name.strip() or not words:
        raise UserError(f"--method {text!r} is not 'NAME: RECIPE [key=value ...]'")
    own = words[1:]
    for given in [*overrides, *own]:
        if (option := _OPTIONS.get(given.partition("=")[0])) is not None:
            raise UserError(f"{given} would do nothing: a curve sets it for each of its runs; give {option}")
    taken = {_settled(given) for given in own}
    keys = [*(given for given in overrides if _settled(given) not in taken), *own]
    return name.strip(), load_recipe(words[0], keys)


def _settled(given: str) -> str:
    """What a `key=value` settles: its key, and whichever of three says it, how long to train."""
    key = given.partition("=")[0].strip()
    return "how long" if key in DURATIONS else key


def _print(page: Path, console: Console) -> None:
    import json

    for section in json.loads((page.parent / "report.json").read_text(encoding="utf-8"))["sections"]:
        for table in section["tables"]:
            grid = Grid(*map(escape, table["columns"]), title=escape(section["title"]), title_justify="left")
            for row in table["rows"]:
                grid.add_row(*(escape(str(cell)) for cell in row))
            console.print(grid)
