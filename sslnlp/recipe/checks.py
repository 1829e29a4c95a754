"""What can be refused before any training: pairs that do not fit, heads a model does not have, nothing to compare."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import HfApi, try_to_load_from_cache
from transformers import AutoConfig, PreTrainedConfig

from sslnlp.architectures import ARCHITECTURES
from sslnlp.collators import COLLATORS, get_collator
from sslnlp.collators.base import Collator
from sslnlp.errors import UserError, reason_of, suggest
from sslnlp.evaluation.beir import load_beir
from sslnlp.model_config import ModelConfig
from sslnlp.models import build_config, known_fields
from sslnlp.objectives.base import Objective
from sslnlp.recipe.complete import check_complete, is_model_folder
from sslnlp.recipe.schema import Recipe, bind, options_of
from sslnlp.tokenizer import Contract, load_tokenizer, pad_by_end, vocabulary_facts
from sslnlp.vision import reads_pictures

if TYPE_CHECKING:
    from sslnlp.recipe.build import Parts


def check(collator: type[Collator], objective: type[Objective]) -> None:
    """Refuse a pair whose collator does not make what the objective needs, and name collators that would."""
    if (reason := _mismatch(collator, objective)) is None:
        return
    usual_first = sorted(COLLATORS, key=lambda name: (name != objective.collator, name))
    fitting = [name for name in usual_first if _importable(name) and _fits(name, objective)]
    advice = f"use collator.name={' or '.join(fitting)}" if fitting else "no shipped collator fits"
    raise UserError(f"objective {objective.name!r} {reason}; {advice}")


def _mismatch(collator: type[Collator], objective: type[Objective]) -> str | None:
    """Why the pair does not fit, or None."""
    if missing := objective.needs - collator.makes:
        return f"needs {', '.join(sorted(missing))}, which collator {collator.name!r} does not make"
    if "labels" in objective.needs and collator.reads == "tokens" and collator.shifted != objective.shifted:
        where = ("the token before it", "its own place") if objective.shifted else ("its own place", "the token before")
        return f"predicts a label from {where[0]}, collator {collator.name!r} means it to be predicted from {where[1]}"
    return None


def _fits(name: str, objective: type[Objective]) -> bool:
    """Whether the pair fits, on the kind of data that the objective is for, with the options that it fills in for its
    own collator."""
    collator, own = get_collator(name), get_collator(objective.collator)
    options = objective.collator_options({}) if name == objective.collator else {}
    return collator.reads == own.reads and _mismatch(collator.bound(options), objective) is None


def _importable(name: str) -> bool:
    try:
        get_collator(name)
    except UserError:  # an optional dependency of another collator is not this person's problem
        return False
    return True


def check_recipe(recipe: Recipe) -> None:
    """All of it for a recipe: the pair, its options, and the model's form."""
    check_complete(recipe)
    recipe.objective.options = bind("objective", recipe.objective_class, recipe.objective.options)
    objective = recipe.objective_class
    options = recipe.collator.options
    if recipe.collator_class.name == objective.collator:
        options = objective.collator_options(options)
    recipe.collator.options = bind("collator", recipe.collator_class, options)
    check(recipe.collator_class, objective)
    check_kind(recipe)
    for part in objective.parts.values():
        check(get_collator(part.collator), part)
    check_model(recipe.model, objective)
    if recipe.model.config:
        check_config(recipe.model, objective, recipe.data.seq_length)
    check_tokenizer(recipe)
    counted = "model.embedding_init" in recipe.given and recipe.model.embedding_init == "cooccurrence"
    if counted and recipe.collator_class.reads != "tokens":
        raise UserError(
            "model.embedding_init=cooccurrence counts in raw text, which objective "
            f"{objective.name!r} does not read: leave it out"
        )
    if recipe.data.out_of_scope is not None and recipe.collator_class.label_kind != "one":
        raise UserError(
            "data.out_of_scope names texts of no class, for models that give each text one; objective "
            f"{objective.name!r} does not: leave it out"
        )
    if recipe.data.beir is not None:
        if objective.pooling is None:
            raise UserError(
                f"data.beir measures models that embed text; objective {objective.name!r} does not make one"
            )
        if not hasattr(recipe.collator_class, "encode_queries"):
            raise UserError(
                f"data.beir measures during training what tells queries from documents, which collator "
                f"{recipe.collator_class.name!r} does not; measure the export: sslnlp search evaluate"
            )
        load_beir(recipe.data.beir)  # the end of the run could not refuse it without losing the run


def check_compared(parts: Parts, world: int) -> None:
    """Refuse to compare a row with the other rows of its forward pass where there are none: the loss would be 0.

    A row of packed text holds several documents, a queue those of the updates before, and mined negatives are
    candidates too. Accumulation does not help: what it adds up are forward passes.
    """
    recipe = parts.recipe
    objective, alone = recipe.objective_class, recipe.train.batch_size * world == 1
    queue = "queue" in options_of(objective) and recipe.objective.options.get("queue") != 0
    if not (objective.couples_rows and alone) or recipe.collator_class.reads == "tokens" or queue:
        return
    if recipe.train.steps == 0 or "negative" in parts.collator(parts.stream.rows(range(1))):
        return
    smaller = ", with objective.mini_batch_size=1 where memory is short" * ("mini_batch_size" in options_of(objective))
    raise UserError(
        f"objective {objective.name!r} compares the rows of a forward pass, and train.batch_size=1 gives it one, to "
        f"learn nothing from (train.accumulate adds none): use train.batch_size=32{smaller}"
    )


def check_kind(recipe: Recipe) -> None:
    """Refuse text for a model of pictures, and pictures alone for one of text."""
    pictures, collator = reads_pictures(stock_config(recipe.model)), recipe.collator_class
    if pictures and collator.reads_text:
        raise UserError(
            f"the model reads pictures and collator {collator.name!r} gives it text: use collator.name=image_views, "
            "rotation or masked_patches, or another model.architecture"
        )
    if not pictures and not collator.reads_text:
        raise UserError(f"collator {collator.name!r} gives pictures alone: use model.architecture=vit")


def check_tokenizer(recipe: Recipe) -> None:
    """Refuse an existing tokenizer that lacks tokens the collator works with (one that we train has them all)."""
    if recipe.tokenizer.path is not None:
        tokenizer = load_tokenizer(recipe.tokenizer.path)
        pad_by_end(tokenizer, recipe.collator_class.requires)
        facts = vocabulary_facts(tokenizer)
        Contract(facts, {}).require(sorted(recipe.collator_class.requires & facts.keys()))


def check_model(model: ModelConfig, objective: type[Objective]) -> None:
    """Refuse a model without the head, or without the reading direction, that the objective needs."""
    config = stock_config(model)
    if (reason := objective.refuses(config)) is not None:
        stock = {name: AutoConfig.for_model(name) for name in ARCHITECTURES}
        fitting = [name for name in ARCHITECTURES if objective.refuses(stock[name]) is None]
        if get_collator(objective.collator).reads_text:
            fitting = [name for name in fitting if not reads_pictures(stock[name])]
        advice = f"choose model.architecture from: {', '.join(sorted(fitting))}"
        if model.pretrained is not None and config.model_type in fitting:
            advice = f"choose another model.pretrained than {model.pretrained}"
        raise UserError(f"objective {objective.name!r} cannot train a {config.model_type!r} model: {reason}; {advice}")


class _Unknown:
    """What a configuration asks of a tokenizer, before there is one."""

    pad_token_id = bos_token_id = eos_token_id = cls_token_id = sep_token_id = 0

    def __len__(self) -> int:
        return 256

    def get_vocab(self) -> dict[str, int]:
        return {}


def check_config(model: ModelConfig, objective: type[Objective], max_length: int) -> None:
    """Refuse fields of `model.config` that the model does not have or that do not go together, before text is read."""
    if model.pretrained is not None:
        known = known_fields(stock_config(model))
        for name in model.config:
            if name not in known:
                raise UserError(f"unknown model.config.{name} for {model.pretrained}.{suggest(name, known)}")
        return
    vocabulary: Any = _Unknown()
    stock = build_config(model, vocabulary, max_length)
    try:
        with torch.device("meta"):  # no weights
            objective.wraps.from_config(stock)
    except Exception as error:  # transformers raises several kinds
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"model.config is not valid for {model.architecture}: {reason}") from error


def stock_config(model: ModelConfig) -> PreTrainedConfig:
    """The stock configuration a model is of, before its weights are touched; `UserError` when there is none."""
    fields = {name: value for name, value in model.config.items() if name in ("is_decoder", "is_causal")}
    if model.pretrained is None:
        return AutoConfig.for_model(model.architecture, **fields)
    _check_reachable(model.pretrained)
    try:
        return AutoConfig.from_pretrained(model.pretrained, **fields)
    except Exception as error:  # no config.json in it, an unknown type, a damaged download
        raise UserError(f"cannot load model.pretrained={model.pretrained}: {reason_of(error, 200)}") from error


def _check_reachable(name: str) -> None:
    """Refuse at once a folder that is not there, and a hub name without a hub: the clients retry for half a minute."""
    if is_model_folder(name):
        return
    try:
        if isinstance(try_to_load_from_cache(name, "config.json"), str):
            return
        HfApi().model_info(name, timeout=10)
    except Exception as error:  # no name, no such one, no permission, no network, offline mode
        raise UserError(
            f"model.pretrained={name} is neither a folder here nor a model the hub gives: {reason_of(error, 160)}"
        ) from error
