"""Masked rows and causal rows, for one decoder-class model that learns from both (GPT-BERT)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from sslnlp.arrays import Bools
from sslnlp.collators.base import Collator
from sslnlp.collators.masked_lm import MaskedLMCollator
from sslnlp.collators.tokens import IGNORED, FreshPositions, token_block
from sslnlp.errors import UserError
from sslnlp.rng import uniform
from sslnlp.types import Batch, Row


@dataclass(kw_only=True)
class HybridCollator(Collator):
    """Each row is masked and read in both directions, or causal (GPT-BERT; Charpentier and Samuel, 2024,
    arXiv:2410.24159).

    `masked_share`: probability that a row is masked, drawn by its position. The other options are those of `masked_lm`
    and hold in masked rows: what is hidden there is what `masked_lm` hides in the same row with the same seed.

    Labels stand at their own token and are meant to be predicted from the token *before* it, in both kinds of rows, so
    that one head serves both. Hence the first token of a document piece is never a target and never hidden.

    Makes `input_ids`, `attention_mask`, `document_ids`, `position_ids`, `labels` [B, S] (-100 where nothing is asked),
    `bidirectional` bool [B, S] (all text of a masked row: seen from the whole of its document), `masked_index` and
    `causal_index` int64 [N] (flat places of the targets of either kind, ascending) and `position` [B].

    Held-out rows come both ways, the B rows masked and then the same B rows causal ([2B, S]). Masks are those of
    `masked_lm` on held-out text (`eval_rate`, [MASK] at every target, no schedule), and causal rows are whole: both
    figures are of all of the text, whatever `masked_share` was, and stand beside those of the pure objectives.

    As a `data_collator` of `transformers.Trainer` it makes `input_ids`, `labels` [B, S] and an `attention_mask` bool
    [B, 1, S, S] (true = attend), since no stock model takes a direction by row; `sdpa` attention reads it.
    Raises `UserError` for a bad option and for a tokenizer without a mask token.
    """

    name: ClassVar[str] = "hybrid"
    makes: ClassVar[frozenset[str]] = frozenset(
        {"input_ids", "attention_mask", "document_ids", "position_ids", "labels", "bidirectional", "position"}
        | {"masked_index", "causal_index"}
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
        """The collator for held-out text: every row once masked, as `masked_lm` does it there, and once causal."""
        fixed = dataclasses.replace(self, seed=seed, horizon=None, rate=self.eval_rate, rate_end=None, replace="mask")
        fixed._both_ways = True
        return fixed

    def __call__(self, rows: Sequence[Row]) -> Batch:
        rows = [*rows, *rows] if self._both_ways else rows
        block = token_block(rows, self.tokenizer)
        positions = self._fresh.of_block(block)
        if self._both_ways:
            masked = np.arange(len(rows)) < len(rows) // 2
        else:
            masked = uniform(self.seed, "hybrid/kind", positions, 1)[:, 0] < self.masked_share
        self._masking.horizon = self.horizon  # set by the loop, after this was made
        corrupted, hidden = self._masking.corrupt(block, positions)
        hidden &= masked[:, None] & ~block.opens
        causal = ~masked[:, None] & block.attention & ~block.opens
        labels = np.where(hidden | causal, block.input_ids, IGNORED)
        batch = block.batch(np.where(hidden, corrupted, block.input_ids), labels)
        if block.positions is not None:
            batch["masked_index"] = torch.from_numpy(np.flatnonzero(hidden))
            batch["causal_index"] = torch.from_numpy(np.flatnonzero(causal))
            batch["bidirectional"] = torch.from_numpy(masked[:, None] & block.attention)
        else:
            batch["attention_mask"] = torch.from_numpy(_visible(masked, block.attention))
        return batch


def _visible(masked_B: Bools, attention_BS: Bools) -> Bools:
    """bool [B, 1, S, S]: what a token may attend to. Itself always: a row without a single True would be NaN."""
    index = np.arange(attention_BS.shape[1])
    earlier = index[:, None] >= index[None, :]
    seen = (earlier | masked_B[:, None, None]) & attention_BS[:, None, :]
    visible: Bools = (seen | (index[:, None] == index[None, :]))[:, None]
    return visible
