"""A stage before fine-tuning: the pretrained model goes on learning from unlabelled text of the task (`adapt.*`).

Gururangan et al. (2020, arXiv:2004.10964) call it task-adaptive pretraining.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sslnlp.data.config import DataConfig
from sslnlp.errors import UserError
from sslnlp.model_config import ModelConfig
from sslnlp.recipe.build import resolve
from sslnlp.recipe.load import read_biography
from sslnlp.recipe.schema import Options, Recipe, override, to_dict
from sslnlp.report.config import ReportConfig
from sslnlp.train import TrainConfig


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
    embeds = recipe.objective_class.pooling is not None
    name = adapt.objective or ("info_nce" if embeds else "masked_lm")
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
        model=ModelConfig(pretrained=recipe.model.pretrained, dropout=0.1 if embeds else 0.0),
        train=TrainConfig(
            steps=adapt.steps, batch_size=adapt.batch_size, schedule="linear", warmup=0.1,
            lr=adapt.lr or TrainConfig.lr, relative_lr=2.0 if adapt.lr is None else None,
            seed=recipe.train.seed, keep_best=False, precision=recipe.train.precision,
            # Its held-out texts are as many as those of the labelled stage, which is often much longer; they choose
            # nothing here, so they are read once.
            eval_every=adapt.steps, save_every=max(1, adapt.steps // 2),
        ),
        report=ReportConfig(),
        out=f"{recipe.out}-adapted",
    )  # fmt: skip
    if embeds and adapt.objective is None:
        # Two times the same text, which differ by dropout: crops of short texts are too short to compare.
        before = override(before, {"collator.views": ["text", "text"]})
    return before


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
    "train": ("steps", "lr", "batch_size", "seed"),
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
