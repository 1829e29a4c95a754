"""Unlabelled texts that train as if they were labelled: those whose label the starting model is surest of."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from sslnlp.arrays import Ints
from sslnlp.data.joined_rows import JoinedRows
from sslnlp.data.stream import Stream
from sslnlp.data.table_rows import TableRows
from sslnlp.distributed import by_main
from sslnlp.evaluation.held_out import by_length
from sslnlp.objectives.base import Objective
from sslnlp.recipe.build import Parts
from sslnlp.recipe.rows import training_rows


def with_pseudo_labels(parts: Parts, objective: Objective) -> Parts:
    """The parts with the surest unlabelled texts among the training rows, as many as the objective's `pseudo_labels`
    says; unchanged where it asks for none.

    The labels are those the objective guesses before its first update, so a resumed run has the same.
    """
    if parts.unlabelled is None or objective.pseudo_labels == 0 or parts.recipe.train.steps == 0:
        return parts
    unlabelled = parts.unlabelled

    def find() -> tuple[Ints, Ints]:
        """Which texts, and their labels."""
        guessed, sure = objective.guess(training_rows(parts, objective.device))
        order, known = by_length(Stream.fixed(unlabelled)), len(parts.stream.source)
        label_M, sure_M = np.full(len(order), -100, np.int64), np.zeros(len(order))
        label_M[order], sure_M[order] = guessed[known:], sure[known:]
        kept = surest(label_M, sure_M, objective.pseudo_labels)
        return kept, label_M[kept]

    kept, labels = by_main(find)  # other rows, or more of them, on one process, and updates would not be of one run
    assert isinstance(unlabelled, TableRows)
    rows = JoinedRows((parts.stream.source, None), (unlabelled.take(kept), labels))
    collator: Any = parts.collator
    if "table" in {field.name for field in fields(collator)}:  # what draws further texts draws them from all rows
        collator = replace(collator, table=rows)
    parts.facts["pseudo_labelled_rows"] = len(kept)
    return replace(parts, stream=Stream(rows, parts.recipe.train.seed), collator=collator, unlabelled=None)


def surest(label_M: Ints, sure_M: npt.NDArray[np.floating[Any]], share: float) -> Ints:
    """Which texts: of each class the `share` whose label is surest, one at least; ascending."""
    kept = []
    for label in np.unique(label_M[label_M >= 0]):
        members = np.flatnonzero(label_M == label)
        kept.append(members[np.argsort(-sure_M[members], kind="stable")][: max(1, int(share * len(members)))])
    return np.sort(np.concatenate(kept)) if kept else np.empty(0, np.int64)
