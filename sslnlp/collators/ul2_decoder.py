"""A mixture of denoisers for a decoder (UL2): a corrupted text, and what was taken out of it, in one sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch

from sslnlp.arrays import Ints
from sslnlp.collators.ragged import blocks
from sslnlp.collators.spans import columns, document_ends, document_numbers, source_tokens, target_tokens
from sslnlp.collators.tokens import IGNORED, TokenBlock, pad_id, token_block
from sslnlp.collators.ul2 import SEQUENTIAL, UL2Collator
from sslnlp.tokenizer import Style
from sslnlp.types import Batch, Row


@dataclass(kw_only=True)
class UL2DecoderCollator(UL2Collator):
    """The same mixture for a decoder: each document piece is its source, and behind it what was taken out.

        R, X   [BOS] [NLU] Thank you <extra_id_0> to your party. <extra_id_0> for inviting me [EOS]
        S      [BOS] [S2S] Thank you for inviting me to your party.                                  (... [EOS])

    The source is `bidirectional` and not scored; the target is scored as in causal language modelling, the sentinels
    and end-of-text in it too. What was taken out of the middle of a text always ends with end-of-text, by which a model
    learns to stop. S has no sentinel, as the text just goes on, and ends with end-of-text where its text does.

    Spans stand twice in a row's count, so rows are packed with fewer tokens (`source_length`); no row is ever longer
    than `data.seq_length`.

    Makes `input_ids`, `attention_mask`, `document_ids`, `position_ids`, `labels` [B, T] (-100 where nothing is asked,
    not shifted), `bidirectional` bool [B, T] and `position` [B]. As a `data_collator` of `transformers.Trainer` it
    makes `input_ids`, `attention_mask` and `labels`; the model then reads its source from left to right.
    """

    name: ClassVar[str] = "ul2_decoder"
    makes: ClassVar[frozenset[str]] = frozenset(
        {"input_ids", "attention_mask", "document_ids", "position_ids", "labels", "bidirectional", "position"}
    )
    shifted: ClassVar[bool] = True
    style: ClassVar[Style] = "decoder"

    def _slope(self) -> float:
        # rate / mean is 0 for S, whose spans have no mean
        return 1 + 2 * float((self._rates / self._means).max())

    def _lengths(self, longest: int) -> tuple[Ints, Ints]:
        tokens, _, spans = self._counts(longest)
        # Pieces that a text goes on after are packed without the end-of-text that they may get here.
        opened = tokens + self._frame - 1
        return opened, opened + 2 * spans.max(axis=0) + self.modes + 1

    def __call__(self, rows: Sequence[Row]) -> Batch:
        block = token_block(rows, self.tokenizer)
        positions = self._fresh.of_block(block)
        spans, kinds = self._corrupted(block, positions)
        eos = int(self.tokenizer.eos_token_id)
        last, goes_on = document_ends(block), kinds == SEQUENTIAL
        ended = last & (block.input_ids == eos)
        body = replace(block, document_ids=np.where(ended, -1, block.document_ids))
        source = self._with_modes(block, kinds, source_tokens(body, spans, self._sentinels, ~goes_on))
        target = target_tokens(block, spans, self._sentinels, ~goes_on, last & (ended | ~goes_on), eos)

        place_N = np.concatenate([source[0], target[0]])
        # A stable sort: what is written of a document comes behind what is read of it.
        order = np.argsort(document_numbers(block)[place_N], kind="stable")
        ids_N, asked_N = np.concatenate([source[1], target[1]])[order], order >= len(source[0])
        documents_N, width = block.document_ids.ravel()[place_N[order]], block.input_ids.shape[1]
        ids, documents, asked = blocks(
            place_N[order] // max(width, 1), len(rows),
            (ids_N, pad_id(self.tokenizer)), (documents_N, -1), (asked_N.astype(np.int64), 0),
        )  # fmt: skip
        kept = columns(documents, self._longest(width))
        made = TokenBlock(ids[:, :kept], documents[:, :kept], block.positions)
        target_BT = asked[:, :kept].astype(np.bool_)
        batch = made.batch(made.input_ids, np.where(target_BT & ~made.opens, made.input_ids, IGNORED))
        if block.positions is not None:
            batch["bidirectional"] = torch.from_numpy(made.attention & ~target_BT)
        return batch
