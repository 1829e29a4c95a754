"""From text and pairs to a search engine: every stage starts from the export of the one before.

What trains, mines and indexes is imported where it is called: it brings torch, which what is wrong does not wait for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console

from sslnlp.data import DataConfig
from sslnlp.data.files import check_there
from sslnlp.errors import UserError
from sslnlp.metrics import tokens_per_second
from sslnlp.recipe import Recipe, load_recipe, read_result
from sslnlp.recipe.complete import is_model_folder
from sslnlp.recipe.load import read_biography
from sslnlp.search.documents import read_documents
from sslnlp.search.model_folder import read_json
from sslnlp.train_config import parse_duration
from sslnlp.writing import sha256_of, write_json

SHARES = {"masked": 0.35, "retrieval": 0.15, "contrastive": 0.15, "pairs": 0.1, "mined": 0.1, "reranker": 0.15}
"""Parts of the budget, of the stages that are run: with an encoder to start from, the last three."""
RECIPES = {
    "masked": "pretrain_bert",
    "retrieval": "embed_retromae",
    "contrastive": "embed_moco",
    "pairs": "finetune_ranking",
    "mined": "finetune_ranking",
    "reranker": "finetune_ranking",
}
ON_TEXT = ("masked", "retrieval", "contrastive")
ON_PAIRS = ("pairs", "mined", "reranker")
# A stage has a part of the time, and its figures are on the way: a quarter of what is held out of a run on its own, and
# half of that where a pair has negatives too. What is held out of few is among what is held out of more, so no stage
# before has trained on it; of text it is the same for all, whose tokens are stored once.
_LESS_TEXT = {"data.valid_tokens": "50000"}
_FEWER_PAIRS, _FEWEST_PAIRS = ({"data.valid_rows": number} for number in ("500", "250"))
OWN_KEYS = {
    "masked": _LESS_TEXT,
    "retrieval": _LESS_TEXT,
    # What the stage before leaves is a sentence encoder by its files, but nothing has compared its vectors yet.
    "contrastive": {**_LESS_TEXT, "objective.whitening": "0.5", "objective.pooling": "mean"},
    "pairs": _FEWER_PAIRS,
    "mined": _FEWEST_PAIRS,
    # A cross-encoder of the same weights has learnt nothing in a time after which this one helps (docs/results.md).
    "reranker": {**_FEWEST_PAIRS, "objective.name": "late_interaction"},
}
READ_FIRST = {
    "text": ("masked", "other text"),
    "encoder": ("pairs", "another encoder"),
    "pairs": ("pairs", "other pairs"),
}
"""Input -> the first stage that reads it, and what that was made from when it is no longer the same."""
INPUTS = "build.json"
NEGATIVES = 7
LEAST_MINED = 2_000
"""Pairs: those that are held out are among them."""
HOW_LONG = ("train.steps=", "train.epochs=", "train.budget=")


@dataclass
class Journey:
    """Where everything is, and what has been done."""

    out: Path
    seconds: float
    overrides: dict[str, list[str]]
    """Stage -> keys of its recipe."""
    console: Console
    stages: Sequence[str]
    """Those that are run."""
    done: list[str] = field(default_factory=list)
    began: float = field(default_factory=lambda: time.monotonic())
    left: float = field(init=False)
    """Of `seconds`, when this call began: the shares of what was not finished."""

    def __post_init__(self) -> None:
        self.left = sum(self.share(stage) for stage in self.stages if not self.finished(stage))

    def tell(self, line: str) -> None:
        """One line to the person."""
        self.done.append(line)
        self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def finished(self, stage: str) -> bool:
        """Whether the stage has left its export."""
        return (self.out / stage / "export" / "config.json").is_file()

    def share(self, stage: str) -> float:
        """Seconds of the budget that are a stage's by right."""
        return self.seconds * SHARES[stage] / sum(SHARES[one] for one in self.stages)

    def seconds_for(self, stage: str) -> float:
        """Those that it gets: its part of what is left now, since imports, held-out passes and mining take time that is
        no stage's, but half of its share in any case."""
        to_come = self.stages[self.stages.index(stage) :]
        left = self.left - (time.monotonic() - self.began)
        return max(self.share(stage) / 2, left * SHARES[stage] / sum(SHARES[one] for one in to_come))

    def train(self, stage: str, start: str | None, data: Path | str) -> str:
        """Run a stage's recipe from the export `start` and return its own; one that is finished is left as it is."""
        from sslnlp.precision import fitting_precision
        from sslnlp.recipe import run
        from sslnlp.recipe.build import processes

        place = self.out / stage
        export = place / "export"
        if self.finished(stage):
            self.tell(f"{stage}: found finished in {place}")
            return str(export)
        own = self.overrides.get(stage, [])
        keys = [f"data.train={data}", f"out={place}", *([f"model.pretrained={start}"] if start is not None else [])]
        begun = _begun_with(place)
        if not _says(own, ("train.precision=",)):
            keys.append(f"train.precision={begun.get('precision') or fitting_precision(processes().device)}")
        if not _says(own, HOW_LONG):
            keys.append(f"train.budget={begun.get('budget') or f'{self.seconds_for(stage):.1f}s'}")
        recipe = stage_recipe(stage, [*keys, *own])
        time = recipe.train.budget or "as long as was said"
        self.tell(f"{stage}: {RECIPES[stage]} for {time}, from {start or 'nothing'}")
        run(recipe, resume=(place / "recipe.json").is_file(), console=self.console)
        result = read_result(place)
        figures = "  ".join(f"{name} {value:.4g}" for name, value in result["measures"].items())
        self.tell(f"{stage}: {result['steps']:,} steps; held out: {figures or 'nothing'}")
        return str(export)

    def mine(self, pairs: Path, model: str) -> Path:
        """Hard negatives by BM25 and the ranker, fused."""
        from sslnlp.search.mining import mine
        from sslnlp.search.negatives import Mining

        mined = self.out / "mined.jsonl"
        if mined.is_file():
            self.tell(f"negatives: found in {mined}")
            return mined
        columns = stage_recipe("pairs", self.overrides.get("pairs", [])).data.columns
        limit, corpus_limit = self.limits()
        found = mine(
            pairs, mined, model=model, bm25=True, columns=columns, limit=limit, corpus_limit=corpus_limit,
            options=Mining(negatives=NEGATIVES),
        )  # fmt: skip
        of_all = f" of {found.pairs:,}" if found.asked < found.pairs else ""
        self.tell(
            f"negatives: {NEGATIVES} for each of {found.written:,}{of_all} pairs, out of {found.documents:,} documents"
        )
        return mined

    def limits(self) -> tuple[int | None, int | None]:
        """Of the mining, going by the stage before: as many pairs as those to come can read in their time at most (with
        negatives one takes them at least twice as long), and as many documents as are encoded in that of the next (one
        takes a third of what a pair takes in training, or less). None where their keys say how long they are."""
        to_come = ON_PAIRS[1:]
        if any(_says(self.overrides.get(stage, []), HOW_LONG) for stage in to_come):
            return None, None
        before = self.out / ON_PAIRS[0]
        story, result = read_biography(before / "recipe.json"), read_result(before)
        train = story["recipe"]["train"]
        rows = result["steps"] * train["batch_size"] * train["accumulate"] * story["processes"]
        if not result["tokens_seen"]:
            return None, None
        a_second = tokens_per_second(before / "metrics.jsonl") * rows / result["tokens_seen"]
        read = a_second * max(self.share(stage) for stage in to_come) / 2
        encoded = a_second * self.share("mined") * 3
        return max(LEAST_MINED, int(read)), max(LEAST_MINED, int(encoded))


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

    `budget` is the wall clock of all stages and the mining between them, as near as they come to it; the index is made
    after it. `overrides` are keys of a stage's recipe, `STAGE.key=value`
    (`masked.model.size=small`). Returns the index's folder. A call with the same `out` goes on where the last one was
    stopped, and raises `UserError` where that was from other text, pairs or keys. Also for what cannot be read, before
    anything is trained where it can be seen.
    """
    if (text is None) == (encoder is None):
        raise UserError("give text to pretrain on (--text), or an encoder to start from (--encoder): one of them")
    for path in (pairs, documents, *([beir] if beir is not None else [])):
        if not path.exists():
            raise UserError(f"{path} does not exist")
    check_there(str(pairs), text)
    if encoder is not None:
        is_model_folder(encoder)
    _check_documents(documents, beir)
    stages = tuple(stage for stage in SHARES if text is not None or stage not in ON_TEXT)
    journey = Journey(out, parse_duration(budget), _by_stage(overrides), console or Console(stderr=True), stages)
    _check(journey, pairs, text)
    _remember(journey, {"text": _named(text), "encoder": _named(encoder), "pairs": _contents(pairs)})
    start = encoder
    if text is not None:
        for stage in ON_TEXT:
            start = journey.train(stage, start, text)
    pretrained = start
    ranker = journey.train("pairs", pretrained, pairs)
    mined = journey.mine(pairs, ranker)
    ranker = journey.train("mined", ranker, mined)
    reranker = journey.train("reranker", pretrained, mined)
    from sslnlp.search.changes import build_index

    index = out / "index"
    facts = build_index(documents, index, model=ranker, reranker=reranker)
    journey.tell(f"index: {facts['documents']['count']:,} documents in {index}")
    if beir is not None and evaluate is not None:
        evaluate(index, beir)
    journey.tell(f'Try: sslnlp search query {index} "your words", or sslnlp search serve {index}')
    return index


def _says(keys: Sequence[str], names: tuple[str, ...]) -> bool:
    return any(key.startswith(names) for key in keys)


def _begun_with(place: Path) -> dict[str, Any]:
    """`train` of a run that was stopped in `place`, which goes on as it began; empty where there is none."""
    story = place / "recipe.json"
    return dict(read_biography(story)["recipe"]["train"]) if story.is_file() else {}


def _check(journey: Journey, pairs: Path, text: str | None) -> None:
    """Raises `UserError` where `out` holds something else, or the columns that a stage to come reads are not there."""
    ours = {*RECIPES, "mined.jsonl", "index", INPUTS}
    if journey.out.is_dir() and (there := {path.name for path in journey.out.iterdir()}) and not there & ours:
        raise UserError(f"{journey.out} already holds other files ({min(there)}): choose another --out")
    from sslnlp.data.paired import paired
    from sslnlp.data.sources import open_part

    for stage in (stage for stage in RECIPES if not journey.finished(stage)):
        if stage == "pairs":
            with _of_stage(stage), TemporaryDirectory() as folder:
                paired(_data(journey, stage, pairs), cache_dir=folder)
        elif stage in ON_TEXT and text is not None:
            with _of_stage(stage):
                data = _data(journey, stage, text)
                next(open_part(data, "train", None).documents(data.text, data.split_text), None)


def _check_documents(documents: Path, beir: Path | None) -> None:
    """Raises `UserError` for a document that cannot be indexed, and where `beir` judges none of them."""
    ids: set[str] = set()
    for document in read_documents(documents):
        if document.id in ids and document.content:
            from sslnlp.search.store import twice

            raise twice(document.id)
        ids.add(document.id)
    if beir is not None:
        from sslnlp.search.evaluate import beir_files, load_judged

        queries, qrels = beir_files(beir)
        judged = load_judged(None, queries, qrels).qrels.values()
        if not any(document in ids for found in judged for document in found):
            raise UserError(f"{documents} has no document that {qrels} judges: do their ids match?")


def _remember(journey: Journey, inputs: dict[str, str | None]) -> None:
    """Write down what the stages are made from. Raises `UserError` where one that is there was made from something
    else: it would pass for one made from this."""
    path = journey.out / INPUTS
    former = read_json(path)
    for name, (stage, other) in READ_FIRST.items():
        if (journey.out / stage).exists() and former.get(name, inputs[name]) != inputs[name]:
            raise UserError(f"the stage {stage} in {journey.out} was made from {other}: choose another --out")
    keys = {stage: sorted(journey.overrides.get(stage, [])) for stage in RECIPES}
    for stage, before in former.get("keys", {}).items():
        if journey.finished(stage) and before != keys.get(stage):
            said = " ".join(f"--set {stage}.{key}" for key in before) or "none"
            raise UserError(
                f"the stage {stage} in {journey.out} was made with other keys ({said}): choose another --out"
            )
    write_json(path, {**inputs, "keys": keys})


def _named(source: str | None) -> str | None:
    """A path as it is called from anywhere; a glob or a hub name stays as it is."""
    return str(Path(source).resolve()) if source is not None and Path(source).exists() else source


def _contents(pairs: Path) -> str:
    return sha256_of(pairs) if pairs.is_file() else str(pairs.resolve())


def _data(journey: Journey, stage: str, train: Path | str) -> DataConfig:
    return stage_recipe(stage, [f"data.train={train}", *journey.overrides.get(stage, [])]).data


@contextmanager
def _of_stage(stage: str) -> Iterator[None]:
    """What is wrong with the data names a key of a recipe: here it is one of a stage."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace("say data.", f"say --set {stage}.data.")) from error


def stage_recipe(stage: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a stage under its own keys, and what a stage has of its own where these do not say otherwise."""
    given = {override.partition("=")[0] for override in overrides}
    own = [f"{key}={value}" for key, value in OWN_KEYS[stage].items() if key not in given]
    return load_recipe(RECIPES[stage], [*own, *overrides])


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
