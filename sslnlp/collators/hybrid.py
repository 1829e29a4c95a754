"""Masked and causal rows for one decoder-class model (GPT-BERT)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch

from sslnlp.collators.base import Collator
from sslnlp.collators.masked_lm import MaskedLMCollator
from sslnlp.collators.tokens import IGNORED, FreshPositions, token_block
from sslnlp.errors import UserError
from sslnlp.rng import uniform
from sslnlp.types import Batch, Row


@dataclass(kw_only=True)
class HybridCollator(Collator):
    """Each row is either masked, and read in both directions, or causal (Charpentier and Samuel, 2024,
    arXiv:2410.24159).

    `masked_share`: probability that a row is masked, drawn from its position. `rate`, `rate_end`, `unit` and `replace`
    are those of `masked_lm` and hold in masked rows. Labels stand at their own token and are predicted from the
    token *before* it in both kinds of rows, so that one head serves both; hence the first token of a document is
    never masked.

    Makes `input_ids`, `attention_mask`, `document_ids`, `position_ids`, `labels` [B, S] (-100 where nothing is asked),
    `bidirectional` bool [B, S] (true in masked rows: their tokens are seen from the whole document) and `position` [B].
    Held-out rows are given in both ways, first all masked, then all causal ([2B, S]), so that the two figures are of the
    same text and compare with those of the pure objectives. As a `data_collator` of `transformers.Trainer` it makes
    `input_ids`, `attention_mask`, `labels`; the model's attention is then the caller's business.
    """

    name: ClassVar[str] = "hybrid"
    makes: ClassVar[frozenset[str]] = frozenset(
        {"input_ids", "attention_mask", "document_ids", "position_ids", "labels", "bidirectional", "position"}
    )
    requires: ClassVar[frozenset[str]] = frozenset({"mask", "specials_excluded", "eos"})
    shifted: ClassVar[bool] = True

    masked_share: float = 0.5
    rate: float = 0.3
    rate_end: float | None = None
    eval_rate: float = 0.15
    unit: str = "token"
    replace: str = "mask"

    def __post_init__(self) -> None:
        if not 0 <= self.masked_share <= 1:
            raise UserError(f"collator.masked_share is a share of the rows between 0 and 1, got {self.masked_share}")
        self._masking = MaskedLMCollator(
            tokenizer=self.tokenizer, seed=self.seed, rate=self.rate, rate_end=self.rate_end,
            eval_rate=self.eval_rate, unit=self.unit, replace=self.replace,
        )  # fmt: skip
        self._fresh = FreshPositions()
        self._both_ways = False

    def for_evaluation(self, seed: int) -> HybridCollator:
        """The collator for held-out text: every row masked (as `masked_lm` does it there) and causal."""
        fixed = copy.copy(self)
        fixed.seed, fixed.horizon, fixed._both_ways = seed, None, True
        fixed._masking = self._masking.for_evaluation(seed)
        return fixed

    def __call__(self, rows: Sequence[Row]) -> Batch:
        if self._both_ways:
            kind = np.repeat([True, False], len(rows))
            rows = [*rows, *rows]
        block = token_block(rows, self.tokenizer)
        positions = block.positions if block.positions is not None else self._fresh.draw(len(rows))
        if not self._both_ways:
            kind = uniform(self.seed, "hybrid/kind", positions, 1)[:, 0] < self.masked_share
        self._masking.horizon = self.horizon
        corrupted, asked = self._masking.corrupt(block, positions)
        asked &= ~block.opens  # nothing stands before it that could predict it
        masked: npt.NDArray[np.bool_] = kind[:, None]
        input_ids = np.where(masked & ~block.opens, corrupted, block.input_ids)
        targets = np.where(masked, asked, block.attention & ~block.opens)
        batch = block.batch(input_ids, np.where(targets, block.input_ids, IGNORED))
        if block.positions is not None:
            batch["bidirectional"] = torch.from_numpy(masked & block.attention)
        return batch
