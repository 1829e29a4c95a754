"""What can be wrong with a recipe as it was typed, told before anything is imported that takes seconds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sslnlp.data.config import DataConfig
from sslnlp.data.files import check_there, kind, look_up
from sslnlp.errors import UserError, suggest
from sslnlp.recipe.load import load_recipe
from sslnlp.recipe.schema import Recipe


def load_complete(what: str, arguments: Sequence[str]) -> Recipe:
    """`load_recipe`, for a command that goes on to read the data. Also a `UserError`: an incomplete recipe, and what
    `check_inputs` refuses."""
    recipe = load_recipe(what, arguments)
    check_complete(recipe)
    check_inputs(recipe)
    return recipe


def check_inputs(recipe: Recipe) -> None:
    """Refuse a model that a recipe names and that is not there, and such files, or empty ones."""
    if recipe.model.pretrained is not None:
        is_model_folder(recipe.model.pretrained)
    data, report = recipe.data, recipe.report
    check_there(data.train, data.valid, data.unlabelled, data.out_of_scope)
    _check_columns(data)
    check_there(report.texts, report.pictures, report.pairs, report.sts, report.probe_train, report.probe_test)


def _check_columns(data: DataConfig) -> None:
    """Refuse a column that a recipe names and no header of a table does; what needs rows waits for them."""
    given = {"text": data.text, "label": data.label, **{f"columns.{ours}": name for ours, name in data.columns.items()}}
    named = {key: name for key, name in given.items() if name is not None}
    specs = [data.train] if isinstance(data.train, str) else data.train or []
    tables = [path for spec in specs for path in look_up(spec) or () if kind(path) in (".csv", ".tsv", ".parquet")]
    if not tables or not named:
        return
    from sslnlp.data.readers import column_names

    there: dict[str, None] = {}
    for table in tables:
        there |= dict.fromkeys(column_names(kind(table), table))
        if there.keys() >= set(named.values()):
            return
    key, name = next((key, name) for key, name in named.items() if name not in there)
    where = specs[0] if len(specs) == 1 else "data.train"
    raise UserError(f"{where} has no column {name!r} ({data.name_of(key)}).{suggest(name, there)}")


def check_complete(recipe: Recipe) -> None:
    """Refuse a recipe that names no data to train on, or that does not say for how long."""
    if recipe.data.train is None:
        raise UserError("no training data: give data.train=FILE, a glob, a folder or a hub name")
    if all(value is None for value in (recipe.train.steps, recipe.train.epochs, recipe.train.budget)):
        raise UserError("say how long to train: train.steps=1000, train.epochs=3 or train.budget=10m")


def is_model_folder(name: str) -> bool:
    """Whether a `model.pretrained` is a folder here, else the name of a model on a hub. `UserError` for a folder that
    is not there or holds no model."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            hint = f"; its export is {name.rstrip('/')}/export" if (folder / "export" / "config.json").is_file() else ""
            raise UserError(f"model.pretrained={name} holds no config.json, so it is not a model{hint}")
        return True
    looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1
    if looks_local or folder.exists() or (folder.parent.is_dir() and folder.parent != Path(".")):
        raise UserError(f"model.pretrained={name} does not exist; give a run's export folder or a hub name")
    return False
