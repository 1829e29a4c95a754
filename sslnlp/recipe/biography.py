"""What a run says of itself: recipe.json while and after it runs, and the facts of its model card."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sslnlp.card import CardFacts
from sslnlp.distributed import world_size
from sslnlp.models import count_parameters
from sslnlp.objectives.base import Objective
from sslnlp.recipe.build import Parts
from sslnlp.recipe.schema import to_dict

ROWS = ("batch_size", "accumulate")
"""Keys of `train` that say, together with the processes, how many rows an update has."""
_VERSIONS = ("sslnlp", "torch", "transformers", "tokenizers", "datasets", "accelerate", "numpy")


def biography(parts: Parts, objective: Objective, begun: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What recipe.json holds: the resolved recipe and what it was resolved against.

    begun: what it held before, of a run that is resumed: the rows of an update stay those of its beginning, on however
        many processes and by whatever keys it goes on.
    """
    recipe, processes = to_dict(parts.recipe), world_size()
    if begun is not None:
        recipe["train"] |= {name: begun["recipe"]["train"][name] for name in ROWS}
        processes = begun.get("processes", 1)
    story = {
        "recipe": recipe,
        "processes": processes,
        "versions": dict(_versions()),
        "data": parts.facts,
        "tokenizer": parts.contract.to_dict() if parts.contract is not None else None,
        "label_names": parts.label_names,
        "chosen": parts.chosen,
        "model": {"class": type(objective.model).__name__, "parameters": count_parameters(objective.model)},
    }
    plain: dict[str, Any] = json.loads(json.dumps(story, default=str))
    return plain


@functools.cache  # each is a search through all that is installed
def _versions() -> Mapping[str, str]:
    found = {"python": platform.python_version()}
    for name in _VERSIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def card_facts(parts: Parts, story: Mapping[str, Any]) -> CardFacts:
    """What the model card of a finished run tells."""
    recipe, processes = parts.recipe, story["processes"]
    train = recipe.data.train
    rows = {name: story["recipe"]["train"][name] for name in ROWS} | ({"processes": processes} if processes > 1 else {})
    return CardFacts(
        title=Path(recipe.out).name,
        objective=str(recipe.objective.name),
        objective_options=recipe.objective.options,
        collator=parts.collator.name,
        collator_options=recipe.collator.options,
        hyperparameters={**asdict(recipe.train), **rows, "steps": story["result"]["steps"]},
        measures=story["result"]["measures"],
        notes=story["result"]["notes"],
        versions=story["versions"],
        sources=[train] if isinstance(train, str) else list(train or []),
        data=story["data"],
        tokens_seen=story["result"]["tokens_seen"],
        base_model=recipe.model.pretrained,
        data_license=recipe.data.licence,
    )
