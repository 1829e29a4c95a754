"""Left to right: every token is predicted from those before it (GPT)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sslnlp.collators.base import Collator
from sslnlp.collators.tokens import IGNORED, token_block
from sslnlp.types import Batch, Row


@dataclass(kw_only=True)
class CausalLMCollator(Collator):
    """Labels are the input ids, not shifted (the model's loss shifts them, as everywhere in `transformers`).

    Padding is told by the attention mask, never by its id: where pad and eos are the same token, real ends of text
    stay targets and the model learns to stop. The first token of each document piece is no target, because nothing
    that belongs to it stands before.

    Makes `input_ids`, `attention_mask`, `document_ids`, `position_ids`, `labels` [B, S] (-100 where nothing is asked)
    and `position` [B]; as a `data_collator` of `transformers.Trainer` `input_ids`, `attention_mask`, `labels`.
    """

    name: ClassVar[str] = "causal_lm"
    makes: ClassVar[frozenset[str]] = frozenset(
        {"input_ids", "attention_mask", "document_ids", "position_ids", "labels", "position"}
    )
    requires: ClassVar[frozenset[str]] = frozenset({"eos"})
    shifted: ClassVar[bool] = True

    def __call__(self, rows: Sequence[Row]) -> Batch:
        block = token_block(rows, self.tokenizer)
        labels = np.where(block.attention & ~block.opens, block.input_ids, IGNORED)
        return block.batch(block.input_ids, labels)
