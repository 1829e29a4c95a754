"""What the objectives share that pool each text of a row into a vector: two sides or three, encoded in one run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import AutoModel, PreTrainedModel

from sslnlp.nn import Pooling
from sslnlp.objectives.functional import unit
from sslnlp.objectives.whitening import Whitened
from sslnlp.packed import drops_out, hidden_states, isolates, packed_hidden_states, trust_rows
from sslnlp.types import Encoding


class Pooled(Whitened):
    """A sentence encoder whose vectors of length 1 are compared over the rows of a batch.

    The texts of all sides fill rows without padding where the model keeps the texts of a row apart (`packed.isolates`)
    and drops nothing out: which elements of a text are dropped is keyed by its row of the batch.
    """

    wraps: ClassVar[Any] = AutoModel
    couples_rows: ClassVar[bool] = True
    pooling: str | None = "mean"  # type: ignore[misc]  # the class's default; an instance carries its own

    def __init__(self, model: PreTrainedModel, pooling: str) -> None:
        super().__init__(model)
        self.pooling = pooling
        self.pool = Pooling(pooling)
        self._isolates, self._drops_out = isolates(model), drops_out(model)
        if self._isolates:
            trust_rows(model)

    def embed(self, encoding: Encoding) -> Tensor:
        """Vectors of length 1 [B, H], in float32 or wider, of an encoding [B, S]."""
        return self._vectors(hidden_states(self.model, encoding), encoding)

    def pooled(self, encoding: Encoding) -> Tensor:
        """The vectors [B, H] as the model makes them, in float32 or wider."""
        pooled_BH: Tensor = self.pool(hidden_states(self.model, encoding), encoding["attention_mask"])
        return pooled_BH.to(torch.promote_types(pooled_BH.dtype, torch.float32))

    def _vectors(self, hidden_BSH: Tensor, encoding: Encoding) -> Tensor:
        return unit(self.mapped(self.pool(hidden_BSH, encoding["attention_mask"])))

    def embed_sides(self, sides: Mapping[str, Encoding], place_RT: Tensor | None) -> dict[str, Tensor]:
        """The vectors of every side. `place_RT`: how their texts fill rows without padding (`ragged.pack_texts`)."""
        # Not by how full this batch is: with cut weights all processes must run the model equally often.
        if place_RT is None or not self._isolates or (self.training and self._drops_out):
            return {name: self.embed(encoding) for name, encoding in sides.items()}
        hidden = packed_hidden_states(self.model, list(sides.values()), place_RT)
        return {name: self._vectors(states, sides[name]) for name, states in zip(sides, hidden, strict=True)}
