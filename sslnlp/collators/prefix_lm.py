"""Prefix language modelling: the beginning of a text is read in both directions, the rest written left to right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from sslnlp.arrays import Bools, Ints
from sslnlp.collators.base import Collator
from sslnlp.collators.spans import document_numbers, text_mask
from sslnlp.collators.tokens import IGNORED, FreshPositions, TokenBlock, token_block
from sslnlp.errors import UserError
from sslnlp.rng import uniform
from sslnlp.types import Batch, Row


@dataclass(kw_only=True)
class PrefixLMCollator(Collator):
    """Splits each document piece in two (Liu et al., 2018; Raffel et al., 2020, section 3.2.1); labels not shifted.

    A piece of n tokens of text has a prefix of floor(share × n), share drawn uniformly from `prefix_min` to
    `prefix_max`: at the defaults every length from 0 to n - 1 is equally likely. At least one token is left to write.
    The prefix, with whatever opens the piece (bos), is `bidirectional` and not scored; the rest of the piece, its
    end-of-text too, is scored as in causal language modelling. No token is added, moved or hidden.

    Makes `input_ids`, `attention_mask`, `document_ids`, `position_ids`, `labels` [B, S] (-100 where nothing is asked),
    `bidirectional` bool [B, S] and `position` [B]. As a `data_collator` of `transformers.Trainer` it makes `input_ids`,
    `attention_mask` and `labels`, other splits at every call; the model then reads its prefix from left to right.
    Raises `UserError` for a bad option.
    """

    name: ClassVar[str] = "prefix_lm"
    makes: ClassVar[frozenset[str]] = frozenset(
        {"input_ids", "attention_mask", "document_ids", "position_ids", "labels", "bidirectional", "position"}
    )
    requires: ClassVar[frozenset[str]] = frozenset({"eos", "specials_excluded"})
    shifted: ClassVar[bool] = True

    prefix_min: float = 0.0
    prefix_max: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.prefix_min <= self.prefix_max <= 1:
            raise UserError(
                "collator.prefix_min and prefix_max are shares of a text, 0 <= prefix_min <= prefix_max <= 1; "
                f"got {self.prefix_min} and {self.prefix_max}"
            )
        self._text = text_mask(self.tokenizer)
        self._fresh = FreshPositions()

    def __call__(self, rows: Sequence[Row]) -> Batch:
        block = token_block(rows, self.tokenizer)
        positions = self._fresh.of_block(block)
        prefix = self._prefix(block, positions)
        labels = np.where(block.attention & ~block.opens & ~prefix, block.input_ids, IGNORED)
        batch = block.batch(block.input_ids, labels)
        if block.positions is not None:
            batch["bidirectional"] = torch.from_numpy(prefix)
        return batch

    def _prefix(self, block: TokenBlock, positions: Ints) -> Bools:
        """bool [B, S]: the tokens before the split of their document, of which D stand in the block (padding too)."""
        width = block.input_ids.shape[1]
        text_N = (self._text[block.input_ids] & block.attention).ravel()
        first_D = np.flatnonzero(block.opens)
        document_N = document_numbers(block)
        tokens_D = np.bincount(document_N[text_N], minlength=len(first_D))
        number_D = np.maximum(block.document_ids.ravel()[first_D], 0)
        draws = uniform(self.seed, "prefix_lm/split", positions, int(number_D.max(initial=0)) + 1)
        share_D = self.prefix_min + (self.prefix_max - self.prefix_min) * draws[first_D // max(width, 1), number_D]
        split_D = np.maximum(np.minimum((share_D * tokens_D).astype(np.int64), tokens_D - 1), 0)
        upto_N = np.cumsum(text_N)
        before_D: Ints = (upto_N - text_N)[first_D]
        inside: Bools = block.attention & (upto_N - before_D[document_N] <= split_D[document_N]).reshape(
            block.input_ids.shape
        )
        return inside
