"""A sentence autoencoder: a small decoder has to write a damaged text whole from one vector of it."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from sslnlp.errors import UserError
from sslnlp.nn import POOLINGS, document_pool, each_document
from sslnlp.objectives.decoder import SentenceDecoder, no_encoder
from sslnlp.objectives.linear_cross_entropy import Scored, linear_cross_entropy
from sslnlp.objectives.whitening import Whitened
from sslnlp.packed import hidden_states
from sslnlp.types import Batch, StepOutput


class TSDAE(Whitened):
    """TSDAE (Wang et al., 2021, arXiv:2104.06979): cross-entropy in nats a token of writing each document again.

    The encoder reads the document with most of its tokens deleted; the decoder (`objectives.decoder`) is given one
    pooled vector and, as any left-to-right model, the true tokens before the one it writes. What it cannot guess from
    those has to be in the vector. The decoder and its share of the state are not exported: the export is the encoder,
    and a sentence-transformers model.

    Reads what `collators.seq2seq.seq2seq_batch` makes. `accuracy` is that of the next token. In evaluation
    `loss_without_vector` is the loss when every vector is zero: a loss that is no lower says that the vector carries
    nothing.

    Options:
        pooling: how the tokens of a document become its vector: "cls", "mean", "last" or "weighted".
        layers: of the decoder.
        whitening: the exponent of the map behind the pooling of the export (`objectives.whitening`), fitted after
            training to what the encoder reads. 0: none. None: 0.5 where the start is no sentence encoder.
    """

    name: ClassVar[str] = "tsdae"
    needs: ClassVar[frozenset[str]] = frozenset(
        {"input_ids", "document_ids", "position_ids", "labels", "decoder_document_ids", "decoder_position_ids"}
    )
    collator: ClassVar[str] = "tsdae"
    wraps: ClassVar[Any] = AutoModel
    pooling: str | None = "cls"  # type: ignore[misc]  # the class's default; an instance carries its own

    def __init__(
        self, model: PreTrainedModel, *, pooling: str = "cls", layers: int = 1, whitening: float | None = None
    ) -> None:
        super().__init__(model)
        if pooling not in POOLINGS:
            raise UserError(f"unknown objective.pooling {pooling!r}; accepted: {', '.join(POOLINGS)}")
        self.pooling = pooling
        self.whiten(whitening, 0.5, before=False)
        self.decoder = SentenceDecoder(model.config, layers=layers).to(model.dtype)

    @classmethod
    def refuses(cls, config: PreTrainedConfig) -> str | None:
        return super().refuses(config) or no_encoder(config)

    def forward(self, batch: Batch) -> StepOutput:
        vectors_BDH = self.embed(batch)
        target_N = batch["labels"].flatten()
        found = self._named(self.write(batch, vectors_BDH), target_N)
        metrics = {"accuracy": found.accuracy}
        if not self.training:
            blind = self._named(self.write(batch, torch.zeros_like(vectors_BDH)), target_N)
            metrics["loss_without_vector"] = torch.stack([blind.losses.sum(), blind.number])
        return StepOutput(found.loss, metrics)

    def embed(self, batch: Batch) -> Tensor:
        """[B, D, H]: the vector of each document of each row."""
        assert self.pooling is not None
        return document_pool(hidden_states(self.model, batch), batch["document_ids"], self.pooling)

    def pooled_texts(self, batch: Batch) -> Tensor:
        return each_document(self.embed(batch), batch["document_ids"])

    def write(self, batch: Batch, vectors_BDH: Tensor) -> Tensor:
        """What names the batch's labels, [B·T, E], given these vectors."""
        where = batch["decoder_document_ids"], batch["decoder_position_ids"]
        features: Tensor = self.decoder(batch["labels"], *where, vectors_BDH, self._table)
        return features.flatten(0, 1)

    def _named(self, features_NE: Tensor, target_N: Tensor) -> Scored:
        return linear_cross_entropy(features_NE, self._table, self.decoder.bias, target_N)

    @property
    def _table(self) -> Tensor:
        weight: Tensor = self.model.get_input_embeddings().weight
        return weight
