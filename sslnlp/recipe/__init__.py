"""Recipes: what to run, as a typed value that Python, JSON and the command line write alike."""

from sslnlp.data.config import DataConfig
from sslnlp.model_config import ModelConfig
from sslnlp.recipe.build import Parts, build_objective, build_parts, resolve
from sslnlp.recipe.check import check, check_recipe
from sslnlp.recipe.load import load_recipe, read_result, shipped
from sslnlp.recipe.run import run
from sslnlp.recipe.schema import Options, Recipe, TokenizerConfig, from_dict, override, to_dict
from sslnlp.recipe.tokenizing import make_tokenizer
from sslnlp.train import TrainConfig

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
