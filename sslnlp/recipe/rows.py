"""The training rows as an objective sees them outside the loop: before its first update and after its last."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from accelerate.utils import send_to_device

from sslnlp.data.stream import Stream
from sslnlp.evaluation.held_out import by_length
from sslnlp.recipe.build import Parts
from sslnlp.types import Batch

BEGIN_ROWS = 5000
"""Rows from which an objective may set weights before its first update."""


def first_rows(parts: Parts, device: torch.device) -> Iterator[Batch]:
    """The training rows that come first in the order of training, at most `BEGIN_ROWS`, each once."""
    collator, size = parts.collator.for_evaluation(0), parts.recipe.train.batch_size
    rows = min(BEGIN_ROWS, len(parts.stream))
    for start in range(0, rows, size):
        yield send_to_device(collator(parts.stream.rows(range(start, min(start + size, rows)))), device)


def training_rows(parts: Parts, device: torch.device) -> Iterator[Batch]:
    """Every training row once, then every unlabelled one, each from short to long."""
    collator, size = parts.collator.for_evaluation(0), parts.recipe.train.batch_size
    for source in (parts.stream.source, parts.unlabelled):
        rows = Stream.fixed(source) if source is not None else None
        order = by_length(rows).tolist() if rows is not None else []
        for start in range(0, len(order), size):
            assert rows is not None
            yield send_to_device(collator(rows.rows(order[start : start + size])), device)
