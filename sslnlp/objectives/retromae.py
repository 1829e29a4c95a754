"""A masked autoencoder: a one-layer decoder rebuilds the text from one vector and few of its tokens."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from transformers import AutoModelForMaskedLM, PreTrainedConfig, PreTrainedModel

from sslnlp.errors import UserError
from sslnlp.heads import prediction_head
from sslnlp.nn import document_pool, each_document
from sslnlp.objectives.decoder import EnhancedDecoder, no_encoder
from sslnlp.objectives.functional import IGNORED, row_count
from sslnlp.objectives.scoring import by_head
from sslnlp.objectives.whitening import Whitened
from sslnlp.packed import hidden_states
from sslnlp.types import Batch, StepOutput


class RetroMAE(Whitened):
    """RetroMAE (Xiao et al., 2022, arXiv:2205.12035): masked LM of the encoder + rebuilding the text from its [CLS].

    The encoder reads a lightly masked text and names its masked tokens (`masked`). The vector of its first token then
    goes to a one-layer decoder with enhanced decoding: each token of the text is asked for, from that vector, its place
    and a sample of the other tokens that leaves out a share `decoder_rate` of them, drawn anew for each
    (`objectives.decoder.EnhancedDecoder`). One vocabulary head, the model's own, names the tokens of both. The loss is
    the sum of the two means, in nats a token.

    Reads what `masked_lm` reads, and `document_ids`, `position_ids`, `decoder_targets` [B, S] (-100 = not asked) and
    `position` [B]. Reports loss and accuracy of both parts, and in evaluation `decoder_loss_without_vector`: the
    decoder's loss when every vector is zero. The export is the masked LM without the decoder, which fills masks as
    any and is a sentence-transformers model with [CLS] pooling.

    Options:
        decoder_rate: share of the other tokens hidden from each token that the decoder rebuilds; 0.5 to 0.7 in the
            paper.
        whitening: the exponent of the map behind the pooling of the export (`objectives.whitening`), fitted after
            training to texts without masks. 0: none. None: 0.5 where the start is no sentence encoder.
    """

    name: ClassVar[str] = "retromae"
    needs: ClassVar[frozenset[str]] = frozenset(
        {"input_ids", "document_ids", "position_ids", "labels", "target_index", "decoder_targets", "position"}
    )
    collator: ClassVar[str] = "retromae"
    wraps = AutoModelForMaskedLM
    pooling: ClassVar[str | None] = "cls"

    def __init__(self, model: PreTrainedModel, *, decoder_rate: float = 0.5, whitening: float | None = None) -> None:
        super().__init__(model)
        self.whiten(whitening, 0.5, before=False)
        if not 0 < decoder_rate <= 1:
            raise UserError(
                f"objective.decoder_rate is a share of the tokens above 0 and at most 1, got {decoder_rate}"
            )
        head = prediction_head(model)
        if head is None:
            raise UserError(
                f"the vocabulary head of a {model.config.model_type!r} model does not work apart from it, and the "
                "decoder needs it; choose model.architecture from: bert, electra, modernbert, roberta"
            )
        self.head = head
        self.decoder = EnhancedDecoder(model.config, rate=decoder_rate).to(model.dtype)

    @classmethod
    def refuses(cls, config: PreTrainedConfig) -> str | None:
        return super().refuses(config) or no_encoder(config)

    def forward(self, batch: Batch) -> StepOutput:
        hidden_BSH = hidden_states(self.model, batch)
        index_N = batch["target_index"]
        masked_N = batch["labels"].flatten()[index_N]
        masked = by_head(self.head, self.head.features(hidden_BSH.flatten(0, 1)[index_N]), masked_N)
        vectors_BDH = document_pool(hidden_BSH, batch["document_ids"], "cls")
        rebuilt_N = batch["decoder_targets"].flatten()
        rebuilt = by_head(self.head, self.rebuild(batch, vectors_BDH), rebuilt_N)
        sums = {"decoder_loss": rebuilt.losses.sum(), "decoder_accuracy": rebuilt.hits.sum()}
        if not self.training:
            blind = by_head(self.head, self.rebuild(batch, torch.zeros_like(vectors_BDH)), rebuilt_N)
            sums["decoder_loss_without_vector"] = blind.losses.sum()
        metrics = {"masked_loss": masked.loss.detach(), "masked_accuracy": masked.accuracy}
        metrics |= {name: torch.stack([total, rebuilt.number]) for name, total in sums.items()}
        return StepOutput(masked.loss + rebuilt.loss, metrics, torch.stack([masked.loss, rebuilt.loss]))

    def rebuild(self, batch: Batch, vectors_BDH: Tensor) -> Tensor:
        """What the head's projection multiplies, [B·S, H], at every token of the text, given these vectors."""
        table_VE = self.model.get_input_embeddings().weight
        where = batch["document_ids"], batch["position_ids"]
        hidden_BSH = self.decoder(_text(batch), *where, vectors_BDH, table_VE, batch["position"])
        return self.head.features(hidden_BSH.flatten(0, 1))

    def pooled_texts(self, batch: Batch) -> Tensor:
        hidden_BSH = hidden_states(self.model, {**batch, "input_ids": _text(batch)})
        return each_document(document_pool(hidden_BSH, batch["document_ids"], "cls"), batch["document_ids"])

    def num_targets(self, batch: Batch) -> Tensor:
        """int64 [2]: masked tokens, rebuilt tokens."""
        return torch.stack([row_count(batch["target_index"]), (batch["decoder_targets"] != IGNORED).sum()])


def _text(batch: Batch) -> Tensor:
    """int64 [B, S]: the tokens before any was masked."""
    text_BS: Tensor = torch.where(batch["labels"] == IGNORED, batch["input_ids"], batch["labels"])
    return text_BS
