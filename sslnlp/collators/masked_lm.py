"""Masking: some tokens are hidden and become the targets (BERT, RoBERTa, SpanBERT)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch

from sslnlp.arrays import Bools, Ints
from sslnlp.collators.base import Collator
from sslnlp.collators.tokens import IGNORED, FreshPositions, TokenBlock, lowest, rates, token_block
from sslnlp.errors import UserError, suggest
from sslnlp.rng import bits, uniform
from sslnlp.tokenizer import drawable_ids, special_mask, word_boundaries
from sslnlp.types import Batch, Row

UNITS = ("token", "word", "span")
REPLACEMENTS = ("mask", "bert")

SPAN_P, LONGEST_SPAN = 0.2, 10

_span_share = SPAN_P * (1 - SPAN_P) ** np.arange(LONGEST_SPAN)
_SPAN_CDF = np.cumsum(_span_share / _span_share.sum())
"""Length of a span in words: geometric, cut at 10 and renormalised, mean 3.8 (Joshi et al., 2020)."""


@dataclass(kw_only=True)
class MaskedLMCollator(Collator):
    """Hides a fixed share of each row's tokens; the labels are what was there.

    `rate`: share of a row's maskable tokens that become targets: exactly `round(rate × tokens)` of them, at least one.
    With `rate_end` the rate moves linearly to it over the run's `horizon`. `eval_rate` is used on held-out text, so
    that figures of runs with different rates compare.

    `unit`: `token`, `word` (whole words of the text, whatever the tokenizer: see `tokenizer.words`), or `span` (runs of
    whole words, SpanBERT). Words are never cut, so their count is met to within half a word: a word is taken while
    its middle falls within the count, and words longer than the whole count come last.

    `replace`: `mask` puts [MASK] at every target; `bert` puts [MASK] at 80 %, a random token at 10 % and leaves 10 %
    as they are (Devlin et al., 2019). Special tokens are neither targets nor replacements.

    Makes `input_ids`, `attention_mask`, `document_ids`, `position_ids`, `labels` [B, S] (-100 where nothing is asked),
    `target_index` int64 [N] (places of the targets in the flattened [B·S], ascending) and `position` [B]. As a
    `data_collator` of `transformers.Trainer`, on features without a position, it makes `input_ids`, `attention_mask`
    and `labels`, with other masks at every call, worker and epoch.
    Raises `UserError` for a bad option and for a tokenizer without a mask token.
    """

    name: ClassVar[str] = "masked_lm"
    makes: ClassVar[frozenset[str]] = frozenset(
        {"input_ids", "attention_mask", "document_ids", "position_ids", "labels", "target_index", "position"}
    )
    requires: ClassVar[frozenset[str]] = frozenset({"mask", "specials_excluded"})

    rate: float = 0.3
    rate_end: float | None = None
    eval_rate: float = 0.15
    unit: str = "token"
    replace: str = "mask"

    def __post_init__(self) -> None:
        for option, share in (("rate", self.rate), ("rate_end", self.rate_end), ("eval_rate", self.eval_rate)):
            if share is not None and not 0 < share < 1:
                raise UserError(f"collator.{option} is a share of the tokens between 0 and 1, got {share}")
        if self.unit not in UNITS:
            raise UserError(f"unknown collator.unit {self.unit!r}.{suggest(self.unit, UNITS)}")
        if self.replace not in REPLACEMENTS:
            raise UserError(f"unknown collator.replace {self.replace!r}.{suggest(self.replace, REPLACEMENTS)}")
        if self.tokenizer.mask_token_id is None:
            raise UserError("masking needs a tokenizer with a mask token; train one with `sslnlp tokenizer`")
        self._maskable = ~special_mask(self.tokenizer)
        self._drawable = drawable_ids(self.tokenizer)
        self._boundaries = word_boundaries(self.tokenizer) if self.unit != "token" else None
        self._fresh = FreshPositions()

    def for_evaluation(self, seed: int) -> MaskedLMCollator:
        """The collator for held-out text: `eval_rate`, no decay, [MASK] at every target, the draws of `seed`.

        Whatever a run trains on, it is asked the same question: targets left visible would flatter one of two runs.
        """
        return replace(self, seed=seed, horizon=None, rate=self.eval_rate, rate_end=None, replace="mask")

    def __call__(self, rows: Sequence[Row]) -> Batch:
        block = token_block(rows, self.tokenizer)
        positions = self._fresh.of_block(block)
        corrupted, targets = self.corrupt(block, positions)
        batch = block.batch(corrupted, np.where(targets, block.input_ids, IGNORED))
        if block.positions is not None:
            batch["target_index"] = torch.from_numpy(np.flatnonzero(targets))
        return batch

    def corrupt(self, block: TokenBlock, positions: Ints) -> tuple[Ints, Bools]:
        """The masked ids [B, S] of rows at `positions` [B], and which of them are targets."""
        targets = self._targets(block, positions)
        return self._corrupted(block.input_ids, targets, positions), targets

    def _targets(self, block: TokenBlock, positions: Ints) -> Bools:
        """bool [B, S]: the tokens to be hidden."""
        maskable = self._maskable[block.input_ids] & block.attention
        tokens = maskable.sum(axis=1)
        share_B = rates(positions, self.rate, self.rate_end, self.horizon)
        count = np.maximum(np.rint(share_B * tokens).astype(np.int64), np.minimum(tokens, 1))
        if self._boundaries is None:
            return lowest(bits(self.seed, "masked_lm/choice", positions, maskable.shape[1]), maskable, count)
        starts = self._boundaries.starts(block.input_ids) | block.opens
        return self._choose_words(maskable, starts, count, positions)

    def _choose_words(self, maskable: Bools, starts: Bools, count: Ints, positions: Ints) -> Bools:
        """Whole words in random order until the count of each row is met; a span's words stand together in that order.

        Everything is flat: W words in the block, each with its row, its length in tokens and its draw.
        """
        width = maskable.shape[1]
        starts = starts.copy()
        starts[:, 1:] |= ~maskable[:, :-1]  # a special token parts words
        starts &= maskable
        first = np.flatnonzero(starts)
        if not len(first):
            return np.zeros_like(maskable)
        row = first // width
        word_of_token = np.cumsum(starts.ravel()) - 1
        length = np.bincount(word_of_token[maskable.ravel()], minlength=len(first))
        group = self._spans(row, first, maskable, positions) if self.unit == "span" else np.arange(len(first))
        draw = bits(self.seed, "masked_lm/choice", positions, width).ravel()[first[group]] >> np.uint64(24)
        # Rows in order, then words that fit, then by the draw of the word or span, then by place (a stable sort).
        # Integers, because adding a row number to a fraction would round it, by the row's place in the batch.
        order = np.argsort(((2 * row + (length > count[row])) << 40) + draw.astype(np.int64), kind="stable")
        taken = np.cumsum(length[order])
        before_row = np.concatenate([[0], np.cumsum(np.bincount(row, weights=length, minlength=len(count)))[:-1]])
        middle = taken - length[order] / 2 - before_row[row[order]]
        leads = np.diff(row[order], prepend=-1) > 0
        chosen = np.empty(len(first), dtype=np.bool_)
        chosen[order] = leads | (middle <= count[row[order]])
        hidden: Bools = maskable & chosen[np.maximum(word_of_token, 0)].reshape(maskable.shape)
        return hidden

    def _spans(self, row: Ints, first: Ints, maskable: Bools, positions: Ints) -> Ints:
        """int64 [W]: for each word the first word of its span. A row's words are cut into spans of drawn lengths.

        Choosing among these spans instead of dropping spans anywhere until enough is covered keeps them from
        overlapping, and is done for all rows at once.
        """
        rows, width = maskable.shape
        lengths = 1 + np.searchsorted(_SPAN_CDF, uniform(self.seed, "masked_lm/span", positions, width), side="right")
        ends = np.cumsum(np.minimum(lengths, LONGEST_SPAN), axis=1)
        cuts = np.zeros((rows, width + 1), dtype=np.bool_)
        np.put_along_axis(cuts, np.minimum(ends, width), True, axis=1)
        row_start = np.searchsorted(row, np.arange(rows))
        place = np.arange(len(row)) - row_start[row]
        after_gap = np.zeros(maskable.size, dtype=np.bool_)
        after_gap[1:] = ~maskable.ravel()[:-1]
        opens = (place == 0) | cuts[row, place] | after_gap[first]
        leader: Ints = np.maximum.accumulate(np.where(opens, np.arange(len(row)), 0))
        return leader

    def _corrupted(self, input_ids: Ints, targets: Bools, positions: Ints) -> Ints:
        """A copy of `input_ids` with the targets hidden."""
        hidden = np.where(targets, self.tokenizer.mask_token_id, input_ids)
        if self.replace == "bert":
            lot = uniform(self.seed, "masked_lm/replace", positions, input_ids.shape[1])
            kept = targets & (lot >= 0.9)
            drawn = targets & (lot >= 0.8) & ~kept
            pick = uniform(self.seed, "masked_lm/token", positions, input_ids.shape[1])[drawn]
            hidden[kept] = input_ids[kept]
            hidden[drawn] = self._drawable[(pick * len(self._drawable)).astype(np.int64)]
        return hidden
