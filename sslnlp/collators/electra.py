"""Masking for replaced-token detection: also which tokens are judged, and which may be put in their place (ELECTRA)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from sslnlp.collators.masked_lm import MaskedLMCollator
from sslnlp.collators.tokens import IGNORED
from sslnlp.tokenizer import special_mask
from sslnlp.tokenizer.specials import vocabulary_size
from sslnlp.types import Batch, Row


@dataclass(kw_only=True)
class ElectraCollator(MaskedLMCollator):
    """What `masked_lm` makes, for a generator to fill in, and what the discriminator needs to know of the vocabulary.

    The options are those of `masked_lm`; `rate` is 0.15 as published. The masks are the same draws, so a masked LM of
    the same seed, rate and unit is asked the same tokens.

    Makes in addition `judged` bool [B, S] (every token of text, hidden or not: neither padding nor special) and
    `drawable` bool [V] (the ids that stand for text: what a generator may write), V the tokenizer's vocabulary.
    As a `data_collator` of `transformers.Trainer` it is `masked_lm`.
    """

    name: ClassVar[str] = "electra"
    makes: ClassVar[frozenset[str]] = MaskedLMCollator.makes | {"judged", "drawable"}

    rate: float = 0.15

    def __post_init__(self) -> None:
        super().__post_init__()
        drawable = np.zeros(vocabulary_size(self.tokenizer), dtype=np.bool_)
        drawable[list(self.tokenizer.get_vocab().values())] = True  # a vocabulary may have holes
        self._text = drawable & ~special_mask(self.tokenizer)

    def __call__(self, rows: Sequence[Row]) -> Batch:
        batch = super().__call__(rows)
        if "position" in batch:
            labels = batch["labels"].numpy()
            original = np.where(labels != IGNORED, labels, batch["input_ids"].numpy())
            batch["judged"] = torch.from_numpy(self._text[original]) & batch["attention_mask"]
            batch["drawable"] = torch.from_numpy(self._text)
        return batch
