"""Order of sentences: parts of a text change places, and the order is to be told from what they say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from typing import ClassVar

import numpy as np
import torch

from sslnlp.arrays import Ints
from sslnlp.collators.base import Collator
from sslnlp.collators.borders import Borders, SentenceBorders
from sslnlp.collators.masked_lm import MaskedLMCollator
from sslnlp.collators.tokens import IGNORED, FreshPositions, TokenBlock, pad_id, token_block
from sslnlp.data.packing import ranges
from sslnlp.errors import UserError
from sslnlp.rng import bits, uniform
from sslnlp.tokenizer import framing
from sslnlp.types import Batch, Row

MOST_SEGMENTS = 5
"""120 orders; of six segments there are 720, more than a batch has documents."""


@dataclass(kw_only=True)
class SentenceOrderCollator(Collator):
    """Swaps the two halves of every second document, then masks (Lan et al., 2020, ALBERT, arXiv:1909.11942).

    A document is cut in two where a sentence begins, A and B; each such place is equally likely. It is shown as
    `[CLS] A [SEP] B [SEP]` (label 0) or, with probability 1/2, `[CLS] B [SEP] A [SEP]` (label 1). The separator in
    the middle shows the model the border; position ids run on over it.

    Nothing but what is said should tell the order, so what would give it away keeps its place. Rows hold pieces of long
    texts: a last sentence without an end (a full stop, a line break) stays last, and the first sentence, perhaps the
    rest of one, stays first unless there would be no two others. White space is the other tell-tale: A and B are made
    up so that the same stands before, between and behind them, a space or a line break or nothing. So in vocabularies
    that spell spaces and put none before a text (GPT-2's; the `bpe` of `train_tokenizer`), a first sentence always
    stays, and it takes three sentences instead of two. Documents with fewer, or with special tokens inside their text,
    have no order target and are used for the masked LM alone.

    `rate`, `rate_end`, `eval_rate`, `unit` and `replace` are those of `masked_lm` and hold after the swap; `rate=0`
    masks nothing, in training or on held-out text: the order is the only task. Special tokens keep their places and
    are never targets. `reserve` is one token a document.

    Makes `input_ids`, `attention_mask`, `document_ids`, `position_ids`, `labels` [B, S] (-100 where nothing is asked),
    `target_index` int64 [N] (flat places of the masked targets), `order_index` int64 [M] (flat place of the first
    token of each document with an order target, ascending), `order_labels` int64 [M] and `position` [B]. As a
    `data_collator` of `transformers.Trainer` it makes `input_ids`, `attention_mask`, `labels`; no stock model knows
    the order target.
    Raises `UserError` for a bad option and for a tokenizer without a mask or separator token; `check_rows` for rows
    without an order target.
    """

    name: ClassVar[str] = "sentence_order"
    makes: ClassVar[frozenset[str]] = MaskedLMCollator.makes | {"order_index", "order_labels"}
    requires: ClassVar[frozenset[str]] = MaskedLMCollator.requires
    _target: ClassVar[str] = "order"

    rate: float = 0.3
    rate_end: float | None = None
    eval_rate: float = 0.15
    unit: str = "token"
    replace: str = "mask"

    def __post_init__(self) -> None:
        if self.rate == 0 and self.rate_end is not None:
            raise UserError("collator.rate_end needs a collator.rate above 0")
        separator = framing(self.tokenizer, "encoder").suffix
        if not separator:
            raise UserError("the order of sentences needs a tokenizer with a separator or end-of-text token")
        # With a rate of 0 its options are checked all the same, and it is never called.
        self._masking = MaskedLMCollator(
            tokenizer=self.tokenizer, seed=self.seed, rate=self.rate or self.eval_rate, rate_end=self.rate_end,
            eval_rate=self.eval_rate, unit=self.unit, replace=self.replace,
        )  # fmt: skip
        self._separator = separator[0]
        self._orders = np.array(list(permutations(range(self._parts))), dtype=np.int64)
        self._borders = SentenceBorders(self.tokenizer)
        self._fresh = FreshPositions()

    @property
    def _parts(self) -> int:
        """Segments of a document, n."""
        return 2

    @property
    def reserve(self) -> int:
        return self._parts - 1

    def for_evaluation(self, seed: int) -> SentenceOrderCollator:
        """The collator for held-out text: masked as `masked_lm` does it there, or not at all; the draws of `seed`."""
        rate = self.eval_rate if self.rate else 0.0
        return replace(self, seed=seed, horizon=None, rate=rate, rate_end=None, replace="mask")

    def check_rows(self, rows: Sequence[Row]) -> None:
        """Refuses rows of which no document has enough sentences."""
        number = self._found(token_block(rows, self.tokenizer)).number
        if (number <= self._parts).all():
            raise UserError(
                f"{self.name} needs documents of {self._parts} or more whole sentences beside the first, and none of "
                f"{len(number)} has them; give longer texts, raise data.seq_length, or use objective.name=masked_lm"
            )

    def __call__(self, rows: Sequence[Row]) -> Batch:
        block = token_block(rows, self.tokenizer)
        positions = self._fresh.of_block(block)
        opening, borders, labels = self._drawn(block, positions)
        shown, column = _reordered(block, borders, self._orders[labels], self._separator, pad_id(self.tokenizer))
        input_ids, targets = shown.input_ids, np.zeros(shown.input_ids.shape, dtype=np.bool_)
        if self.rate:
            self._masking.horizon = self.horizon
            input_ids, targets = self._masking.corrupt(shown, positions)
        batch = shown.batch(input_ids, np.where(targets, shown.input_ids, IGNORED))
        if block.positions is not None:
            row = opening // block.input_ids.shape[1]
            batch["target_index"] = torch.from_numpy(np.flatnonzero(targets))
            batch[f"{self._target}_index"] = torch.from_numpy(row * shown.input_ids.shape[1] + column[opening])
            batch[f"{self._target}_labels"] = torch.from_numpy(labels)
        return batch

    def _found(self, block: TokenBlock) -> Borders:
        return self._borders.find(block, spare=self._parts + 1)

    def _drawn(self, block: TokenBlock, positions: Ints) -> tuple[Ints, Ints, Ints]:
        """For the M documents with an order target: the place of the first token [M], the borders of the segments
        [M, n + 1], places in the flattened block, and the number of the order they are shown in [M].

        Draws go by (position, column), so neither padding nor neighbours move them.
        """
        found, n, width = self._found(block), self._parts, block.input_ids.shape[1]
        able = found.number > n
        mine = able[found.document]
        place, document = found.place[mine], found.document[mine]
        outer = np.diff(document, prepend=-1) + np.diff(document, append=len(able)) > 0

        # Of each document the first border, the last, and the n - 1 between with the smallest draws: any are as likely.
        draw = bits(self.seed, f"{self.name}/cut", positions, width).ravel()[place - outer]  # one may end the block
        order = np.lexsort((draw, ~outer, document))
        rank = np.arange(len(order)) - np.searchsorted(document, document)
        borders = place[np.sort(order[rank <= n])].reshape(-1, n + 1)

        opening = found.opening[able]
        lot = uniform(self.seed, f"{self.name}/order", positions, width).ravel()[opening]
        return opening, borders, (lot * len(self._orders)).astype(np.int64)


@dataclass(kw_only=True)
class SegmentOrderCollator(SentenceOrderCollator):
    """Shuffles `segments` parts of a document, n of 2 to 5, each of whole sentences in a row; then masks.

    The label is the number of the order shown, in lexicographic order of the permutations of 0 ... n - 1: 0 is the
    text as written, and where the permutation is (2, 0, 1), the third segment stands first. All n! are equally
    likely. Between segments stands a separator, `reserve` is n - 1, and a document needs n sentences, or n + 1 where
    the first has to stay. `segments_index` and `segments_labels` (int64 [M]) take the place of `order_index` and
    `order_labels`. All else, options too, is as in `sentence_order`, which this is for n = 2.
    """

    name: ClassVar[str] = "segment_order"
    makes: ClassVar[frozenset[str]] = MaskedLMCollator.makes | {"segments_index", "segments_labels"}
    _target: ClassVar[str] = "segments"

    segments: int = 3

    def __post_init__(self) -> None:
        if not 2 <= self.segments <= MOST_SEGMENTS:
            raise UserError(f"collator.segments is a number from 2 to {MOST_SEGMENTS}, got {self.segments}")
        super().__post_init__()

    @property
    def _parts(self) -> int:
        return self.segments


def _reordered(block: TokenBlock, borders: Ints, order: Ints, separator: int, padding: int) -> tuple[TokenBlock, Ints]:
    """The block with segments shown in a new order and a separator between them; and the new column of each token
    [B·S].

    `borders` [M, n + 1], ascending over all documents, as are its rows; `order` [M, n]: which segment stands first,
    second, ... The block is wider only where a row has no room left.
    """
    rows, width = block.input_ids.shape
    n = order.shape[1]
    place, row = np.arange(rows * width), np.repeat(np.arange(rows), width)
    # What stands behind a document moves by the separators put into it.
    passed = np.searchsorted(borders[:, -1], place, side="right")
    above = np.searchsorted(borders[:, 0], np.arange(rows) * width)  # documents of earlier rows
    column = place - row * width + (n - 1) * (passed - above[row])

    length = np.diff(borders, axis=1)
    shown = np.take_along_axis(length, order, axis=1)
    # Where the segment shown j-th begins, and by how much that moves the segment it is.
    offset = np.cumsum(shown, axis=1) - shown + np.arange(n)
    moved = np.empty_like(length)
    np.put_along_axis(moved, order, offset, axis=1)
    moved -= borders[:, :-1] - borders[:, :1]
    inside = ranges(borders[:, 0], length.sum(axis=1))
    column[inside] += np.repeat(moved.ravel(), length.ravel())

    first = borders[:, 0]
    between = (column[first] - moved[:, 0])[:, None] + offset[:, 1:] - 1
    new_row, new_document = (np.repeat(values[first], n - 1) for values in (row, block.document_ids.ravel()))
    present = np.flatnonzero(block.attention)
    row = np.concatenate([row[present], new_row])
    places = np.concatenate([column[present], between.ravel()])
    ids = np.full((rows, max(width, int(places.max(initial=-1)) + 1)), padding)
    documents = np.full(ids.shape, -1)
    ids[row, places] = np.concatenate([block.input_ids.ravel()[present], np.full(len(new_row), separator)])
    documents[row, places] = np.concatenate([block.document_ids.ravel()[present], new_document])
    return TokenBlock(ids, documents, block.positions), column
