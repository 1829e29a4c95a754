"""The `adapt.*` keys of a recipe: pretraining on unlabelled text before fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass

from sslnlp.errors import UserError


@dataclass(kw_only=True)
class AdaptConfig:
    """Pretraining on `data.unlabelled` before the labels are looked at."""

    steps: int = 0
    """Updates; 0: none."""
    objective: str | None = None
    """None: `info_nce` between two readings of a text where a sentence encoder is to make vectors, else `masked_lm`
    or, of a decoder, `causal_lm`."""
    lr: float | None = None
    """None: with the optimiser, schedule and masks, that of the run which made the start; where there is none, or
    texts are compared, AdamW at a rate in proportion to the weights, 5e-5 for MiniLM (`train.relative_lr`)."""
    batch_size: int = 32
    seq_length: int = 128

    def __post_init__(self) -> None:
        if self.steps < 0 or self.batch_size < 1 or (self.lr is not None and self.lr <= 0):
            raise UserError("adapt.steps cannot be negative, adapt.batch_size and adapt.lr must be above 0")
