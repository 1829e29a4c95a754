"""From text and pairs to a search engine: every stage starts from the export of the one before."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from sslnlp.budget import parse_duration
from sslnlp.errors import UserError
from sslnlp.recipe import Recipe, load_recipe, run
from sslnlp.search.changes import build_index
from sslnlp.search.mining import mine
from sslnlp.search.negatives import Mining

SHARES = {"masked": 0.35, "retrieval": 0.15, "contrastive": 0.15, "pairs": 0.1, "mined": 0.1, "reranker": 0.15}
"""Parts of the budget. Without text, or with an encoder to start from, the first three are not run."""
RECIPES = {
    "masked": "pretrain_bert",
    "retrieval": "embed_retromae",
    "contrastive": "embed_moco",
    "pairs": "finetune_ranking",
    "mined": "finetune_ranking",
    "reranker": "finetune_reranker",
}
NEGATIVES = 7


@dataclass
class Journey:
    """Where everything is, and what has been done."""

    out: Path
    seconds: float
    overrides: dict[str, list[str]]
    """Stage -> keys of its recipe."""
    console: Console
    done: list[str] = field(default_factory=list)

    def tell(self, line: str) -> None:
        """One line to the person."""
        self.done.append(line)
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def train(self, stage: str, start: str | None, data: Path | str) -> str:
        """Run a stage's recipe from the export `start` and return its own; one that is finished is left as it is."""
        place = self.out / stage
        export = place / "export"
        if (export / "config.json").is_file():
            self.tell(f"{stage}: found finished in {place}")
            return str(export)
        own = self.overrides.get(stage, [])
        keys = [f"data.train={data}", f"out={place}", *([f"model.pretrained={start}"] if start is not None else [])]
        if not any(key.startswith(("train.steps=", "train.epochs=", "train.budget=")) for key in own):
            keys.append(f"train.budget={SHARES[stage] * self.seconds:.1f}s")
        recipe = load_recipe(RECIPES[stage], [*keys, *own])
        time = recipe.train.budget or "as long as was said"
        self.tell(f"{stage}: {RECIPES[stage]} for {time}, from {start or 'nothing'}")
        run(recipe, resume=(place / "recipe.json").is_file(), console=self.console)
        result: dict[str, Any] = json.loads((place / "recipe.json").read_text(encoding="utf-8"))["result"]
        figures = "  ".join(f"{name} {value:.4g}" for name, value in result["measures"].items())
        self.tell(f"{stage}: {result['steps']:,} steps; held out: {figures or 'nothing'}")
        return str(export)

    def mine(self, pairs: Path, model: str) -> Path:
        """Hard negatives by BM25 and the ranker, fused."""
        mined = self.out / "mined.jsonl"
        if mined.is_file():
            self.tell(f"negatives: found in {mined}")
            return mined
        found = mine(pairs, mined, model=model, bm25=True, options=Mining(negatives=NEGATIVES))
        self.tell(f"negatives: {NEGATIVES} for each of {found.written:,} pairs, out of {found.documents:,} documents")
        return mined


def text_to_search(
    pairs: Path,
    out: Path,
    *,
    documents: Path,
    text: str | None = None,
    encoder: str | None = None,
    budget: str = "30m",
    beir: Path | None = None,
    overrides: Sequence[str] = (),
    console: Console | None = None,
    evaluate: Callable[[Path, Path], None] | None = None,
) -> Path:
    """Pretrain on `text` (masked, then for retrieval, then contrastive) or start from `encoder`; fine-tune on `pairs`,
    mine negatives with what came out, fine-tune on them, train a reranker, index `documents`, measure on `beir`.

    `budget` is the wall clock of all training together. `overrides` are keys of a stage's recipe, `STAGE.key=value`
    (`masked.model.size=small`). Returns the index's folder. A call with the same `out` goes on where the last one was
    stopped. Raises `UserError` for what cannot be read, before anything is trained where it can be seen.
    """
    if (text is None) == (encoder is None):
        raise UserError("give text to pretrain on (--text), or an encoder to start from (--encoder): one of them")
    for path in (pairs, documents, *([beir] if beir is not None else [])):
        if not path.exists():
            raise UserError(f"{path} does not exist")
    journey = Journey(out, parse_duration(budget), _by_stage(overrides), console or Console(stderr=True))
    start = encoder
    if text is not None:
        for stage in ("masked", "retrieval", "contrastive"):
            start = journey.train(stage, start, text)
    pretrained = start
    ranker = journey.train("pairs", pretrained, pairs)
    mined = journey.mine(pairs, ranker)
    ranker = journey.train("mined", ranker, mined)
    reranker = journey.train("reranker", pretrained, mined)
    index = out / "index"
    facts = build_index(documents, index, model=ranker, reranker=reranker)
    journey.tell(f"index: {facts['documents']['count']:,} documents in {index}")
    if beir is not None and evaluate is not None:
        evaluate(index, beir)
    journey.tell(f'Try: sslnlp search query {index} "your words", or sslnlp search serve {index}')
    return index


def stage_recipe(stage: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a stage under its own keys."""
    return load_recipe(RECIPES[stage], list(overrides))


def _by_stage(overrides: Sequence[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for override in overrides:
        stage, dot, rest = override.partition(".")
        if stage not in RECIPES or not dot or "=" not in rest:
            raise UserError(f"{override!r} is not STAGE.key=value, with a stage of {', '.join(RECIPES)}")
        found.setdefault(stage, []).append(rest)
    for stage, keys in found.items():
        stage_recipe(stage, keys)  # what is unknown is said now
    return found
