"""Recipes: what to run, as a typed value that Python, JSON and the command line write alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sslnlp.data.config import DataConfig
from sslnlp.model_config import ModelConfig
from sslnlp.recipe.load import load_recipe, read_result, shipped
from sslnlp.recipe.schema import Options, Recipe, TokenizerConfig, from_dict, override, to_dict
from sslnlp.registry import on_first_use
from sslnlp.train_config import TrainConfig

if TYPE_CHECKING:
    from sslnlp.recipe.build import Parts, build_objective, build_parts, resolve
    from sslnlp.recipe.checks import check, check_recipe
    from sslnlp.recipe.running import run
    from sslnlp.recipe.tokenizing import make_tokenizer
else:  # a recipe is written, read and found wrong without torch
    __getattr__ = on_first_use(
        __name__,
        {
            "build": ("Parts", "build_objective", "build_parts", "resolve"),
            "checks": ("check", "check_recipe"),
            "running": ("run",),
            "tokenizing": ("make_tokenizer",),
        },
    )

__all__ = [
    "DataConfig",
    "ModelConfig",
    "Options",
    "Parts",
    "Recipe",
    "TokenizerConfig",
    "TrainConfig",
    "build_objective",
    "build_parts",
    "check",
    "check_recipe",
    "from_dict",
    "load_recipe",
    "make_tokenizer",
    "override",
    "read_result",
    "resolve",
    "run",
    "shipped",
    "to_dict",
]
