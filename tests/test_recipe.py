"""Recipes: strict keys, the JSON they become, and the shipped ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sslnlp.recipe import Options, Recipe, from_dict, load_recipe, override, shipped, to_dict


def test_override_changes_a_copy() -> None:
    recipe = load_recipe("pretrain_bert")
    changed = override(recipe, {"train.lr": "5e-4", "collator.rate": "0.2", "model.config.hidden_size": "96"})
    assert (changed.train.lr, changed.collator.options) == (5e-4, {"rate": 0.2, "replace": "bert"})
    assert changed.model.config == {"hidden_size": 96}
    assert (recipe.train.lr, recipe.model.config) == (4e-3, {})
    assert recipe.collator.options == {"rate": 0.3, "replace": "bert"}


def test_how_long_is_said_once() -> None:
    assert load_recipe("pretrain_bert").train.steps == 2000
    changed = load_recipe("pretrain_bert", ["train.budget=10m"]).train
    assert (changed.steps, changed.epochs, changed.budget) == (None, None, "10m")


def test_another_objective_forgets_the_options_of_the_old_one() -> None:
    changed = load_recipe("pretrain_bert", ["objective.name=causal_lm", "collator.name=causal_lm"])
    assert changed.objective == Options("causal_lm")
    assert changed.collator == Options("causal_lm")


def test_the_objective_brings_its_collator() -> None:
    assert Recipe(objective=Options("causal_lm")).collator_class.name == "causal_lm"


@pytest.mark.parametrize("name", sorted(shipped()))
def test_shipped_recipes_become_json_and_come_back(name: str) -> None:
    recipe = load_recipe(name, ["model.config.vocab_size=99", "data.train=a.txt,b.txt"])
    again = from_dict(json.loads(json.dumps(to_dict(recipe))))
    assert again == recipe


@pytest.mark.parametrize("path", sorted(shipped().values()), ids=lambda path: path.stem)
def test_shipped_recipes_are_short_and_teach(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert 20 <= len(text.splitlines()) <= 40
    assert f"sslnlp train {path.stem}" in text


def test_recipes_compose_by_calling(tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(
        "from sslnlp.recipe import Recipe, load_recipe\n"
        "def recipe() -> Recipe:\n"
        "    base = load_recipe('pretrain_bert')\n"
        "    base.train.lr = 3e-4\n"
        "    return base\n"
    )
    recipe = load_recipe(str(mine), ["train.steps=5"])
    assert (recipe.train.lr, recipe.train.steps) == (3e-4, 5)
