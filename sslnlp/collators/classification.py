"""Rows of a labelled table into a padded batch: the one task where the targets come from people, not from the text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from reprlib import repr as shorten
from typing import Any, ClassVar

import torch
from torch import Tensor

from sslnlp.collators.base import Collator
from sslnlp.collators.pairs import check_room
from sslnlp.collators.tokens import carried
from sslnlp.data.label_kinds import UNKNOWN, marks, plain
from sslnlp.errors import UserError
from sslnlp.types import Batch, Row


@dataclass(kw_only=True)
class ClassificationCollator(Collator):
    """Tokenizes `text` (and `text_pair`, if the rows have one), pads to the longest row, and maps labels to integers.

    Batch: the tokenizer's inputs (`input_ids`, `attention_mask`, for some `token_type_ids`) int64 [B, S],
    `labels` int64 [B], and `position` int64 [B] when the rows carry it. Rows without a position work as well, so it
    is also a `data_collator` for `transformers.Trainer` (with `remove_unused_columns=False`).
    """

    name: ClassVar[str] = "classification"
    makes: ClassVar[frozenset[str]] = frozenset({"input_ids", "attention_mask", "labels", "position"})
    reads: ClassVar[str] = "rows"
    columns: ClassVar[tuple[str, ...]] = ("text", "label")
    label_kind: ClassVar[str | None] = "one"
    requires: ClassVar[frozenset[str]] = frozenset({"pad"})
    lengths: ClassVar[tuple[str, ...]] = ("max_length",)

    max_length: int = 256
    """Tokens a row may have, special tokens included; longer texts lose their end."""
    label_names: list[str] | None = None
    """Class c is called `label_names[c]`; needed when the rows carry strings."""

    def __post_init__(self) -> None:
        check_room(self.tokenizer, max_length=self.max_length)
        names = self.label_names or []
        if len(set(names)) != len(names):
            raise UserError("collator.label_names has a name twice; each class needs its own")
        self._index = {name: c for c, name in enumerate(names)}

    def __call__(self, rows: Sequence[Row]) -> Batch:
        texts = [text_of(row, "text") for row in rows]
        paired = [row.get("text_pair") is not None for row in rows]
        if any(paired) and not all(paired):
            raise UserError("some rows have a text_pair and some have none; give one to every row or drop the column")
        batch: Batch = dict(
            self.tokenizer(
                texts,
                [text_of(row, "text_pair") for row in rows] if any(paired) else None,
                truncation=True,
                max_length=self.max_length,
                padding=True,
                padding_side="right",  # a text has the same positions beside any other
                return_tensors="pt",
                return_token_type_ids=None if any(paired) else False,  # all 0 for a single text: every model's default
            )
        )
        batch["labels"] = self.labels(rows)
        return batch | carried(rows)

    def labels(self, rows: Sequence[Row]) -> Tensor:
        """What the batch holds of the rows' labels."""
        return torch.tensor([self.class_of(row.get("label")) for row in rows], dtype=torch.int64)

    def class_of(self, value: Any) -> int:
        """The number of a class (-100: none is known); `UserError` for nothing, and for what `label_names` lacks."""
        value = plain(value)
        if value == UNKNOWN:
            return UNKNOWN
        if isinstance(value, str):
            if not self._index:
                raise UserError(f"label {shorten(value)} is a string; set collator.label_names to the list of classes")
            if value not in self._index:
                raise UserError(f"label {shorten(value)} is not among the {len(self._index)} classes seen in training")
            return self._index[value]
        if value is None or not isinstance(value, Integral) or int(value) < 0:
            raise UserError(f"a row has no usable label ({shorten(value)}); labels are strings or integers from 0")
        if self._index and int(value) >= len(self._index):
            raise UserError(f"label {value} is out of range: there are {len(self._index)} classes, numbered from 0")
        return int(value)


@dataclass(kw_only=True)
class MultiLabelCollator(ClassificationCollator):
    """Texts of any number of classes: a row's `label` is a list of names or numbers, and may be empty.

    Batch: as `classification`, with `labels` float32 [B, C], 1 where a class applies. Needs `label_names`.
    """

    name: ClassVar[str] = "multi_label"
    label_kind: ClassVar[str | None] = "several"

    def labels(self, rows: Sequence[Row]) -> Tensor:
        if not self.label_names:
            raise UserError("set collator.label_names to the list of classes")
        marks_BC = torch.zeros(len(rows), len(self.label_names))
        for mark_C, row in zip(marks_BC, rows, strict=True):
            value = plain(row.get("label"))
            if not isinstance(value, (list, tuple)):
                raise UserError(f"a row's label is {shorten(value)}; of several classes it is a list, empty for none")
            found = [self.class_of(item) for item in value]
            if UNKNOWN in found or marks(value):
                raise UserError(
                    f"a row's label is {shorten(value)}; of several classes it is a list of those that apply, by name "
                    "or number, and not a 0 or 1 for each"
                )
            mark_C[found] = 1.0
        return marks_BC


@dataclass(kw_only=True)
class RegressionCollator(ClassificationCollator):
    """Texts with a measurement each: `labels` float32 [B]."""

    name: ClassVar[str] = "regression"
    label_kind: ClassVar[str | None] = "number"

    def labels(self, rows: Sequence[Row]) -> Tensor:
        values = [plain(row.get("label")) for row in rows]
        for value in values:
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
                raise UserError(f"a row's label is {shorten(value)}; regression needs a finite number in every row")
        return torch.tensor([float(value) for value in values])


def text_of(row: Row, column: str) -> str:
    """The text of a row; `UserError` when it is none."""
    value = row.get(column)
    if not isinstance(value, str):
        raise UserError(f"column {column!r} must hold text, found {shorten(value)}; name the right one in data.columns")
    return value
