"""Span corruption: sentinels stand for spans of the text, and the decoder writes what they stand for (T5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sslnlp.arrays import Ints
from sslnlp.collators.base import Collator
from sslnlp.collators.seq2seq import SEQ2SEQ_KEYS, mark_text, seq2seq_batch
from sslnlp.collators.spans import (
    document_ends,
    laid_out,
    numbered,
    random_spans,
    reserve_for,
    row_length,
    sentinel_ids,
    source_tokens,
    span_counts,
    target_tokens,
    text_mask,
    text_runs,
)
from sslnlp.collators.tokens import FreshPositions, pad_id, token_block
from sslnlp.errors import UserError
from sslnlp.rng import bits
from sslnlp.tokenizer import framing
from sslnlp.types import Batch, Row


def span_lengths(tokens: Ints | int, rate: float = 0.15, mean_span: float = 3.0, most: int = 100) -> tuple[Ints, Ints]:
    """Tokens of the input and of the target that a text of so many tokens comes to, the eos of each counted.

    The formula of T5 (Raffel et al., 2020): the input has what stays and a sentinel a span, the target what was taken
    out and a sentinel a span. 568 tokens at the defaults give 512 and 114. int64, shaped like `tokens`.
    """
    counted = np.asarray(tokens, dtype=np.int64)
    noise, spans = span_counts(counted, rate, mean_span, most)
    return counted - noise + spans + 1, noise + spans + 1


@dataclass(kw_only=True)
class SpanCorruptionCollator(Collator):
    """Takes random spans out of each document piece (T5, Raffel et al., 2020, arXiv:1910.10683).

        source   Thank you <extra_id_0> me to your party <extra_id_1> week.     with its framing
        target   <extra_id_0> for inviting <extra_id_1> last [EOS]

    `rate`: share of a piece's tokens that is taken out, exactly round(rate × tokens), at least one unless the piece is
    a single token; `mean_span`: tokens a span has on average, exactly round(taken / mean_span) spans. A piece begins
    with tokens that stay and ends with a span, as in T5, so short texts, which have one span, lose their end. Sentinels
    count from 0 in each piece; where they run out there are fewer and longer spans. Source and target together give
    back the text, token for token.

    Special tokens stay where they are and spans end at them; the unknown token is text.

    Sources are shorter than texts, so rows are packed with more tokens (`source_length`), as many as the published
    formula lets fit and `reserve` leaves for the rounding of small pieces: neither source nor target is ever longer
    than `data.seq_length`, and full rows come to within some tokens of it.

    Makes what `seq2seq_batch` says and `corrupted` bool [B, T], the labels that are text. As a `data_collator` of
    `transformers.Trainer`, on features without a position, it makes `input_ids`, `attention_mask` and `labels`,
    other ones at every call.
    Raises `UserError` for a bad option and for a tokenizer without sentinels or end-of-text.
    """

    name: ClassVar[str] = "span_corruption"
    makes: ClassVar[frozenset[str]] = SEQ2SEQ_KEYS | {"corrupted"}
    requires: ClassVar[frozenset[str]] = frozenset({"sentinels", "eos", "specials_excluded"})

    rate: float = 0.15
    mean_span: float = 3.0

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1:
            raise UserError(f"collator.rate is a share of the tokens between 0 and 1, got {self.rate}")
        if not self.mean_span >= 1:
            raise UserError(f"collator.mean_span is a mean length of at least 1 token, got {self.mean_span}")
        self._sentinels = sentinel_ids(self.tokenizer)
        self._text = text_mask(self.tokenizer)
        frame = framing(self.tokenizer, "seq2seq")
        self._frame = len(frame.prefix) + len(frame.suffix)
        self._fresh = FreshPositions()

    @property
    def reserve(self) -> int:
        stays = 1 - self.rate * (1 - 1 / self.mean_span)
        return reserve_for(*self._lengths(512), slope=max(stays, self.rate * (1 + 1 / self.mean_span)))

    def source_length(self, seq_length: int) -> int:
        return row_length(*self._lengths(2 * seq_length), self.reserve, seq_length)

    def _lengths(self, longest: int) -> tuple[Ints, Ints]:
        """Of pieces of 0 to `longest` tokens: how long they are framed, and the longer of their source and target."""
        tokens = np.arange(longest + 1)
        source, target = span_lengths(tokens, self.rate, self.mean_span, len(self._sentinels))
        return tokens + self._frame, np.maximum(source - 1 + self._frame, target)

    def __call__(self, rows: Sequence[Row]) -> Batch:
        block = token_block(rows, self.tokenizer)
        positions = self._fresh.of_block(block)
        width = block.input_ids.shape[1]
        runs = text_runs(self._text[block.input_ids] & block.attention, block.opens)
        noise_R, spans_R = span_counts(runs.length, self.rate, self.mean_span, len(self._sentinels))
        draws = bits(self.seed, "span_corruption/spans", positions, width)
        spans = numbered(random_spans(runs, noise_R, spans_R, draws), block.opens, len(self._sentinels))
        ends, eos = document_ends(block), int(self.tokenizer.eos_token_id)
        source = source_tokens(block, spans, self._sentinels, spans.leads)
        target = target_tokens(block, spans, self._sentinels, spans.leads, ends, eos)
        longest = int(self._lengths(max(width - self.reserve - self._frame, 0))[1][-1])
        made = (laid_out(block, *side, pad_id(self.tokenizer), longest) for side in (source, target))
        return mark_text(seq2seq_batch(block, *made), self._text)
