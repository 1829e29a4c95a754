"""Deletion for a sentence autoencoder: the encoder reads what is left of a document, the decoder writes all of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sslnlp.arrays import Bools, Ints
from sslnlp.collators.base import Collator
from sslnlp.collators.ragged import blocks
from sslnlp.collators.seq2seq import SEQ2SEQ_KEYS, seq2seq_batch
from sslnlp.collators.spans import document_numbers
from sslnlp.collators.tokens import FreshPositions, TokenBlock, pad_id, token_block
from sslnlp.errors import UserError, suggest
from sslnlp.rng import bits
from sslnlp.tokenizer import special_mask, word_boundaries
from sslnlp.types import Batch, Row

UNITS = ("token", "word")


@dataclass(kw_only=True)
class TSDAECollator(Collator):
    """Deletes a share of each document's tokens; the target is the whole document (Wang et al., 2021, TSDAE).

    `rate`: share of the tokens that go: exactly `round(rate × tokens)` of each document, and at least one stays.
    Special tokens (the framing) always stay, and do not count.

    `unit`: `token`, or `word` (whole words, whatever the tokenizer). Words are never cut, so the count is met to within
    half a word; at least one word stays.

    Makes what `collators.seq2seq.seq2seq_batch` makes: the shortened documents, packed as they were, as `input_ids`,
    `attention_mask`, `document_ids`, `position_ids` [B, S]; each document from its second token on (its first, [CLS],
    says nothing), [SEP] at its end, as `labels`, `decoder_document_ids`, `decoder_position_ids` [B, T]; `position` [B].
    Without positions, as a `data_collator`: `input_ids`, `attention_mask` and `labels`, drawn anew at every call.
    Raises `UserError` for a bad option.
    """

    name: ClassVar[str] = "tsdae"
    makes: ClassVar[frozenset[str]] = SEQ2SEQ_KEYS

    rate: float = 0.6
    unit: str = "token"

    def __post_init__(self) -> None:
        if not 0 <= self.rate < 1:
            raise UserError(f"collator.rate is a share of the tokens from 0 to below 1, got {self.rate}")
        if self.unit not in UNITS:
            raise UserError(f"unknown collator.unit {self.unit!r}.{suggest(self.unit, UNITS)}")
        self._special = special_mask(self.tokenizer)
        self._boundaries = word_boundaries(self.tokenizer) if self.unit == "word" else None
        self._fresh = FreshPositions()

    def __call__(self, rows: Sequence[Row]) -> Batch:
        block = token_block(rows, self.tokenizer)
        positions = self._fresh.of_block(block)
        kept = block.attention & ~self._deleted(block, positions)
        written = block.attention & ~(block.opens & self._special[block.input_ids])
        return seq2seq_batch(block, self._side(block, kept), self._side(block, written))

    def _side(self, block: TokenBlock, chosen: Bools) -> tuple[Ints, Ints]:
        """Ids and document ids of the chosen tokens of each row, moved together."""
        flat = np.flatnonzero(chosen)
        rows, width = chosen.shape
        ids, documents = block.input_ids.ravel()[flat], block.document_ids.ravel()[flat]
        input_ids, document_ids = blocks(flat // width, rows, (ids, pad_id(self.tokenizer)), (documents, -1))
        return input_ids, document_ids

    def _deleted(self, block: TokenBlock, positions: Ints) -> Bools:
        """bool [B, S]: the units of each document with the smallest draws, until its count is met.

        Everything is flat: U units in the block (tokens, or words), each with its document, length and draw.
        """
        able = block.attention & ~self._special[block.input_ids]
        starts = able.copy()
        if self._boundaries is not None:
            starts &= self._boundaries.starts(block.input_ids) | block.opens
            starts[:, 1:] |= able[:, 1:] & ~able[:, :-1]  # a special token parts words
            starts[:, 0] |= able[:, 0]
        first_U = np.flatnonzero(starts)
        unit = np.cumsum(starts.ravel()) - 1
        length_U = np.bincount(unit[able.ravel()], minlength=len(first_U))
        document_U = document_numbers(block)[first_U]
        draw_U = bits(self.seed, "tsdae/deletion", positions, able.shape[1]).ravel()[first_U]
        order = np.lexsort((draw_U, document_U))  # stable: equal draws stay in the order of the text
        document, length = document_U[order], length_U[order]
        last = np.append(document[1:] != document[:-1], True)[: len(document)]
        total = np.bincount(document, weights=length)
        before = np.cumsum(total) - total
        middle = np.cumsum(length) - length / 2 - before[document]
        gone_U = np.empty(len(first_U), dtype=np.bool_)
        gone_U[order] = (middle <= np.rint(self.rate * total)[document]) & ~last
        deleted: Bools = able.copy()
        deleted[able] = gone_U[unit[able.ravel()]]
        return deleted


@dataclass(kw_only=True)
class AutoencodingCollator(TSDAECollator):
    """The same with nothing deleted unless `rate` says so: each document is to be written as it was read."""

    name: ClassVar[str] = "autoencoding"

    rate: float = 0.0
