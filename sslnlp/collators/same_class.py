"""A labelled text and another one of its class: pairs for contrastive learning from few labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

from sslnlp.arrays import Ints
from sslnlp.collators.classification import ClassificationCollator, text_of
from sslnlp.collators.pairs import single_texts
from sslnlp.collators.ragged import pack_texts
from sslnlp.collators.tokens import FreshPositions, carried
from sslnlp.data.stream import in_runs
from sslnlp.errors import UserError
from sslnlp.rng import uniform
from sslnlp.types import Batch, Row


@dataclass(kw_only=True)
class SameClassCollator(ClassificationCollator):
    """Each row's text beside another text of its class, drawn anew at each position from all training rows.

    The pairs of SetFit (Tunstall et al., 2022, arXiv:2209.11055) without a list of them: of n texts a class there are
    about n²/2. A text whose class has no other is paired with itself.

    Batch: encodings `first`, `second` of [B, S]; `labels` int64 [B]; `places` int64 [R, T], how the texts of both fill
    rows without padding (`ragged.pack_texts`); `position` int64 [B] when the rows carry it; else the other texts are
    drawn anew at every call.
    """

    name: ClassVar[str] = "same_class"
    makes: ClassVar[frozenset[str]] = frozenset({"first", "second", "labels", "places", "position"})

    table: Any = field(default=None, repr=False)
    """The training rows; set by the run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._fresh = FreshPositions()

    def __call__(self, rows: Sequence[Row]) -> Batch:
        if any(row.get("text_pair") is not None for row in rows):
            raise UserError(
                "few_shot compares single texts, and the rows are pairs of them; use objective.name=classification"
            )
        texts = [text_of(row, "text") for row in rows]
        labels = self.labels(rows)
        positions = self._fresh.of(rows)
        batch: Batch = {
            "first": single_texts(self.tokenizer, texts, self.max_length),
            "second": single_texts(self.tokenizer, self._partners(texts, labels.numpy(), positions), self.max_length),
            "labels": labels,
        }
        batch["places"] = pack_texts([batch[side]["attention_mask"] for side in ("first", "second")])
        return batch | carried(rows)

    def _partners(self, texts: Sequence[str], labels: Ints, positions: Ints) -> list[str]:
        if self.table is None:
            raise UserError("collator same_class draws from the training rows: give it them as `table`")
        drawn = uniform(self.seed, "same class", positions, 1)[:, 0]
        chosen = []
        for text, label, share in zip(texts, labels.tolist(), drawn, strict=True):
            members = self._members.get(label, [])
            start = int(share * len(members))
            others = (members[(start + i) % len(members)] for i in range(min(2, len(members))))
            chosen.append(next((other for other in others if other != text), text))
        return chosen

    @cached_property
    def _members(self) -> dict[int, list[str]]:
        """The texts of each class."""
        members: dict[int, list[str]] = {}
        for rows in in_runs(self.table):
            for row in rows:
                members.setdefault(self.class_of(row["label"]), []).append(text_of(row, "text"))
        return members
