"""Rows of tagged words into a padded batch: a word's tag stands at its first token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from sslnlp.arrays import Ints
from sslnlp.collators.classification import ClassificationCollator
from sslnlp.collators.tokens import carried
from sslnlp.errors import UserError
from sslnlp.types import Batch, Row

_EMPTY = {"tags": -100, "places": -1, "shared": 0}
"""What stands where a row has no more words."""


@dataclass(kw_only=True)
class TaggingCollator(ClassificationCollator):
    """Joins `words` to a text, tokenizes it, and puts each word's tag at the first token that begins with it.

    The model reads what a pipeline will read: a text, not a list of words, so a word has the same tokens in training
    and in use. All other tokens have label -100, but those that a reader of tokens takes for words of their own go on
    with its tag (`I-PER` after `B-PER`): all of them where `joiner` is empty, and with WordPiece those without its mark
    (of `Jean-Claude` the hyphen and `Claude`).

    Batch: the tokenizer's inputs int64 [B, S]; `labels` int64 [B, S]. Of each word, for measuring, int64 [B, W]:
    `tags`, -100 where there is none; `places`, the token that it is read from, -1 where it has none, as when it did not
    fit into `max_length`: held out it counts as missed; `shared`, 1 for a word that lies in a token which began with
    one before it, as two characters of Chinese may. Needs a fast tokenizer.
    """

    name: ClassVar[str] = "tagging"
    makes: ClassVar[frozenset[str]] = frozenset(
        {"input_ids", "attention_mask", "labels", "tags", "places", "shared", "position"}
    )
    columns: ClassVar[tuple[str, ...]] = ("words", "label")
    label_kind: ClassVar[str | None] = "tags"

    joiner: str = " "
    """Between two words; empty for languages that write none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.tokenizer.is_fast:
            raise UserError("tagging needs a fast tokenizer: a slow one does not say where its tokens stand")
        prefix: str = getattr(self.tokenizer.backend_tokenizer.model, "continuing_subword_prefix", None) or ""
        tokens = self.tokenizer.convert_ids_to_tokens(list(range(len(self.tokenizer)))) if prefix else []
        self._goes_on = np.array([(token or "").startswith(prefix) for token in tokens], np.bool_)
        inside = {name: "I" + name.removeprefix("B") for name in self._index if name.startswith("B-")}
        self._going_on = {c: self._index.get(inside.get(name, name), c) for name, c in self._index.items()}

    def __call__(self, rows: Sequence[Row]) -> Batch:
        texts, all_words, tags = [], [], []
        for row in rows:
            all_words.append([str(word) for word in row["words"]])
            tags.append(np.array([self.class_of(tag) for tag in row["label"]], np.int64))
            if len(tags[-1]) != len(all_words[-1]):
                raise UserError(f"a row has {len(all_words[-1])} words and {len(tags[-1])} tags; it needs as many")
            texts.append(self.joiner.join(all_words[-1]))
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
        of_words = {name: np.full((len(rows), max(map(len, tags))), empty) for name, empty in _EMPTY.items()}
        for b, (words, tag) in enumerate(zip(all_words, tags, strict=True)):
            word, covered = _where(words, len(self.joiner), offsets[b])
            place, shared = np.flatnonzero(word >= 0), np.zeros(len(words), np.int64)
            there, first = np.unique(word[place], return_index=True)
            if not self.joiner or len(self._goes_on):
                alone = place[~self._goes_on[encoded["input_ids"][b, place]]] if self.joiner else place
                labels[b, alone] = [self._going_on.get(c, c) for c in tag[word[alone]].tolist()]
            labels[b, place[first]] = tag[there]
            shared[covered >= 0] = 1
            covered[there], shared[there] = place[first], 0
            for name, values in (("tags", tag), ("places", covered), ("shared", shared)):
                of_words[name][b, : len(words)] = values
        batch: Batch = dict(encoded) | {name: torch.from_numpy(values) for name, values in of_words.items()}
        batch["labels"] = torch.from_numpy(labels)
        return batch | carried(rows)


def _where(words: Sequence[str], between: int, offsets_S2: Ints) -> tuple[Ints, Ints]:
    """Of each token the first word that it touches [S], and of each word the last token that touches it [W]; -1: none.

    A token may begin with what stands before its word (the space, where a tokenizer counts it to the token behind it),
    or be nothing but that.
    """
    lengths = np.array([len(word) for word in words], np.int64)
    ends = np.cumsum(lengths + between) - between
    written = np.flatnonzero(lengths)  # a word of no letter has no token
    if not len(written):
        return np.full(len(offsets_S2), -1, np.int64), np.full(len(words), -1, np.int64)
    end, start = ends[written], (ends - lengths)[written]
    first, last = offsets_S2[:, 0], offsets_S2[:, 1]
    found = np.searchsorted(end, first, side="right")
    touches = (found < len(end)) & (last > first)
    touches &= start[np.minimum(found, len(end) - 1)] < last
    word_S = np.where(touches, written[np.minimum(found, len(end) - 1)], -1)
    covered_W = np.full(len(words), -1, np.int64)
    for token in np.flatnonzero(touches):
        covered_W[written[found[token] : np.searchsorted(start, last[token], side="left")]] = token
    return word_S, covered_W
