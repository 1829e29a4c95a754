"""From what a person types to a `Recipe`: a shipped name, a .py file, a run's recipe.json."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import sslnlp
from sslnlp.errors import UserError, suggest
from sslnlp.recipe.overrides import parse
from sslnlp.recipe.schema import Recipe, from_dict, override
from sslnlp.recipe.unused import check_unused


def shipped() -> dict[str, Path]:
    """The recipes that come with the package, by name: inside an installed wheel, or at the top of a checkout."""
    package = Path(sslnlp.__file__).resolve().parent
    for folder in (package / "_recipes", package.parent / "recipes"):
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("[a-z]*.py"))}
    return {}


def load_recipe(what: str, arguments: Sequence[str] = ()) -> Recipe:
    """The recipe called `what` with `key=value` arguments applied.

    `what` is a shipped name, a .py file that defines `recipe() -> Recipe`, or a recipe.json (or the folder of the
    run or export that holds one). Anything else, or a file that does not load, is a `UserError`.
    """
    pairs = parse(arguments)
    path = Path(what).expanduser()
    if path.is_dir() and (path / "recipe.json").is_file():
        path = path / "recipe.json"
    if path.suffix == ".json":
        recipe = from_dict(read_biography(path)["recipe"])
    elif path.suffix == ".py":
        recipe = _from_python(path)
    elif what in (names := shipped()):
        recipe = _from_python(names[what])
    else:
        raise UserError(f"unknown recipe {what!r}.{suggest(what, names)} A .py file or a run's recipe.json works too.")
    recipe = override(recipe, pairs)
    check_unused(recipe, pairs)
    return recipe


def read_biography(path: Path) -> dict[str, Any]:
    """The content of a recipe.json; `UserError` when it is missing or is not one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"recipe {str(path)!r} does not exist") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"cannot read recipe {str(path)!r}: {error}") from None
    if not isinstance(content, dict) or not isinstance(content.get("recipe"), dict):
        raise UserError(f"{str(path)!r} is not a recipe.json written by sslnlp (no 'recipe' in it)")
    return content


def read_result(run: str | Path) -> dict[str, Any]:
    """What the finished run in the folder `run` reached: `steps`, `tokens_seen`, `measures` (held-out figures by name),
    `samples` and `notes`. Raises UserError for a folder without a run, and for a run that has not finished."""
    result: dict[str, Any] | None = read_biography(Path(run) / "recipe.json").get("result")
    if result is None:
        raise UserError(f"the run in {str(run)!r} has not finished: the same command with --resume goes on with it")
    return result


def _from_python(path: Path) -> Recipe:
    if not path.is_file():
        raise UserError(f"recipe {str(path)!r} does not exist")
    module = _execute(path)
    function = getattr(module, "recipe", None)
    if not callable(function):
        raise UserError(f"{str(path)!r} defines no function recipe() that returns a sslnlp.recipe.Recipe")
    try:
        recipe = function()
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"recipe() in {str(path)!r} raised {type(error).__name__}: {error}") from error
    if not isinstance(recipe, Recipe):
        raise UserError(f"recipe() in {str(path)!r} returned {type(recipe).__name__}, not a sslnlp.recipe.Recipe")
    return dataclasses.replace(recipe, name=path.stem) if recipe.name == "recipe" else recipe


def _execute(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"sslnlp_recipe_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"cannot read {str(path)!r} as Python")
    module = importlib.util.module_from_spec(spec)
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # leave nothing beside the person's file
    try:
        spec.loader.exec_module(module)
    except UserError:
        raise
    except Exception as error:
        line = getattr(error, "lineno", None)
        where = f", line {line}" if line else ""
        raise UserError(f"{str(path)!r}{where}: {type(error).__name__}: {error}") from error
    finally:
        sys.dont_write_bytecode = before
    return module
