"""A stage before fine-tuning: the pretrained model goes on learning from unlabelled text of the task (`adapt.*`).

Gururangan et al. (2020, arXiv:2004.10964) call it task-adaptive pretraining.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sslnlp.collators import get_collator
from sslnlp.data.config import DataConfig
from sslnlp.errors import UserError
from sslnlp.model_config import ModelConfig
from sslnlp.objectives import OBJECTIVES, get_objective
from sslnlp.recipe.build import resolve
from sslnlp.recipe.checks import stock_config
from sslnlp.recipe.load import read_biography
from sslnlp.recipe.schema import Options, Recipe, options_of, override, to_dict
from sslnlp.report.config import ReportConfig
from sslnlp.train import TrainConfig
from sslnlp.vector_map import pooling_of_model


def stage_before(recipe: Recipe) -> Recipe | None:
    """The recipe of the stage before, on `data.unlabelled`; None where none is asked for.

    Texts that are held out from the labelled rows are taken out of it. Raises `UserError` without unlabelled text or
    without a model to go on from.
    """
    adapt = recipe.adapt
    if adapt.steps == 0:
        return None
    if recipe.data.unlabelled is None or recipe.model.pretrained is None:
        missing = "data.unlabelled=FILE" if recipe.data.unlabelled is None else "model.pretrained=FOLDER"
        raise UserError(f"adapt.steps={adapt.steps} goes on pretraining on unlabelled text: give {missing}")
    if recipe.data.unlabelled == recipe.data.valid:
        raise UserError(
            f"data.unlabelled and data.valid are both {recipe.data.valid}: held-out texts are none to adapt to; "
            "give another data.unlabelled"
        )
    story = _story(recipe.model.pretrained)
    name = adapt.objective or _objective(recipe, story)
    compares = get_objective(name).pooling is not None
    before = Recipe(
        name="adapt",
        objective=Options(name),
        data=DataConfig(
            train=recipe.data.unlabelled,
            valid=recipe.data.valid,
            text=recipe.data.text,
            cache=recipe.data.cache,
            seq_length=adapt.seq_length,
            valid_fraction=0.01 if recipe.data.valid is None else 0.0,
        ),
        model=ModelConfig(pretrained=recipe.model.pretrained, dropout=0.1 if compares else 0.0),
        train=TrainConfig(
            steps=adapt.steps, batch_size=adapt.batch_size, schedule="linear", warmup=0.1, relative_lr=2.0,
            seed=recipe.train.seed, keep_best=False, precision=recipe.train.precision,
            # Its held-out texts are as many as those of the labelled stage, which is often much longer; they choose
            # nothing here, so they are read once.
            eval_every=adapt.steps, save_every=max(1, adapt.steps // 2),
        ),
        report=ReportConfig(),
        out=f"{recipe.out}-adapted",
    )  # fmt: skip
    if compares and adapt.objective is None:
        # Two times the same text, which differ by dropout: crops of short texts are too short to compare.
        before = override(before, {"collator.views": ["text", "text"]})
    elif not compares:
        before = override(before, _as_pretrained(story, before))
    if adapt.lr is not None:
        before = override(before, {"train.lr": adapt.lr, "train.relative_lr": None})
    return before


def _story(pretrained: str) -> dict[str, Any] | None:
    """The biography of a start that learnt from raw text, one token at a time; None of any other."""
    file = Path(pretrained).expanduser() / "recipe.json"
    story = read_biography(file) if file.is_file() else None
    name = None if story is None else story["recipe"].get("objective", {}).get("name")
    if name not in OBJECTIVES or get_objective(name).pooling is not None:
        return None
    return story if get_collator(get_objective(name).collator).reads == "tokens" else None


def _objective(recipe: Recipe, story: Mapping[str, Any] | None) -> str:
    """What a start goes on with: the words that are missing or to come, and two readings of a text where it is a
    sentence encoder that is to make vectors."""
    assert recipe.model.pretrained is not None
    if recipe.objective_class.pooling is not None and pooling_of_model(recipe.model.pretrained) is not None:
        return "info_nce"
    config, names = stock_config(recipe.model), ["masked_lm", "causal_lm"]
    names += [] if story is None else [story["recipe"]["objective"]["name"]]
    return next((name for name in names if get_objective(name).refuses(config) is None), names[0])


_MANNER = (
    "optimizer", "schedule", "warmup", "decay", "weight_decay", "embedding_lr_scale", "betas", "eps", "clip",
)  # fmt: skip


def _as_pretrained(story: Mapping[str, Any] | None, before: Recipe) -> dict[str, Any]:
    """Keys by which the stage learns as its start did: AdamW at a rate in proportion to the weights spoilt what Muon
    had made (docs/log.md). Of a start that nobody describes, nothing better is known."""
    if story is None:
        return {}
    earlier = story["recipe"]
    train = earlier.get("train", {})
    keys = {f"train.{name}": train[name] for name in _MANNER if name in train}
    if train.get("warmup", 0) >= 1:  # a number of updates, of a longer run
        del keys["train.warmup"]
    rate = story.get("chosen", {}).get("train.lr", train.get("lr"))
    if rate is not None:
        keys |= {"train.lr": rate, "train.relative_lr": None}
    if earlier["objective"]["name"] == before.objective.name:
        known = options_of(before.collator_class)
        keys |= {f"collator.{key}": value for key, value in earlier.get("collator", {}).items() if key in known}
    return keys


def begun(recipe: Recipe) -> bool:
    """Whether the stage before has a run."""
    before = stage_before(recipe)
    return before is not None and (Path(before.out).expanduser() / "recipe.json").is_file()


def adapted(recipe: Recipe, run: Callable[[Recipe, bool], Path]) -> Recipe:
    """The recipe on the adapted model: the stage before is run, resumed, or found finished in its folder.

    `run` takes a recipe and whether to resume. Raises `UserError` where the folder holds another stage.
    """
    before = stage_before(recipe)
    if before is None:
        return recipe
    out = Path(before.out).expanduser()
    export, there = out / "export", begun(recipe)
    if there:
        # What was written down has what the stage inherits.
        _check_same(resolve(before)[0], read_biography(out / "recipe.json"))
    if not (export / "config.json").is_file():
        run(before, there)
    after = copy.deepcopy(recipe)
    after.model = replace(recipe.model, pretrained=str(export))
    return after


_SAME = {
    "model": ("pretrained",),
    "data": ("train", "valid", "seq_length"),
    "train": ("steps", "optimizer", "lr", "batch_size", "seed"),
}


def _check_same(before: Recipe, story: Mapping[str, Any]) -> None:
    now, found = to_dict(before), story["recipe"]
    if before.train.relative_lr is not None:
        now["train"]["lr"] = story["chosen"].get("train.lr")
    for section, names in _SAME.items():
        for name in names:
            if found.get(section, {}).get(name) != now[section][name]:
                raise UserError(
                    f"{before.out} holds a stage with another {section}.{name}: delete it, or choose another out"
                )
    if found.get("objective", {}).get("name") != now["objective"]["name"]:
        raise UserError(f"{before.out} holds a stage with another objective: delete it, or choose another out")
