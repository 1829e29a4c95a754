"""What a stage takes over from the run whose export it starts from."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from sslnlp.data.config import DataConfig
from sslnlp.recipe.load import read_biography
from sslnlp.recipe.overrides import coerce
from sslnlp.recipe.schema import Recipe, options_of
from sslnlp.vector_map import pooling_of_model


def inherit(recipe: Recipe) -> tuple[Recipe, dict[str, Any]]:
    """A copy of `recipe` with what `model.pretrained` settles, and those keys with their values, for printing.

    The tokenizer always comes with the weights, and so does the pooling of a sentence encoder. When the folder is the
    export of a run, its row length and what the collator declares in `Collator.inherits` (prefixes and lengths of
    queries and documents, ...) are taken as well, except keys that were given and options that the recipe sets itself.
    """
    recipe = copy.deepcopy(recipe)
    taken: dict[str, Any] = {}
    if recipe.model.pretrained is None:
        return recipe, taken
    if recipe.tokenizer.path is None and recipe.collator_class.reads_text:
        recipe.tokenizer.path = taken["tokenizer.path"] = recipe.model.pretrained
    objective = recipe.objective_class
    if not recipe.model.fresh and "pooling" in options_of(objective) and "pooling" not in recipe.objective.options:
        pooling = pooling_of_model(recipe.model.pretrained)
        if pooling not in (None, objective.pooling):
            recipe.objective.options["pooling"] = taken["objective.pooling"] = pooling
    biography = Path(recipe.model.pretrained).expanduser() / "recipe.json"
    if not biography.is_file():
        return recipe, taken
    earlier = read_biography(biography)["recipe"]
    length = earlier.get("data", {}).get("seq_length")
    left_open = "data.seq_length" not in recipe.given and recipe.data.seq_length == DataConfig().seq_length
    if length is not None and left_open:
        recipe.data.seq_length = taken["data.seq_length"] = coerce("data.seq_length", length, int)
    accepted = options_of(recipe.collator_class)
    for name in recipe.collator_class.inherits:
        key = f"collator.{name}"
        if name in recipe.collator_class.lengths and "data.seq_length" in recipe.given:
            continue  # what was given bounds them
        if name in earlier.get("collator", {}) and name not in recipe.collator.options:
            value = coerce(key, earlier["collator"][name], accepted[name])
            recipe.collator.options[name] = taken[key] = value
    return recipe, taken
