"""Several views of the same text, for objectives that make their vectors agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import numpy as np
import torch

from sslnlp.arrays import Bools, Ints
from sslnlp.collators.base import Collator
from sslnlp.collators.ragged import blocks
from sslnlp.collators.ranking import RankingCollator
from sslnlp.collators.seq2seq import within_document
from sslnlp.collators.tokens import FreshPositions, TokenBlock, pad_id, token_block
from sslnlp.collators.view_steps import Source, Step, Tokens, crop, delete, ranks, reorder, sentence
from sslnlp.errors import UserError, suggest
from sslnlp.rng import mix
from sslnlp.tokenizer import sentence_boundaries, special_mask, word_boundaries
from sslnlp.types import Batch, Encoding, Row

WHOLE = "text"
"""The view that is the document as it is."""


@dataclass(kw_only=True)
class _Views(Collator):
    """What both kinds of views share: their steps, and how the views of a document become a batch."""

    views: list[str] = field(default_factory=lambda: ["crop", "crop"])
    """How each view is made: `text`, or steps joined by `+` (`crop+delete`); two or more views."""
    crop_min: float = 0.1
    """Share of the document's tokens that a crop has at least."""
    crop_max: float = 0.5
    """Share that it has at most."""
    gap: float = 0.2
    """Share of the document, in its middle, that neither `head` nor `tail` reaches."""
    rate: float = 0.1
    """Share of the words that `delete` takes away."""
    distance: int = 3
    """Words by which `reorder` moves a word at most."""
    min_tokens: int = 4
    """Documents with fewer tokens of text make no views; no crop is shorter."""

    _sources: ClassVar[tuple[str, ...]] = (WHOLE,)
    """What a view can be made of."""

    def __post_init__(self) -> None:
        if not 0 < self.crop_min <= self.crop_max <= 1:
            raise UserError(
                f"collator.crop_min={self.crop_min} and crop_max={self.crop_max} must be shares above 0, in this order"
            )
        for name, value in (("rate", self.rate), ("gap", self.gap)):
            if not 0 <= value < 1:
                raise UserError(f"collator.{name} is a share from 0 to below 1, got {value}")
        for name, number in (("distance", self.distance), ("min_tokens", self.min_tokens)):
            if number < 1:
                raise UserError(f"collator.{name} must be at least 1, got {number}")
        if len(self.views) < 2:
            raise UserError(f"collator.views needs two views to compare, got {self.views}")
        self._chains = [self._parsed(view) for view in self.views]
        self._special = special_mask(self.tokenizer)
        self._words = word_boundaries(self.tokenizer)
        sentences = self._uses("sentence") or self._uses("neighbour")
        self._sentences = sentence_boundaries(self.tokenizer) if sentences else None
        self._fresh = FreshPositions()

    def _uses(self, step: str) -> bool:
        return any(step in view.split("+") for view in self.views)

    def _steps(self) -> dict[str, Step]:
        part = (1 - self.gap) / 2
        span = partial(crop, least=self.crop_min, most=self.crop_max, shortest=self.min_tokens)
        return {
            "crop": span,
            "head": partial(span, part=part),
            "tail": partial(span, part=part, tail=True),
            "sentence": partial(sentence, behind=0),
            "neighbour": partial(sentence, behind=1),
            "delete": partial(delete, rate=self.rate),
            "reorder": partial(reorder, distance=self.distance),
        }

    def _parsed(self, view: str) -> tuple[str, list[tuple[str, Step]]]:
        """What a view is made of, and its steps by name."""
        names, known = view.split("+"), self._steps()
        if names[0] not in self._sources and self._sources != (WHOLE,):
            raise UserError(f"collator.views={view!r} must begin with its column: {' or '.join(self._sources)}")
        source = names.pop(0) if names[0] in self._sources else WHOLE
        for i, name in enumerate(names):
            if name not in known:
                accepted = (*self._sources, *known)
                raise UserError(f"unknown step {name!r} in collator.views.{suggest(name, accepted)}")
            if i and name in ("sentence", "neighbour"):
                raise UserError(f"collator.views={view!r}: {name!r} is taken from the whole text, so it stands first")
        return source, [(name, known[name]) for name in names]

    def _source(self, block: TokenBlock, positions: Ints) -> Source:
        return Source(block, self._special, self._words, self._sentences, self.seed, positions)

    def _batch(self, sources: Sequence[Source]) -> Batch:
        """The batch of the views, each of its own source; a document that is empty in one of them is in none."""
        made: list[Tokens] = []
        kept = np.ones(sources[0].number, dtype=np.bool_)
        for v, ((_, steps), source) in enumerate(zip(self._chains, sources, strict=True)):
            tokens = source.text
            kept &= np.bincount(tokens.document, minlength=source.number) >= self.min_tokens
            for i, (name, step) in enumerate(steps):
                tokens = step(tokens, source, f"{v}/{i}/{name}")
            kept &= np.bincount(tokens.document, minlength=source.number) > 0
            made.append(tokens)
        kept_BC = kept.reshape(-1, sources[0].most)
        count = kept_BC.sum(axis=1)
        number = (np.cumsum(kept_BC, axis=1) - 1).ravel()  # of a document among those that are kept of its row
        batch: Batch = {
            f"view_{v}": _encoding(tokens, source, kept, number, pad_id(self.tokenizer))
            for v, (tokens, source) in enumerate(zip(made, sources, strict=True))
        }
        present_BC = np.arange(max(1, count.max(initial=0))) < count[:, None]
        batch["present"] = torch.from_numpy(present_BC)
        batch["documents"] = torch.from_numpy(np.flatnonzero(present_BC))
        batch["position"] = torch.from_numpy(sources[0].positions)
        return batch


@dataclass(kw_only=True)
class ViewsCollator(_Views):
    """N views of each document of packed rows, each made by its own steps, in the order they are written in.

    * `text`: the document as it is; two of these differ by the model's dropout alone (SimCSE's twins).
    * `crop`: a random span, `crop_min` to `crop_max` of the document's tokens (Izacard et al., 2022, Contriever).
    * `head`, `tail`: crops from the two ends of the document, which lie `gap` of it apart.
    * `sentence`, `neighbour`: a random sentence that has another behind it, and that one (first in their views).
    * `delete`: `round(rate × words)` words are gone, one at least stays; `reorder`: words move by up to `distance`.

    The framing stays. A document with less than `min_tokens` tokens of text (none, for instance), or without a
    neighbour where one is asked for, is left out of all views and has no target. A text that is cut by the end of a
    row is two documents here.

    Makes `view_0`, `view_1`, ...: packed encodings `input_ids`, `attention_mask`, `document_ids`, `position_ids`
    [B, S] (S its own) with `hashes` int64 [B, C, 2], of the text that a view was made of and of what is left of it;
    `present` bool [B, C], C the most documents of a row: document c of row b is number c in that row of each view;
    `documents` int64 [M], where in [B × C] these are; `position` [B]. Rows without a position get new draws at every
    call.
    Raises `UserError` for bad options; `check_rows` for rows without a document that makes views.
    """

    name: ClassVar[str] = "views"
    makes: ClassVar[frozenset[str]] = frozenset({"view_0", "view_1", "present", "documents", "position"})

    def __call__(self, rows: Sequence[Row]) -> Batch:
        block = token_block(rows, self.tokenizer)
        positions = self._fresh.of_block(block)
        return self._batch([self._source(block, positions)] * len(self.views))

    def check_rows(self, rows: Sequence[Row]) -> None:
        """Refuses rows of which no document makes views."""
        if not self(rows)["present"].any():
            sentences = " and two sentences" if self._uses("neighbour") else ""
            raise UserError(
                f"views need documents of {self.min_tokens} tokens{sentences} (collator.min_tokens), and {len(rows)} "
                "rows hold none; give longer texts or other collator.views"
            )


@dataclass(kw_only=True)
class PairViewsCollator(_Views, RankingCollator):
    """Views of two columns: a title and its text, a question and its answer (weak supervision).

    Each view begins with the column it is made of, `query` or `positive`, and has the steps of `views` behind it:
    `query`, `positive+delete`. Columns, prefixes, lengths and hard negatives are those of `ranking`. A column with a
    prefix is a view as it is: the steps would take the prefix for text.

    Makes what `views` makes, one document a row (C = 1), and where the rows have negatives `negative`: an encoding of
    the n negatives of each row [B·n, S], row by row, with `hashes` int64 [B·n, 1, 2].
    Raises `UserError` as `ranking` and `views` do, for a blank text too.
    """

    name: ClassVar[str] = "pair_views"
    makes: ClassVar[frozenset[str]] = ViewsCollator.makes

    views: list[str] = field(default_factory=lambda: ["query", "positive"])
    min_tokens: int = 1

    _sources: ClassVar[tuple[str, ...]] = ("query", "positive")

    def __post_init__(self) -> None:
        RankingCollator.__post_init__(self)
        _Views.__post_init__(self)
        prefixes = {"query": self.query_prefix, "positive": self.document_prefix}
        for view, (column, steps) in zip(self.views, self._chains, strict=True):
            if steps and prefixes[column]:
                raise UserError(f"collator.views={view!r} would change the prefix of {column!r}; leave one of them out")

    def __call__(self, rows: Sequence[Row]) -> Batch:
        positions = self._fresh.of(rows)
        pairs = RankingCollator.__call__(self, rows)
        sources = {side: self._source(_block(pairs[side], positions), positions) for side in self._sources}
        batch = self._batch([sources[side] for side, _ in self._chains])
        if "negative" in pairs:
            nowhere = np.zeros(len(pairs["negative"]["input_ids"]), dtype=np.int64)  # nothing is drawn for them
            source = self._source(_block(pairs["negative"], nowhere), nowhere)
            batch["negative"] = _encoding(source.text, source, nowhere == 0, nowhere, pad_id(self.tokenizer))
        return batch


def _block(encoding: Encoding, positions: Ints) -> TokenBlock:
    """A padded encoding as rows of one document each."""
    ids, mask = encoding["input_ids"].numpy(), encoding["attention_mask"].numpy()
    return TokenBlock(ids, np.where(mask > 0, 0, -1), positions)


def _encoding(tokens: Tokens, source: Source, kept: Bools, number: Ints, padding: int) -> Encoding:
    """The encoding of a view of the documents that are `kept` [D], each between its framing tokens.

    `number` [D]: what a document is called in its row.
    """
    block = source.block
    ids, rows = block.input_ids.ravel(), len(block.input_ids)
    framing = np.flatnonzero(block.attention.ravel())
    framing = framing[~np.isin(framing, source.text.place)]
    # In order: the framing before the text, the text as the view has it, the framing behind it.
    first = np.full(source.number, len(ids))
    first[source.text.document[::-1]] = source.text.place[::-1]
    zone = np.where(framing < first[source.document[framing]], 0, 2)
    place = np.concatenate([framing, tokens.place])
    document = np.concatenate([source.document[framing], tokens.document])
    zone = np.concatenate([zone, np.ones(len(tokens.place), dtype=np.int64)])
    order = np.lexsort((np.concatenate([framing, np.arange(len(tokens.place))]), zone, document))
    order = order[kept[document[order]]]
    place, document = place[order], document[order]
    input_ids, document_ids = blocks(document // source.most, rows, (ids[place], padding), (number[document], -1))
    hashes = np.zeros((rows, max(1, int(document_ids.max(initial=-1)) + 1), 2), dtype=np.int64)
    row, column = np.flatnonzero(kept) // source.most, number[kept]
    for kind, text in enumerate((source.text, tokens)):
        hashes[row, column, kind] = _hashes(ids[text.place], text.document, source.number)[kept]
    return {
        "input_ids": torch.from_numpy(input_ids),
        "attention_mask": torch.from_numpy(document_ids >= 0),
        "document_ids": torch.from_numpy(document_ids),
        "position_ids": torch.from_numpy(within_document(document_ids)),
        "hashes": torch.from_numpy(hashes),
    }


def _hashes(ids: Ints, document: Ints, number: int) -> Ints:
    """A 64-bit hash of the ids and their order for each of `number` documents: int64."""
    with np.errstate(over="ignore"):
        token = mix(mix(ids.astype(np.uint64) + np.uint64(1)) + ranks(document).astype(np.uint64))
        total = np.concatenate([np.zeros(1, np.uint64), np.cumsum(token, dtype=np.uint64)])
        ends = np.searchsorted(document, np.arange(number), side="right")
        starts = np.searchsorted(document, np.arange(number))
        hashes: Ints = mix(total[ends] - total[starts]).view(np.int64)
    return hashes
