"""From a recipe to its parts: tokenizer and contract, rows, collator; then the model and the objective."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import PreTrainedTokenizerBase

from sslnlp.collators.base import Collator
from sslnlp.data.packing import PackedRows, PaddedRows
from sslnlp.data.prepare import prepare_text, sample_texts
from sslnlp.data.store import TokenStore
from sslnlp.data.stream import RowSource, Stream
from sslnlp.errors import UserError
from sslnlp.models import build_model
from sslnlp.objectives.base import Objective
from sslnlp.recipe.check import check_recipe
from sslnlp.recipe.inherit import inherit
from sslnlp.recipe.schema import Recipe, TokenizerConfig
from sslnlp.tokenizer import Contract, contract, framing, load_tokenizer, set_framing, train_tokenizer

log = logging.getLogger(__name__)

TOKENIZER_BYTES = 100 << 20
"""Text a tokenizer is trained on at most: word counts of more change a vocabulary of this size hardly at all."""
CONTRACT_TEXTS, CONTRACT_CHARACTERS = 200, 2000


@dataclass(kw_only=True)
class Parts:
    """What a run is made of, before the model."""

    recipe: Recipe
    tokenizer: PreTrainedTokenizerBase
    contract: Contract
    collator: Collator
    stream: Stream
    valid: Stream | None
    valid_bytes: int | None
    """UTF-8 bytes of the held-out text, for bits per byte; None for tables."""
    max_length: int
    """Tokens of the longest row."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What the preparation counted."""
    label_names: list[str] | None = None


def resolve(recipe: Recipe) -> tuple[Recipe, dict[str, Any]]:
    """The recipe with everything inherited and checked that can be checked without reading data."""
    resolved, inherited = inherit(recipe)
    check_recipe(resolved)
    return resolved, inherited


def cache_folder(recipe: Recipe) -> Path:
    """Where token stores and trained tokenizers are kept: `data.cache`, $SSLNLP_CACHE, else ~/.cache/sslnlp."""
    chosen = recipe.data.cache or os.environ.get("SSLNLP_CACHE") or "~/.cache/sslnlp"
    folder = Path(chosen).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to the cache {chosen}: {error.strerror}; set data.cache or SSLNLP_CACHE") from error
    return folder


def build_parts(recipe: Recipe, *, tokenizer_path: Path | None = None) -> Parts:
    """Tokenizer, contract, rows and collator of a resolved recipe. `tokenizer_path`: that of a run being resumed."""
    cache = cache_folder(recipe)
    objective, collator = recipe.objective_class, recipe.collator_class
    # One process reads and writes the caches, the others find them.
    with PartialState().main_process_first():
        tokenizer = _tokenizer(recipe, cache, tokenizer_path)
        set_framing(tokenizer, objective.causal)
        kept = contract_of(tokenizer, _sample(recipe))
        kept.require(sorted(collator.requires))
        build = _token_parts if collator.reads == "tokens" else _table_parts
        return build(recipe, tokenizer, kept, cache)


def build_objective(parts: Parts) -> Objective:
    """The model of the recipe under its objective. Fresh weights depend on `train.seed` alone."""
    recipe = parts.recipe
    extra: dict[str, Any] = {}
    if parts.label_names:
        names = dict(enumerate(parts.label_names))
        extra = {"num_labels": len(names), "id2label": names, "label2id": {name: c for c, name in names.items()}}
    model = build_model(
        recipe.model, parts.tokenizer, recipe.objective_class.wraps,
        max_length=parts.max_length, seed=recipe.train.seed, **extra,
    )  # fmt: skip
    return recipe.objective_class(model, **recipe.objective.options)


# --- tokenizer -------------------------------------------------------------------------------------------------------


def _sample(recipe: Recipe) -> Iterator[str]:
    return sample_texts(recipe.data, TOKENIZER_BYTES)


def _tokenizer(recipe: Recipe, cache: Path, path: Path | None) -> PreTrainedTokenizerBase:
    chosen = path or recipe.tokenizer.path
    if chosen is not None:
        return load_tokenizer(str(chosen))
    place = cache / "tokenizers" / _tokenizer_key(recipe)
    if (place / "tokenizer.json").is_file():
        return load_tokenizer(str(place))
    config = recipe.tokenizer
    log.info("training a %s tokenizer of %d tokens", config.algorithm, config.vocab_size)
    tokenizer = train_tokenizer(_sample(recipe), **_training_options(config))
    tokenizer.save_pretrained(place)
    return tokenizer


def contract_of(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> Contract:
    """The contract on the beginnings of the first texts: enough to tell, whatever the length of a document."""
    return contract(tokenizer, [text[:CONTRACT_CHARACTERS] for text in islice(texts, CONTRACT_TEXTS)])


def _training_options(config: TokenizerConfig) -> dict[str, Any]:
    return {name: value for name, value in asdict(config).items() if name != "path"}


def _tokenizer_key(recipe: Recipe) -> str:
    """A name for (the text, how it is trained): the same text gives the same tokenizer again."""
    digest = hashlib.blake2b(json.dumps(_training_options(recipe.tokenizer), sort_keys=True).encode(), digest_size=12)
    for text in _sample(recipe):
        digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()


# --- rows ------------------------------------------------------------------------------------------------------------


def _token_parts(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, kept: Contract, cache: Path) -> Parts:
    data, causal = recipe.data, recipe.objective_class.causal
    prepared = prepare_text(data, tokenizer, cache_dir=cache)
    frame = framing(tokenizer, causal)

    def rows(store: TokenStore) -> RowSource:
        kind = PackedRows if data.packing == "pack" else PaddedRows
        return kind(
            store, data.seq_length, frame.prefix, frame.suffix, tokenizer.pad_token_id or 0, suffix_every_piece=not causal
        )

    train = rows(prepared.train)
    bucket = recipe.train.batch_size if data.packing == "bucket" else None
    valid = prepared.valid if prepared.valid is not None and len(prepared.valid) else None
    return Parts(
        recipe=recipe,
        tokenizer=tokenizer,
        contract=kept,
        collator=_collator(recipe, tokenizer, {}),
        stream=Stream(train, recipe.train.seed, bucket=bucket),
        valid=Stream.fixed(rows(valid)) if valid is not None else None,
        valid_bytes=valid.num_bytes if valid is not None else None,
        max_length=data.seq_length,
        facts=prepared.facts | {"rows": len(train), "utilisation": getattr(train, "utilisation", None)},
    )


def _collator(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, facts: dict[str, Any]) -> Collator:
    """The collator with its options; `facts` of the data fill in options that it has and the recipe leaves open."""
    cls, options = recipe.collator_class, recipe.collator.options
    filled = {name: value for name, value in facts.items() if name in options_of(cls)}
    return cls(tokenizer=tokenizer, seed=recipe.train.seed, **(filled | options))
