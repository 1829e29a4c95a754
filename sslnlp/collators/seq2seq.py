"""The batch of an encoder-decoder: a corrupted source, and the target the decoder writes, both packed alike."""

from __future__ import annotations

import numpy as np
import torch

from sslnlp.arrays import Bools, Ints
from sslnlp.collators.tokens import IGNORED, TokenBlock
from sslnlp.types import Batch

SEQ2SEQ_KEYS = frozenset(
    {
        *("input_ids", "attention_mask", "document_ids", "position_ids"),
        *("labels", "decoder_document_ids", "decoder_position_ids", "position"),
    }
)
"""What `seq2seq_batch` makes natively."""


def seq2seq_batch(block: TokenBlock, source: tuple[Ints, Ints], target: tuple[Ints, Ints]) -> Batch:
    """The batch of these sources and targets, each (ids [B, T], document ids [B, T], -1 = padding).

    Target document d of a row is what the decoder writes for source document d of that row, and sees nothing else.
    Natively: `input_ids`, `attention_mask`, `document_ids`, `position_ids` of the source; `labels` (-100 = padding, not
    shifted), `decoder_document_ids`, `decoder_position_ids` of the target; `position` [B]. The objective shifts labels
    into decoder inputs, since only the model knows its start token. As a `data_collator` of `transformers.Trainer`:
    `input_ids`, `attention_mask`, `labels`; stock models shift by themselves.
    """
    (input_ids, document_ids), (target_ids, target_documents) = source, target
    labels = np.where(target_documents >= 0, target_ids, IGNORED)
    batch: Batch = {"input_ids": torch.from_numpy(input_ids), "labels": torch.from_numpy(labels)}
    if block.positions is None:
        batch["attention_mask"] = torch.from_numpy((document_ids >= 0).astype(np.int64))
        return batch
    batch["attention_mask"] = torch.from_numpy(document_ids >= 0)
    batch["document_ids"] = torch.from_numpy(document_ids)
    batch["position_ids"] = torch.from_numpy(within_document(document_ids))
    batch["decoder_document_ids"] = torch.from_numpy(target_documents)
    batch["decoder_position_ids"] = torch.from_numpy(within_document(target_documents))
    batch["position"] = torch.from_numpy(block.positions)
    return batch


def mark_text(batch: Batch, text_V: Bools) -> Batch:
    """Adds `corrupted` bool [B, T], natively: the labels that are text which the source hides, where every label is
    that or a special token (a sentinel, the end); `text_V` bool [V] tells which."""
    if "position" in batch:
        labels = batch["labels"].numpy()
        batch["corrupted"] = torch.from_numpy(text_V[np.maximum(labels, 0)] & (labels != IGNORED))
    return batch


def within_document(document_ids: Ints) -> Ints:
    """int64 [B, S]: the place of each token in its document, from 0; padding counts as a document of its own."""
    index = np.arange(document_ids.shape[1])
    opens = np.ones(document_ids.shape, dtype=np.bool_)
    np.not_equal(document_ids[:, 1:], document_ids[:, :-1], out=opens[:, 1:])
    places: Ints = index - np.maximum.accumulate(np.where(opens, index, 0), axis=1)
    return places
