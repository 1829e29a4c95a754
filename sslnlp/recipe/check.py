"""What can be refused before any data is read: pairs that do not fit, heads a model does not have, taken folders."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, try_to_load_from_cache
from transformers import AutoConfig, PreTrainedConfig

from sslnlp.architectures import ARCHITECTURES
from sslnlp.collators import COLLATORS, get_collator
from sslnlp.collators.base import Collator
from sslnlp.errors import UserError
from sslnlp.models import ModelConfig
from sslnlp.objectives.base import Objective
from sslnlp.recipe.schema import Recipe, bind, to_dict
from sslnlp.tokenizer import Contract, load_tokenizer, vocabulary_facts
from sslnlp.vision import reads_pictures

FREE_ON_RESUME = {
    *("out", "name", "data.cache", "tokenizer.memory_mb", "train.workers", "train.batch_size", "train.accumulate"),
    *("train.log_every", "train.save_every", "train.keep", "train.trackers"),
}
"""Keys that may differ between a run and its continuation: the rows of an update are kept, so no weight changes."""


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
    check_tokenizer(recipe)
    if recipe.data.train is None:
        raise UserError("no training data: give data.train=FILE, a glob, a folder or a hub name")
    if all(value is None for value in (recipe.train.steps, recipe.train.epochs, recipe.train.budget)):
        raise UserError("say how long to train: train.steps=1000, train.epochs=3 or train.budget=10m")
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
        facts = vocabulary_facts(load_tokenizer(recipe.tokenizer.path))
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


def stock_config(model: ModelConfig) -> PreTrainedConfig:
    """The stock configuration a model is of, before its weights are touched; `UserError` when there is none."""
    fields = {name: value for name, value in model.config.items() if name in ("is_decoder", "is_causal")}
    if model.pretrained is None:
        return AutoConfig.for_model(model.architecture, **fields)
    _check_reachable(model.pretrained)
    try:
        return AutoConfig.from_pretrained(model.pretrained, **fields)
    except Exception as error:  # no config.json in it, an unknown type, a damaged download
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"cannot load model.pretrained={model.pretrained}: {reason}") from error


def _check_reachable(name: str) -> None:
    """Refuse at once a folder that is not there, and a hub name without a hub: the clients retry for half a minute."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            hint = f"; its export is {name.rstrip('/')}/export" if (folder / "export" / "config.json").is_file() else ""
            raise UserError(f"model.pretrained={name} holds no config.json, so it is not a model{hint}")
        return
    looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1
    if looks_local or folder.exists() or (folder.parent.is_dir() and folder.parent != Path(".")):
        raise UserError(f"model.pretrained={name} does not exist; give a run's export folder or a hub name")
    if isinstance(try_to_load_from_cache(name, "config.json"), str):
        return
    try:
        HfApi().model_info(name, timeout=10)
    except Exception as error:  # no such name, no permission, no network, offline mode
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"model.pretrained={name} is neither a folder here nor a model the hub gives: {reason}"
        ) from error


def check_out(recipe: Recipe, *, resume: bool) -> None:
    """Refuse an `out` that cannot be written, holds another run, or (with `resume`) holds none."""
    out = Path(recipe.out).expanduser()
    biography = out / "recipe.json"
    if resume:
        if not biography.is_file():
            raise UserError(f"nothing to resume: {recipe.out} holds no run; leave --resume out to start one")
        _check_same(recipe, json.loads(biography.read_text(encoding="utf-8"))["recipe"])
    elif out.is_dir() and any(out.iterdir()):
        what = "a run" if biography.is_file() else "other files"
        raise UserError(f"{recipe.out} already holds {what}: choose another out, add --resume to go on, or delete it")
    _check_writable(out, recipe.out)


def _check_writable(out: Path, shown: str) -> None:
    """Try it with a file in the nearest folder that exists: permission bits do not tell (root, read-only disks)."""
    nearest = out
    while not nearest.exists():
        nearest = nearest.parent
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise UserError(f"cannot write to out={shown}: {error.strerror or error}; choose another out=...") from error


def _check_same(recipe: Recipe, before: dict[str, Any]) -> None:
    now = _flat(to_dict(recipe))
    then = _flat(before)
    # Rows of like length are sorted into batches, so there the size of a batch decides what is in it.
    free = FREE_ON_RESUME - ({"train.batch_size"} if recipe.data.packing == "bucket" else set())
    changed = sorted(key for key in now.keys() | then.keys() if key not in free and now.get(key) != then.get(key))
    if changed:
        shown = ", ".join(f"{key} ({then.get(key)} -> {now.get(key)})" for key in changed[:4])
        raise UserError(f"{recipe.out} holds a run of another recipe: {shown}; resume that one, or choose another out")


def _flat(plain: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for section, value in plain.items():
        if isinstance(value, dict):
            flat |= {f"{section}.{name}": item for name, item in value.items()}
        else:
            flat[section] = value
    return flat
