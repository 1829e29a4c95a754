"""How a text, or a query and a document that are read together, becomes tokens: in training and in search alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from sslnlp.errors import UserError
from sslnlp.types import Batch, Encoding


def single_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], length: int) -> Encoding:
    """Texts by themselves, cut to `length` tokens and padded on the right to the longest: int64 [N, S]."""
    # Segments of a single text are all 0, every model's default; some models (ModernBERT) refuse the argument.
    encoded = tokenizer(
        list(texts), truncation=True, max_length=length, padding=True, padding_side="right",
        return_token_type_ids=False, return_tensors="pt",
    )  # fmt: skip
    return dict(encoded)


def check_room(tokenizer: PreTrainedTokenizerBase, **lengths: int) -> None:
    """Refuse options of a collator that leave a text no token beside the special ones."""
    around = tokenizer.num_special_tokens_to_add(pair=False)
    for option, length in lengths.items():
        if length <= around:
            raise UserError(f"collator.{option}={length} leaves no room beside {around} special tokens")


@dataclass(frozen=True)
class PairTokenizer:
    """Pairs as a cross-encoder sees them. What is too long loses its end (its beginning, where the tokenizer truncates
    on the left): the query at `query_length`, then the document at what `max_length` leaves it.

    Raises `UserError` for a slow tokenizer.
    """

    tokenizer: PreTrainedTokenizerBase
    max_length: int
    """Tokens of a pair, special tokens included."""
    query_length: int | None = None
    """Tokens of a query, special tokens aside, and never more than half of the pair; None: the longer of the two texts
    is cut until both fit, as sentence-transformers does."""
    query_prefix: str = ""
    document_prefix: str = ""

    def __post_init__(self) -> None:
        if not self.tokenizer.is_fast:
            raise UserError("pairs need a fast tokenizer: a slow one does not say where its tokens stand")

    def __call__(self, queries: Sequence[str], documents: Sequence[str]) -> list[dict[str, list[int]]]:
        """The tokenizer's inputs of each pair, not padded."""
        # No query that was cut is longer than half of the pair, so what is cut here is the document.
        encoded = self.tokenizer(
            self._cut([self.query_prefix + text for text in queries]),
            [self.document_prefix + text for text in documents],
            truncation="longest_first",
            max_length=self.max_length,
        )
        return [{name: column[n] for name, column in encoded.items()} for n in range(len(queries))]

    def pad(self, encodings: Sequence[dict[str, list[int]]]) -> Batch:
        """Int64 [N, S], S the longest of them."""
        return dict(self.tokenizer.pad(list(encodings), padding=True, padding_side="right", return_tensors="pt"))

    def _cut(self, queries: Sequence[str]) -> list[str]:
        """What is kept of the queries. Cut as text, for a tokenizer takes pairs as texts alone."""
        around = self.tokenizer.num_special_tokens_to_add(pair=True)
        length = 4 * self.max_length  # no token of a pair is lost yet, and a book is not split for each of its texts
        if self.query_length is not None:
            length = max(1, min(self.query_length, (self.max_length - around) // 2))
        distinct = list(dict.fromkeys(queries))
        encoded: Any = self.tokenizer(
            distinct, add_special_tokens=False, truncation=True, max_length=length, return_offsets_mapping=True
        )
        left = self.tokenizer.truncation_side == "left"
        kept = {
            text: text[offsets[0][0] if left else 0 : offsets[-1][1]] if offsets else ""
            for text, offsets in zip(distinct, encoded["offset_mapping"], strict=True)
        }
        return [kept[text] for text in queries]
