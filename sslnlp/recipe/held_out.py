"""The held-out pass of a run, and a part of it that tells how long it takes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

from torch import Tensor

from sslnlp.data.stream import Rows
from sslnlp.errors import UserError
from sslnlp.evaluation.held_out import evaluate_held_out
from sslnlp.objectives.base import Objective
from sslnlp.recipe.build import Parts
from sslnlp.types import Row

SETTLED = ("one", "several", "number")
"""The kinds of labels of which there is one a text."""
TIMED_BATCHES = 5
"""Held-out batches that are timed, from all over the held-out rows, where these have three times as many or more."""


class HeldOut:
    """The held-out pass of a run: the same rows and draws in every call. What the last call predicted of labelled texts
    stays for `decide`, so that they are read once."""

    def __init__(self, parts: Parts, valid: Rows, *, batch_size: int) -> None:
        self.parts, self.valid, self.batch_size = parts, valid, batch_size
        self.predicted: dict[str, Tensor] = {}
        self.notes: list[str] = []
        """Why the figures of the last call say little, where they do."""
        self.called = False

    def __call__(self, objective: Objective) -> dict[str, float]:
        parts = self.parts
        self.predicted, self.notes, self.called = {}, [], True
        return evaluate_held_out(
            objective, parts.collator, self.valid, batch_size=self.batch_size,
            num_bytes=parts.valid_bytes, device=objective.device,
            keep=self.predicted if parts.collator.label_kind in SETTLED else None, notes=self.notes,
        )  # fmt: skip

    def part(self) -> tuple[Callable[[Objective], object], float] | None:
        """A walk over a few batches, and how many times as long as it the whole pass takes. None where rows are so few
        that the pass itself is as soon timed."""
        every = len(self.valid) // (TIMED_BATCHES * self.batch_size)
        if every <= 2:
            return None
        some = HeldOut(self.parts, _EveryNth(self.valid, every), batch_size=self.batch_size)

        def walk(objective: Objective) -> None:
            with contextlib.suppress(UserError):  # none of these rows has a target: they took their time all the same
                some(objective)

        return walk, len(self.valid) / len(some.valid)


class _EveryNth:
    """Every n-th of the rows, from the first on."""

    def __init__(self, valid: Rows, every: int) -> None:
        self.valid, self.every = valid, every

    def __len__(self) -> int:
        return -(-len(self.valid) // self.every)

    def rows(self, positions: Sequence[int]) -> list[Row]:
        return self.valid.rows([position * self.every for position in positions])
