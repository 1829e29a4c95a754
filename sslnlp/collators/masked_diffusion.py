"""Masking at every rate from nothing to everything: the noise of a masked diffusion model (MDLM, LLaDA)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from sslnlp.arrays import Ints
from sslnlp.collators.base import Collator
from sslnlp.collators.spans import text_mask
from sslnlp.collators.tokens import IGNORED, FreshPositions, lowest, token_block
from sslnlp.errors import UserError
from sslnlp.rng import GOLDEN, bits, key
from sslnlp.types import Batch, Row


@dataclass(kw_only=True)
class MaskedDiffusionCollator(Collator):
    """Hides a share t of each row's tokens, t uniform over (0, 1]; every target weighs 1 / t (Sahoo et al., 2024,
    arXiv:2406.07524; Nie et al., 2025, arXiv:2502.09992).

    Of a row's n tokens exactly l become targets, l uniform over 1 to n, and t = l / n: the bound is the same as with
    each token hidden by itself with probability t (Ou et al., 2024, arXiv:2406.03736), with less variance, and no small
    t has to be cut off. The rates are a low-discrepancy sequence over the positions, so the rows of any batch have
    them evenly spread.

    Tokens are all that the document says: [UNK] too, as for a causal model, but no framing. They are hidden by [MASK].
    Makes `input_ids`, `attention_mask`, `document_ids`, `position_ids`, `labels` [B, S] (-100 where nothing is asked),
    `target_index` int64 [N] (places of the targets in the flattened [B·S], ascending), `weights` float32 [N] (1 / t of
    each target's row), `text_tokens` int64 [B] (n of each row, what the loss is divided by) and `position` [B]. As a
    `data_collator` of `transformers.Trainer` `input_ids`, `attention_mask`, `labels`: the same targets, unweighted.
    Raises `UserError` for a tokenizer without a mask token.
    """

    name: ClassVar[str] = "masked_diffusion"
    makes: ClassVar[frozenset[str]] = frozenset(
        {"input_ids", "attention_mask", "document_ids", "position_ids", "labels", "position"}
        | {"target_index", "weights", "text_tokens"}
    )
    requires: ClassVar[frozenset[str]] = frozenset({"mask", "specials_excluded"})

    def __post_init__(self) -> None:
        if self.tokenizer.mask_token_id is None:
            raise UserError("masking needs a tokenizer with a mask token; train one with `sslnlp tokenizer`")
        self._text = text_mask(self.tokenizer)
        self._fresh = FreshPositions()

    def __call__(self, rows: Sequence[Row]) -> Batch:
        block = token_block(rows, self.tokenizer)
        positions = self._fresh.of_block(block)
        able = self._text[block.input_ids] & block.attention
        tokens_B = able.sum(axis=1)
        count_B = self._counts(tokens_B, positions)
        targets = lowest(bits(self.seed, "masked_diffusion/choice", positions, able.shape[1]), able, count_B)
        hidden = np.where(targets, self.tokenizer.mask_token_id, block.input_ids)
        batch = block.batch(hidden, np.where(targets, block.input_ids, IGNORED))
        if block.positions is not None:
            batch["target_index"] = torch.from_numpy(np.flatnonzero(targets))
            batch["weights"] = torch.from_numpy(np.repeat(tokens_B / np.maximum(count_B, 1), count_B)).float()
            batch["text_tokens"] = torch.from_numpy(tokens_B)
        return batch

    def _counts(self, tokens_B: Ints, positions: Ints) -> Ints:
        """int64 [B]: how many of its tokens each row hides, uniform over 1 to all of them (0 of none)."""
        start = np.uint64(key(self.seed, "masked_diffusion/rate"))
        with np.errstate(over="ignore"):
            turn_B = (positions.astype(np.uint64) * GOLDEN + start) >> np.uint64(11)
        share_B = turn_B * 2.0**-53  # [0, 1)
        counts: Ints = np.minimum(1 + (share_B * tokens_B).astype(np.int64), tokens_B)
        return counts
