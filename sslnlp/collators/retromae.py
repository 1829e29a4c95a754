"""Masking for RetroMAE: the encoder's light masking, and all of the text as targets of the decoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from sslnlp.collators.masked_lm import MaskedLMCollator
from sslnlp.collators.tokens import IGNORED
from sslnlp.tokenizer import special_mask
from sslnlp.types import Batch, Row


@dataclass(kw_only=True)
class RetroMAECollator(MaskedLMCollator):
    """Masked rows as `masked_lm` makes them, and the original of every token of the text (Xiao et al., 2022, RetroMAE).

    The options are those of `masked_lm`, for what the encoder reads; `rate` = 0.3 is the paper's. What the decoder may
    see of the text is drawn by the objective, for each token anew.

    Makes the keys of `masked_lm` and `decoder_targets` int64 [B, S]: the token at each place, -100 at special tokens
    and padding. Without positions, as a `data_collator`, it makes what `masked_lm` makes.
    """

    name: ClassVar[str] = "retromae"
    makes: ClassVar[frozenset[str]] = MaskedLMCollator.makes | {"decoder_targets"}

    def __post_init__(self) -> None:
        super().__post_init__()
        self._special = torch.from_numpy(special_mask(self.tokenizer))

    def __call__(self, rows: Sequence[Row]) -> Batch:
        batch = super().__call__(rows)
        if "position" not in batch:
            return batch
        text = torch.where(batch["labels"] == IGNORED, batch["input_ids"], batch["labels"])
        batch["decoder_targets"] = text.masked_fill(self._special[text] | ~batch["attention_mask"], IGNORED)
        return batch
