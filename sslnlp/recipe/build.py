"""From a recipe to its parts: tokenizer and contract, rows, collator; then the model and the objective."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sslnlp import distributed, rng
from sslnlp.collators.base import Collator
from sslnlp.data.config import DataConfig, cache_at
from sslnlp.data.labelled import Labelled, labelled, out_of_scope, unlabelled
from sslnlp.data.packing import PackedRows, PaddedRows
from sslnlp.data.paired import Paired, paired
from sslnlp.data.pictured import PictureRows, pictured
from sslnlp.data.prepare import prepare_text
from sslnlp.data.store import TokenStore
from sslnlp.data.stream import RowSource, Stream, in_runs
from sslnlp.data.table_rows import TableRows
from sslnlp.data.tagged import Tagged, tagged
from sslnlp.errors import UserError
from sslnlp.model_config import ModelConfig
from sslnlp.models import build_config, build_model, max_positions
from sslnlp.objectives.base import Objective
from sslnlp.packed import isolates, isolates_pairs, reads_alone, trust_rows
from sslnlp.recipe.checks import check_recipe, stock_config
from sslnlp.recipe.embeddings import start_embeddings
from sslnlp.recipe.inherit import inherit
from sslnlp.recipe.overrides import fields_of
from sslnlp.recipe.schema import Recipe
from sslnlp.recipe.tokenizing import TOKENIZER_BYTES, recipe_tokenizer, text_tokenizer
from sslnlp.sharding import every_process_loads
from sslnlp.tokenizer import Contract, framing, load_tokenizer, special_id
from sslnlp.tokenizer.training import stand_in
from sslnlp.writing import room_in

log = logging.getLogger(__name__)

LARGE = 0.2
"""The share of the text that may be held out before it is told."""

CHECKED_ROWS = 256
"""Rows a collator is shown beforehand, to refuse text that it finds no targets in."""


@dataclass(kw_only=True)
class Parts:
    """What a run is made of, before the model."""

    recipe: Recipe
    tokenizer: PreTrainedTokenizerBase | None
    """None where there is no text, as of pictures alone."""
    contract: Contract | None
    """Of the tokenizer."""
    collator: Collator
    stream: Stream
    valid: Stream | None
    valid_bytes: int | None
    """UTF-8 bytes of the held-out text, for bits per byte; None for tables."""
    max_length: int
    """Tokens of the longest row."""
    text: PackedRows | PaddedRows | None = None
    """The rows of raw text; None where they are a table's or pictures."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What the preparation counted."""
    label_names: list[str] | None = None
    unlabelled: RowSource | None = None
    """Rows whose label is -100."""
    out_of_scope: RowSource | None = None
    """The same of no class: what the held-out rows are told from."""
    chosen: dict[str, Any] = field(default_factory=dict)
    """Keys that the budget chose (`recipe.choose`)."""

    def under(self, recipe: Recipe, chosen: dict[str, Any]) -> Parts:
        """The same rows of text under a recipe with other batches, rates or dropout."""
        bucket = recipe.train.batch_size if recipe.data.packing == "bucket" else None
        stream = Stream(self.stream.source, recipe.train.seed, bucket=bucket)
        facts = {} if recipe.collator_class.reads_text else picture_facts(recipe.model)
        collator = _collator(recipe, self.tokenizer, facts)
        return replace(self, recipe=recipe, collator=collator, stream=stream, chosen=chosen)


def resolve(recipe: Recipe) -> tuple[Recipe, dict[str, Any]]:
    """The recipe with everything inherited and checked that can be checked without reading data."""
    resolved, inherited = inherit(recipe)
    check_recipe(resolved)
    _bound_lengths(resolved)
    _check_options(resolved)
    return resolved, inherited


def _bound_lengths(recipe: Recipe) -> None:
    """Cut the lengths a collator works with to what the model reads and to a given `data.seq_length`.

    They are written into the options, so the resolved recipe says what was done.
    """
    cls = recipe.collator_class
    longest = max_positions(stock_config(recipe.model)) if recipe.model.pretrained else None
    given = recipe.data.seq_length if "data.seq_length" in recipe.given else None
    bounds = [bound for bound in (longest, given) if bound is not None]
    for name in cls.lengths:
        recipe.collator.options.setdefault(name, min([getattr(cls, name), *bounds]))


def _check_options(recipe: Recipe) -> None:
    """Make the collator, and the configuration of a fresh model, once before text is read: they refuse wrong values."""
    if not recipe.collator_class.reads_text:
        _collator(recipe, None, picture_facts(recipe.model))
    elif recipe.tokenizer.path is not None:
        _collator(recipe, load_tokenizer(recipe.tokenizer.path), {})
    else:
        _collator(recipe, stand_in(), {})
    if recipe.model.pretrained is None and recipe.collator_class.reads_text:
        build_config(recipe.model, stand_in(), recipe.data.seq_length)


def cache_folder(recipe: Recipe) -> Path:
    """Where token stores and trained tokenizers are kept: `data.cache`, $SSLNLP_CACHE, else ~/.cache/sslnlp."""
    return cache_at(recipe.data.cache)


def processes() -> PartialState:
    """This process among those launched together. The first call joins them, through gloo where it is on CPUs."""
    every_process_loads()
    return PartialState(cpu=distributed.trains_on_cpu())


def build_parts(recipe: Recipe, *, tokenizer_path: Path | None = None) -> Parts:
    """Tokenizer, contract, rows and collator of a resolved recipe. `tokenizer_path`: that of a run being resumed."""
    build = {"tokens": _token_parts, "rows": _table_parts, "pictures": _picture_parts}[recipe.collator_class.reads]
    cache = cache_folder(recipe)
    # One process reads and writes the caches, the others find them.
    with distributed.main_first(), room_in(cache):
        return build(recipe, cache, tokenizer_path)


def build_objective(parts: Parts) -> Objective:
    """The model of the recipe under its objective. Fresh weights depend on `train.seed` alone, and on the
    text where `model.embedding_init` counts in it."""
    recipe, cls = parts.recipe, parts.recipe.objective_class
    extra = cls.config_fields(parts.label_names or ())
    model = build_model(
        recipe.model, parts.tokenizer, cls.wraps,
        max_length=parts.max_length, seed=recipe.train.seed, **extra,
    )  # fmt: skip
    _check_rows(recipe, model)
    if recipe.model.embedding_init == "cooccurrence" and parts.text is not None:
        with distributed.main_first():  # who counts, the others find it counted
            start_embeddings(model, parts.text, shifted=cls.shifted, seed=recipe.train.seed)
    # What an objective adds (a decoder, a generator) starts from draws of its own, not from those of the model again.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng.key(recipe.train.seed, "objective"))
        objective = cls(model, **{**cls.settled_by(parts.facts), **recipe.objective.options})
    trust_rows(objective)
    return objective


def _check_rows(recipe: Recipe, model: PreTrainedModel) -> None:
    """Refuse a model that does not keep the documents of a packed row apart: most that read no mask of pairs say
    nothing, and learn from another text than the rows are meant to be. Rows of one document also suit the plain mask.
    """
    reads = recipe.collator_class.reads
    tokens = reads == "tokens"
    if not tokens and (reads != "rows" or "view_0" not in recipe.collator_class.makes):  # they have the plain mask
        return
    pairs = model.config.is_encoder_decoder
    packed = tokens and recipe.data.packing == "pack"
    if packed and (isolates_pairs(model) if pairs else isolates(model)):
        return
    objective = recipe.objective_class
    plain = not any("bidirectional" in part.needs for part in (objective, *objective.parts.values()))
    alone = isolates_pairs(model, alone=True) if pairs else reads_alone(model, plain=plain)
    if alone and not packed:
        return
    reason = f"does not run on rows of one document, padded, as objective {objective.name!r} needs it"
    if packed:
        reason = "does not keep the documents of a packed row apart, and would learn from the text beside them"
    advice = "set data.packing=bucket, which puts one document into a row, or " if packed and alone else ""
    usual = "BART's, T5's or Marian's" if pairs else "BERT's, RoBERTa's, MPNet's or Llama's"
    raise UserError(
        f"{type(model).__name__} ({model.config.model_type!r}) {reason}; {advice}choose another model.pretrained, such "
        f"as one of {usual} kind"
    )


# --- rows ------------------------------------------------------------------------------------------------------------


def _token_parts(recipe: Recipe, cache: Path, tokenizer_path: Path | None) -> Parts:
    """Packed or padded rows of raw text."""
    data, style = recipe.data, recipe.objective_class.framing
    tokenizer, kept = text_tokenizer(recipe, cache, tokenizer_path)
    prepared = prepare_text(data, tokenizer, cache_dir=cache)
    frame = framing(tokenizer, style)
    collator = _collator(recipe, tokenizer, {})

    def rows(store: TokenStore) -> PackedRows | PaddedRows:
        kind = PackedRows if data.packing == "pack" else PaddedRows
        return kind(
            store, collator.source_length(data.seq_length), frame.prefix, frame.suffix, tokenizer.pad_token_id or 0,
            suffix_every_piece=style != "decoder", reserve=collator.reserve,
        )  # fmt: skip

    train = rows(prepared.train)
    bucket = recipe.train.batch_size if data.packing == "bucket" else None
    stream = Stream(train, recipe.train.seed, bucket=bucket)
    collator.check_rows(stream.rows(range(min(len(train), CHECKED_ROWS))))
    valid = prepared.valid if prepared.valid is not None and len(prepared.valid) else None
    facts = prepared.facts | {"rows": len(train), "utilisation": getattr(train, "utilisation", None)}
    if valid is not None and data.valid is None:
        _tell_large(valid.num_tokens / (valid.num_tokens + prepared.train.num_tokens), facts["valid"], data)
    if valid is not None and recipe.objective_class.likelihood and (unknown := _unknown(valid, tokenizer)):
        facts["valid"] = facts["valid"] | {"unknown": unknown}
    return Parts(
        recipe=recipe,
        tokenizer=tokenizer,
        contract=kept,
        collator=collator,
        stream=stream,
        valid=Stream.fixed(rows(valid)) if valid is not None else None,
        valid_bytes=valid.num_bytes if valid is not None else None,
        max_length=data.seq_length,
        text=train,
        facts=facts,
    )


def _unknown(held_out: TokenStore, tokenizer: PreTrainedTokenizerBase) -> int:
    """How often held-out text has the unknown token: its bytes are counted, and what they would cost is not."""
    if (unknown := special_id(tokenizer, "unk")) is None:
        return 0
    length, step = held_out.num_tokens, 1 << 20
    number = sum(int((held_out.run(i, min(i + step, length)) == unknown).sum()) for i in range(0, length, step))
    if number:
        log.warning(
            "%s stands %d times in held-out text, for text that no model of this tokenizer can tell: bits_per_byte is "
            "too low to compare with another tokenizer's (bpe and bytes know every text)", tokenizer.unk_token, number,
        )  # fmt: skip
    return number


def _tell_large(share: float, valid: Mapping[str, Any], data: DataConfig) -> None:
    """Documents are held out whole: of few long ones it may be much of the text, of another kind than the rest."""
    if share > max(LARGE, 2 * data.valid_fraction):
        log.warning(
            "%.0f %% of the text is held out, in %d documents, as a document is held out whole: give data.valid, or "
            "shorter documents (data.split_text=block or line takes several out of a text file)",
            100 * share, valid["documents"],
        )  # fmt: skip


def _table_parts(recipe: Recipe, cache: Path, tokenizer_path: Path | None) -> Parts:
    """Rows of a labelled table, or of one that pairs texts: what the collator's columns ask for."""
    cls = recipe.collator_class
    tables, more, others = _tables(recipe, cache)
    names = None if isinstance(tables, Paired) else tables.label_names or None
    facts: dict[str, Any] = {"label_names": names, "table": tables.train}
    rows, joiner = tables.train, recipe.collator.options.get("joiner", " ")
    tokenizer, kept = recipe_tokenizer(recipe, lambda: _table_texts(rows, joiner), cache, tokenizer_path)
    collator = _collator(recipe, tokenizer, facts)
    return Parts(
        recipe=recipe,
        tokenizer=tokenizer,
        contract=kept,
        collator=collator,
        stream=Stream(rows, recipe.train.seed),
        valid=Stream.fixed(tables.valid) if tables.valid is not None else None,
        valid_bytes=None,
        max_length=max((getattr(collator, name) for name in cls.lengths), default=recipe.data.seq_length),
        facts=tables.facts | ({} if isinstance(tables, Paired) else {"classes": tables.counts}),
        label_names=names,
        unlabelled=more,
        out_of_scope=others,
    )


def _picture_parts(recipe: Recipe, cache: Path, tokenizer_path: Path | None) -> Parts:
    """Pictures, with their captions where the collator reads text."""
    reads_text = recipe.collator_class.reads_text
    tables = pictured(recipe.data, cache_dir=cache, captions_needed=reads_text)
    tokenizer, kept, facts = None, None, {}
    if reads_text:
        tokenizer, kept = recipe_tokenizer(recipe, lambda: _captions(tables.train), cache, tokenizer_path)
    else:
        facts = picture_facts(recipe.model)
    collator = _collator(recipe, tokenizer, facts)
    return Parts(
        recipe=recipe,
        tokenizer=tokenizer,
        contract=kept,
        collator=collator,
        stream=Stream(tables.train, recipe.train.seed),
        valid=Stream.fixed(tables.valid) if tables.valid is not None else None,
        valid_bytes=None,
        max_length=getattr(collator, "max_length", 0),
        facts=tables.facts,
    )


def picture_facts(model: ModelConfig) -> dict[str, int]:
    """Pixels of a side of the pictures that a vision tower reads, and of their patches."""
    stock: Any = build_config(model, None, 0) if model.pretrained is None else stock_config(model)
    size, patch = int(stock.image_size), int(stock.patch_size)
    if size % patch:
        raise UserError(f"model.config.image_size={size} is not a multiple of model.config.patch_size={patch}")
    return {"image_size": size, "patch_size": patch}


def _captions(rows: PictureRows) -> Iterator[str]:
    for start in range(0, len(rows), 1024):
        for texts in rows.texts(range(start, min(start + 1024, len(rows)))):
            yield from texts


def _tables(recipe: Recipe, cache: Path) -> tuple[Labelled | Tagged | Paired, TableRows | None, TableRows | None]:
    """The rows that the collator reads, by what their label column holds; the unlabelled ones and those out of scope,
    if any."""
    kind, names = recipe.collator_class.label_kind, recipe.collator.options.get("label_names")
    if kind is None:
        return paired(recipe.data, cache_dir=cache), None, None
    if kind == "tags":
        return tagged(recipe.data, names=names, cache_dir=cache), None, None
    tables = labelled(recipe.data, kind=kind, names=names, cache_dir=cache)
    more, left_out = unlabelled(recipe.data, tables, cache_dir=cache)
    if more is not None:
        tables.facts |= {"unlabelled_rows": len(more), "unlabelled_left_out": left_out}
    return tables, more, out_of_scope(recipe.data, tables, cache_dir=cache)


def _table_texts(rows: TableRows, joiner: str) -> Iterator[str]:
    """Every text of the rows, within the bounds of a tokenizer's training; `joiner` stands between tagged words."""
    left = TOKENIZER_BYTES
    for some in in_runs(rows):
        for row in some:
            for name, value in row.items():
                words = name == "words"  # of one text, which a tokenizer is to see as the collator writes it
                for text in [joiner.join(value)] if words else value if isinstance(value, list) else [value]:
                    if isinstance(text, str):
                        left -= len(text)
                        yield text
        if left <= 0:
            return


def _collator(recipe: Recipe, tokenizer: PreTrainedTokenizerBase | None, facts: dict[str, Any]) -> Collator:
    """The collator; `facts` of the data fill in options that the recipe leaves open."""
    cls, options = recipe.collator_class, recipe.collator.options
    filled = {name: value for name, value in facts.items() if name in fields_of(cls)}
    words: Any = tokenizer
    return cls(tokenizer=words, seed=recipe.train.seed, **(filled | options))
