"""Keys of the command line that would do nothing, because a model or a tokenizer is given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sslnlp.architectures import ARCHITECTURES, size_of
from sslnlp.errors import UserError
from sslnlp.recipe.schema import Recipe

_SIZE = ("hidden_size", "n_embd", "d_model", "num_hidden_layers", "n_layer", "encoder_layers", "num_layers")


def check_unused(recipe: Recipe, pairs: Mapping[str, Any]) -> None:
    """Refuse among `pairs`, which were typed, what says otherwise than the model or the tokenizer that is given.

    Those of a recipe are its defaults, for when neither is given.
    """
    _check_model(recipe, pairs)
    _check_tokenizer(recipe, pairs)


def _check_model(recipe: Recipe, pairs: Mapping[str, Any]) -> None:
    model = recipe.model
    if model.pretrained is None or not {"model.architecture", "model.size"} & pairs.keys():
        return
    from sslnlp.recipe.checks import stock_config  # brings torch

    stock = stock_config(model)
    kind = str(stock.model_type)
    if "model.architecture" in pairs and model.architecture != kind:
        _refuse(f"model.architecture={model.architecture}", f"model.pretrained={model.pretrained} is a {kind}")
    if "model.size" in pairs:
        fields = ARCHITECTURES[kind](size_of(kind, model.size), 0) if kind in ARCHITECTURES else {}
        sizes = {name: fields[name] for name in _SIZE if name in fields}
        if not sizes or any(getattr(stock, name, None) != value for name, value in sizes.items()):
            _refuse(f"model.size={model.size}", f"model.pretrained={model.pretrained} has a size of its own")


def _check_tokenizer(recipe: Recipe, pairs: Mapping[str, Any]) -> None:
    asked, path = recipe.tokenizer, recipe.tokenizer.path
    if path is None:
        return
    for name in ("algorithm", "lowercase"):
        if f"tokenizer.{name}" in pairs:
            _refuse(f"tokenizer.{name}={getattr(asked, name)}", f"tokenizer.path={path} is trained already")
    if "tokenizer.vocab_size" in pairs:
        from sslnlp.tokenizer import load_tokenizer  # brings transformers

        if (size := len(load_tokenizer(path))) != asked.vocab_size:
            _refuse(f"tokenizer.vocab_size={asked.vocab_size}", f"tokenizer.path={path} has {size} tokens")


def _refuse(key: str, why: str) -> None:
    raise UserError(f"{key} would do nothing: {why}; leave one of the two out")
