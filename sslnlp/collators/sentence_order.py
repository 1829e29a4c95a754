"""Order of sentences: parts of a text change places, and the order is to be told from what they say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from typing import ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedTokenizerBase

from sslnlp.collators.base import Collator
from sslnlp.collators.masked_lm import MaskedLMCollator
from sslnlp.collators.tokens import IGNORED, FreshPositions, TokenBlock, pad_id, token_block
from sslnlp.errors import UserError
from sslnlp.rng import bits, uniform
from sslnlp.tokenizer import framing, sentence_boundaries, special_mask
from sslnlp.tokenizer.words import token_spelling
from sslnlp.types import Batch, Row

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

MOST_SEGMENTS = 5
"""120 orders; of six segments there are 720, more than a batch has documents."""
LOOK_BACK = 16
"""Tokens before the end of a text that may tell whether its last sentence is whole: a mark, closing quotes, in bytes."""


class _Borders(NamedTuple):
    """Where the D documents of a block may be cut. Places are in the flattened [B·S]."""

    opening: Ints
    """[D]: the first token, [CLS] where there is one."""
    count: Ints
    """[D]: borders of each, those at the ends of what may move included."""
    place: Ints
    """[Q]: all borders, as the place of the token behind them; ascending in each document."""
    document: Ints
    """[Q]: their documents, 0 to D - 1, ascending."""


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
        self._boundaries = sentence_boundaries(self.tokenizer)
        self._text = ~special_mask(self.tokenizer)
        if self.tokenizer.unk_token_id is not None:  # stands for a word of the text
            self._text[self.tokenizer.unk_token_id] = True
        self._space_first, self._space_last = _spaces(self.tokenizer, len(self._text))
        self._next_sentence = np.array(self.tokenizer(" A", add_special_tokens=False)["input_ids"], dtype=np.int64)
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
        count = self._borders(token_block(rows, self.tokenizer)).count
        if (count <= self._parts).all():
            raise UserError(
                f"{self.name} needs documents of {self._parts} or more whole sentences beside the first, and none of "
                f"{len(count)} has them; give longer texts, raise data.seq_length, or use objective.name=masked_lm"
            )

    def __call__(self, rows: Sequence[Row]) -> Batch:
        block = token_block(rows, self.tokenizer)
        positions = block.positions if block.positions is not None else self._fresh.draw(len(rows))
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
            batch["order_index"] = torch.from_numpy(row * shown.input_ids.shape[1] + column[opening])
            batch["order_labels"] = torch.from_numpy(labels)
        return batch

    def _drawn(self, block: TokenBlock, positions: Ints) -> tuple[Ints, Ints, Ints]:
        """For the M documents with an order target: the place of the first token [M], the borders of the segments
        [M, n + 1], places in the flattened block, and the number of the order they are shown in [M].

        Draws go by (position, column), so neither padding nor neighbours move them.
        """
        found, n, width = self._borders(block), self._parts, block.input_ids.shape[1]
        able = found.count > n
        mine = able[found.document]
        place, document = found.place[mine], found.document[mine]
        outer = np.diff(document, prepend=-1) + np.diff(document, append=len(able)) > 0

        # Of each document the first border, the last, and the n - 1 between with the smallest draws: any are as likely.
        draw = bits(self.seed, f"{self.name}/cut", positions, width).ravel()[place - outer]
        order = np.lexsort((draw, ~outer, document))
        rank = np.arange(len(order)) - np.searchsorted(document, document)
        borders = place[np.sort(order[rank <= n])].reshape(-1, n + 1)

        opening = found.opening[able]
        lot = uniform(self.seed, f"{self.name}/order", positions, width).ravel()[opening]
        return opening, borders, (lot * len(self._orders)).astype(np.int64)

    def _borders(self, block: TokenBlock) -> _Borders:
        """The borders between which whole sentences may change places."""
        ids = block.input_ids.ravel()
        text = self._text[ids] & block.attention.ravel()
        at = np.flatnonzero(text)
        piece = np.cumsum(block.opens.ravel()) - 1
        leads = np.flatnonzero(np.diff(piece[at], prepend=-1))
        first = at[leads]
        tokens = np.diff(leads, append=len(at))
        last = at[leads + tokens - 1]
        starts = np.flatnonzero(self._boundaries.starts(block.input_ids, block.opens).ravel() & text)
        ended = np.flatnonzero(self._ended(ids, first, last + 1))
        place = np.concatenate([starts, last[ended] + 1])
        document = np.concatenate([np.searchsorted(first, starts, side="right") - 1, ended])
        order = np.lexsort((place, document))
        place, document = place[order], document[order]

        begins, ends = place == first[document], place == last[document] + 1
        before = self._space_last[ids[np.maximum(place - 1, 0)]]
        after = self._space_first[ids[np.minimum(place, len(ids) - 1)]]
        kind = 2 * before + after
        kinds = np.bincount(4 * document[~begins & ~ends] + kind[~begins & ~ends], minlength=4 * len(first))
        usual = kinds.reshape(-1, 4).argmax(axis=1)[document]
        usable = np.where(begins, after == usual % 2, np.where(ends, before == usual // 2, kind == usual))
        usable &= (last + 1 - first == tokens)[document]
        count = np.bincount(document[usable], minlength=len(first))
        usable &= ~(begins & (count > self._parts + 1)[document])
        count = np.bincount(document[usable], minlength=len(first))
        return _Borders(np.flatnonzero(block.opens)[piece[first]], count, place[usable], document[usable])

    def _ended(self, ids: Ints, first: Ints, stop: Ints) -> Bools:
        """bool [D]: would a sentence begin if the text went on after its last token?"""
        place = stop[:, None] - np.arange(LOOK_BACK, 0, -1)
        tail = np.where(place >= first[:, None], ids[np.maximum(place, 0)], self.tokenizer.mask_token_id)
        going_on = np.concatenate([tail, np.tile(self._next_sentence, (len(stop), 1))], axis=1)
        starts: Bools = self._boundaries.starts(going_on, np.zeros(going_on.shape, dtype=np.bool_))
        ended: Bools = starts[:, LOOK_BACK:].any(axis=1)
        return ended


@dataclass(kw_only=True)
class SegmentOrderCollator(SentenceOrderCollator):
    """Shuffles `segments` parts of a document, n of 2 to 5, each of whole sentences in a row; then masks.

    The label is the number of the order shown, in lexicographic order of the permutations of 0 ... n - 1: 0 is the
    text as written, and where the permutation is (2, 0, 1), the third segment stands first. All n! are equally
    likely. Between segments stands a separator, `reserve` is n - 1, and a document needs n sentences, or n + 1 where the
    first has to stay. All else, options too, is as in `sentence_order`, which this is for n = 2.
    """

    name: ClassVar[str] = "segment_order"

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
    inside = _ranges(borders[:, 0], length.sum(axis=1))
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


def _spaces(tokenizer: PreTrainedTokenizerBase, size: int) -> tuple[Ints, Ints]:
    """Does an id begin with white space, and does it end with it: 0 or 1, two int64 [V]. All 0 where the vocabulary
    spells no spaces (WordPiece)."""
    first, last = np.zeros(size, dtype=np.int64), np.zeros(size, dtype=np.int64)
    if (spelling := token_spelling(tokenizer)) is not None:
        for token, i in tokenizer.get_vocab().items():
            spelt = spelling(token)
            first[i], last[i] = spelt[:1].isspace(), spelt[-1:].isspace()
    return first, last


def _ranges(starts: Ints, counts: Ints) -> Ints:
    """`concatenate([arange(s, s + c) for s, c in zip(starts, counts)])`."""
    offsets: Ints = np.arange(int(counts.sum())) + np.repeat(starts - (np.cumsum(counts) - counts), counts)
    return offsets
