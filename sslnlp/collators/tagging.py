"""Rows of tagged words into a padded batch: a word's tag stands at its first token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from sslnlp.collators.classification import ClassificationCollator
from sslnlp.collators.tokens import carried
from sslnlp.errors import UserError
from sslnlp.types import Batch, Row


@dataclass(kw_only=True)
class TaggingCollator(ClassificationCollator):
    """Joins `words` to a text, tokenizes it, and puts each word's tag at the first token that ends inside it.

    The model reads what a pipeline will read: a text, not a list of words, so a word has the same tokens in training
    and in use. All other tokens have label -100.

    Batch: the tokenizer's inputs int64 [B, S]; `labels` int64 [B, S]; `cut` int64 [B, W], the tags of the words that
    did not fit into `max_length` (-100 where there are none): held out they count as missed. Needs a fast tokenizer.
    """

    name: ClassVar[str] = "tagging"
    makes: ClassVar[frozenset[str]] = frozenset({"input_ids", "attention_mask", "labels", "cut", "position"})
    columns: ClassVar[tuple[str, ...]] = ("words", "label")
    label_kind: ClassVar[str | None] = "tags"

    joiner: str = " "
    """Between two words; empty for languages that write none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.tokenizer.is_fast:
            raise UserError("tagging needs a fast tokenizer: a slow one does not say where its tokens stand")

    def __call__(self, rows: Sequence[Row]) -> Batch:
        texts, starts, ends, tags = [], [], [], []
        for row in rows:
            words = [str(word) for word in row["words"]]
            tags.append([self.class_of(tag) for tag in row["label"]])
            if len(tags[-1]) != len(words):
                raise UserError(f"a row has {len(words)} words and {len(tags[-1])} tags; it needs as many")
            texts.append(self.joiner.join(words))
            ends.append(np.cumsum([len(word) + len(self.joiner) for word in words]) - len(self.joiner))
            starts.append(ends[-1] - [len(word) for word in words])
        encoded: Any = self.tokenizer(
            texts,
            truncation=True,
            max_length=self.max_length,
            padding=True,
            padding_side="right",
            return_tensors="pt",
            return_offsets_mapping=True,
            return_token_type_ids=False,
        )
        offsets = encoded.pop("offset_mapping").numpy()
        labels = np.full(offsets.shape[:2], -100, np.int64)
        cut = []
        for b, (start, end, tag) in enumerate(zip(starts, ends, tags, strict=True)):
            # By its last character: some tokenizers count the space before a word to its first token. Others make a
            # token of the space alone, which is of no word.
            last = offsets[b, :, 1] - 1
            word = np.minimum(np.searchsorted(end, last, side="right"), len(end) - 1)
            place = np.flatnonzero((last >= offsets[b, :, 0]) & (last >= start[word]) & (last < end[word]))
            there, first = np.unique(word[place], return_index=True)
            labels[b, place[first]] = np.array(tag, np.int64)[there]
            cut.append([t for w, t in enumerate(tag) if w > (there.max() if len(there) else -1)])
        batch: Batch = dict(encoded)
        batch["labels"] = torch.from_numpy(labels)
        width = max(1, *map(len, cut))
        batch["cut"] = torch.tensor([row + [-100] * (width - len(row)) for row in cut], dtype=torch.int64)
        return batch | carried(rows)
