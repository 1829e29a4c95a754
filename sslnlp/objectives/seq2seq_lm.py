"""Encoder-decoders: read a corrupted text, write what is asked of it (BART, T5, UL2)."""

from __future__ import annotations

from typing import ClassVar

from transformers import AutoModelForSeq2SeqLM, PreTrainedConfig, PreTrainedModel

from sslnlp.heads import seq2seq_head
from sslnlp.objectives.base import Objective
from sslnlp.objectives.functional import sum_and_count
from sslnlp.objectives.scoring import by_head, by_logits
from sslnlp.packed import seq2seq_logits, seq2seq_states
from sslnlp.tokenizer import Style
from sslnlp.types import Batch, StepOutput


class Seq2SeqLM(Objective):
    """Cross-entropy of the target, each token from the source and the target tokens before it; nats a target token.

    Reads what `collators.seq2seq.seq2seq_batch` makes: `input_ids`, `document_ids`, `position_ids` [B, S] of the source
    and `labels` (-100 = padding), `decoder_document_ids`, `decoder_position_ids` [B, T] of the target. The target is
    fed back one place to the right, behind the model's own start token, in each document of a packed row.

    `accuracy` is that of all targets, what can be copied and sentinels included; `rebuilt_accuracy` that of the text
    which the source hides (`corrupted`, bool [B, T]).
    """

    needs: ClassVar[frozenset[str]] = frozenset(
        {"input_ids", "document_ids", "position_ids", "labels", "decoder_document_ids", "decoder_position_ids"}
        | {"corrupted"}
    )
    wraps = AutoModelForSeq2SeqLM
    framing: ClassVar[Style] = "seq2seq"

    @classmethod
    def refuses(cls, config: PreTrainedConfig) -> str | None:
        if (reason := super().refuses(config)) is not None:
            return reason
        return None if config.is_encoder_decoder else "it has no decoder beside its encoder"

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        self.head = seq2seq_head(model)

    def forward(self, batch: Batch) -> StepOutput:
        target_N = batch["labels"].flatten()
        if self.head is not None:
            found = by_head(self.head, self.head.features(seq2seq_states(self.model, batch).flatten(0, 1)), target_N)
        else:
            found = by_logits(seq2seq_logits(self.model, batch).flatten(0, 1), target_N)
        hidden_N = batch["corrupted"].flatten()
        return StepOutput(
            found.loss, {"accuracy": found.accuracy, "rebuilt_accuracy": sum_and_count(found.hits, hidden_N)}
        )


class Denoising(Seq2SeqLM):
    """BART (Lewis et al., 2020, arXiv:1910.13461): write the whole text that the source is a corruption of.

    Most of the target can be copied, so `accuracy` is high from early on.
    """

    name: ClassVar[str] = "denoising"
    collator: ClassVar[str] = "denoising"


class SpanCorruption(Seq2SeqLM):
    """T5 (Raffel et al., 2020, arXiv:1910.10683): write the spans that sentinels stand for in the source."""

    name: ClassVar[str] = "span_corruption"
    collator: ClassVar[str] = "span_corruption"


class UL2(Seq2SeqLM):
    """A mixture of denoisers (Tay et al., 2023, arXiv:2205.05131) in an encoder-decoder."""

    name: ClassVar[str] = "ul2"
    collator: ClassVar[str] = "ul2"
